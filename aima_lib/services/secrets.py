"""Secrets: what AIMA must know to reach others, and tells nobody. Put, replaced, deleted, and read by AIMA alone."""

from __future__ import annotations

import logging

import anyio

from aima_lib.errors import FailedPrecondition
from aima_lib.infra.clock import now
from aima_lib.infra.crypto import Unreadable, Vault
from aima_lib.infra.home import Home
from aima_lib.infra.store import Document, Store

log = logging.getLogger(__name__)
# Each name there may be, and the units that read it: a secret that nothing reads would only be one more thing to lose.
READERS = {"huggingface_token": ("model.pull", "model.estimate_resources", "model.search")}
REMOTE_READERS = ("engine.start", "service.create")  # of the keys of endpoints, remote_NAME
APP_READERS = ("app.install", "app.start", "app.update")  # of what apps are told, app_APP__NAME


class SecretService:
    """The secrets of one home. In the store each is a nonce and a ciphertext; the key is derived from the home's `keys.secret`."""

    def __init__(self, home: Home, store: Store) -> None:
        self._home, self._store = home, store
        lost = [record["id"] for record in store.find("secret") if self._status(record) == "lost"]
        if lost:
            log.error("%s is not what secrets were encrypted with: put again: %s", home.secret_path, ", ".join(lost))

    async def put(self, name: str, value: str) -> Document:
        """Keep a secret, in the place of what was kept under that name. Says of it what `list` says."""
        known = self._store.peek("secret", name)
        moment = now()
        record = {
            "id": name,
            **Vault(self._home.secret()).seal(name, value),
            "created_at": known["created_at"] if known else moment,
            "updated_at": moment,
        }
        with anyio.CancelScope(shield=True):
            await self._store.put("secret", record)
        return self._shown(record)

    def list(self) -> list[Document]:
        """What secrets there are, by name; of their values, nothing."""
        return sorted((self._shown(record) for record in self._store.find("secret")), key=lambda secret: str(secret["name"]))

    async def delete(self, name: str) -> None:
        """Forget a secret.

        Raises:
            NotFound: there is none of that name.
        """
        with anyio.CancelScope(shield=True):
            if not await self._store.delete("secret", name):
                raise self._store.missing("secret", name)

    def read(self, name: str) -> str | None:
        """The value, or None when nobody has put one. For services; no unit answers with it.

        Raises:
            FailedPrecondition: it cannot be decrypted any more.
        """
        record = self._store.peek("secret", name)
        if record is None:
            return None
        try:
            return self._opened(record)
        except Unreadable as error:
            raise FailedPrecondition(
                f"the secret {name} is lost: {self._home.secret_path} is not what it was encrypted with",
                hint=f"put it again (`aima secret put {name}`), or delete it",
                next=[{"unit": "secret.list", "arguments": {}}, {"unit": "secret.delete", "arguments": {"name": name}}],
            ) from error

    def find(self, name: str) -> Document:
        """What is told of one secret. Raises NotFound."""
        return self._shown(self._store.get("secret", name))

    def _opened(self, record: Document) -> str:
        if not self._home.has_secret():  # to make one now would hide from the keys that theirs is gone
            raise Unreadable(record["id"])
        return Vault(self._home.secret()).open(record["id"], record)

    def _status(self, record: Document) -> str:
        try:
            self._opened(record)
        except (Unreadable, FailedPrecondition):
            return "lost"
        return "ready"

    def _shown(self, record: Document) -> Document:
        return {
            "name": record["id"],
            "status": self._status(record),
            "used_by": [*READERS.get(record["id"], APP_READERS if record["id"].startswith("app_") else REMOTE_READERS)],
            "created_at": record["created_at"],
            "updated_at": record["updated_at"],
        }
