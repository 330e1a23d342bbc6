"""What an app is told and nobody else: its secrets, kept encrypted, and its key to this AIMA."""

from __future__ import annotations

import secrets as randomness
import shutil
import string
from collections.abc import Collection, Mapping
from pathlib import Path

from anyio import to_thread

from aima_lib.door import OWNER, Caller
from aima_lib.errors import NotFound
from aima_lib.infra.home import Home, write_private
from aima_lib.infra.store import Document, Store
from aima_lib.services.app_link import SCOPES, Bridge
from aima_lib.services.app_template import LINK_SECRET, secret_of
from aima_lib.services.keys import KeyService
from aima_lib.services.secrets import SecretService

CHARACTERS, SIGNS = 32, string.ascii_letters + string.digits


class Keeping:
    """Makes, tells and forgets them. Values are asked for when a container is made, and stand in no record, event or error."""

    def __init__(self, home: Home, store: Store, keys: KeyService, secrets: SecretService) -> None:
        self._home, self._store, self._keys, self._secrets = home, store, keys, secrets

    async def secrets(self, record: Document) -> None:
        """Have every secret of an app: what somebody has put stays, what is missing is made. A login is written for the owner to read."""
        for name, wish in record["template"].get("secrets", {}).items():
            kept = secret_of(record["id"], name)
            value = self._secrets.read(kept)
            if value is None:
                value = "".join(randomness.choice(SIGNS) for _ in range(wish.get("characters", CHARACTERS)))
                await self._secrets.put(kept, value)
            if wish.get("login"):
                await to_thread.run_sync(self._write, self._folder(record["id"]) / name, value)

    @staticmethod
    def _write(path: Path, value: str) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, value + "\n")

    def logins(self, record: Document) -> list[dict[str, str]]:
        """Which secrets let a person in, and the file that holds each: {name, file}."""
        wishes = record["template"].get("secrets", {})
        files = [(name, self._folder(record["id"]) / name) for name, wish in wishes.items() if wish.get("login")]
        return [{"name": name, "file": str(path)} for name, path in files if path.exists()]

    def _folder(self, app_id: str) -> Path:
        return self._home.path / "apps" / app_id

    async def key(self, record: Document, by: Caller) -> str:
        """The id of the key that the app shows here. One that was lost, or left by a host that died in the midst, is revoked for another.

        Raises:
            PermissionDenied: who installs it may not do itself what the key would let it do.
        """
        known = self._known(record["key_id"])
        kept = secret_of(record["id"], LINK_SECRET)
        if known and self._secrets.read(kept) is not None:
            return str(record["key_id"])
        await self.revoke(record)
        made, text = await self._keys.create(self._name(record), SCOPES[record["template"]["link"]], None, None, by)
        await self._secrets.put(kept, text)
        return str(made["id"])

    def has_lost_key(self, record: Document) -> bool:
        """Whether it is to have a key, and that one lets nobody in any more: it was revoked by hand, or forgotten."""
        kept = secret_of(record["id"], LINK_SECRET)
        return record["link_port"] is not None and not (self._known(record["key_id"]) and self._secrets.read(kept) is not None)

    def _known(self, key_id: str | None) -> bool:
        try:
            return key_id is not None and self._keys.find(key_id)["status"] == "active"
        except NotFound:
            return False

    @staticmethod
    def _name(record: Document) -> str:
        return f"app {record['id']}"

    async def revoke(self, record: Document) -> None:
        """Take its key back, and forget it."""
        for key in self._store.find("key", name=self._name(record)):
            if key["revoked_at"] is None:
                await self._keys.revoke(key["id"], OWNER)
        await self._forget(secret_of(record["id"], LINK_SECRET))

    async def hide(self, record: Document) -> None:
        """Remove the files that its owner read."""
        await to_thread.run_sync(lambda: shutil.rmtree(self._folder(record["id"]), ignore_errors=True))

    def given(self, app_id: str) -> list[str]:
        """The names of secrets that are there before an app is: somebody has put them."""
        return sorted(self._store.ids("secret", secret_of(app_id, "")))

    async def forget(self, record: Document, but: Collection[str] = ()) -> None:
        """Forget its secrets but these. What they let in to, or opened, is lost with them."""
        for name in self._store.ids("secret", secret_of(record["id"], "")) - set(but):
            await self._forget(name)

    async def _forget(self, name: str) -> None:
        if self._store.peek("secret", name) is not None:
            await self._secrets.delete(name)

    def values(self, record: Document, bridge: Bridge | None) -> Mapping[str, str]:
        """What the words of its template stand for. Raises FailedPrecondition where a secret is lost."""
        app_id, host = record["id"], f"{bridge.gateway}:{record['link_port']}" if bridge else ""
        link = {"link.host": host, "link.url": f"http://{host}/v1" if host else ""}
        told = {f"secret.{name}": self._secrets.read(secret_of(app_id, name)) or "" for name in record["template"].get("secrets", {})}
        key = self._secrets.read(secret_of(app_id, LINK_SECRET)) or "" if bridge else ""
        ports = {f"port.{name}": str(port) for name, port in record["ports"].items()}
        return {"app.id": app_id, "link.key": key, **link, **told, **ports}
