"""Apps: Docker applications that are wanted, as a record in the store; containers are made and kept as it says."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import anyio

from aima_lib.door import Caller
from aima_lib.errors import AimaError, DeadlineExceeded, FailedPrecondition, Unavailable
from aima_lib.infra.clock import parse
from aima_lib.infra.docker import Docker
from aima_lib.infra.events import Events
from aima_lib.infra.home import Home
from aima_lib.infra.progress import Send, silent
from aima_lib.infra.store import Document, Store
from aima_lib.services.app_gpus import Gpus
from aima_lib.services.app_keeping import Keeping
from aima_lib.services.app_link import Links
from aima_lib.services.app_log import AppLog, begun, cursor_of, told
from aima_lib.services.app_making import Making
from aima_lib.services.app_refusals import call, other, undone, wait
from aima_lib.services.app_stack import Seen, Stack, host_ports
from aima_lib.services.app_template import Template, builtins, changed, volumes_of
from aima_lib.services.app_view import shown
from aima_lib.services.device import DeviceService
from aima_lib.services.keys import KeyService
from aima_lib.services.secrets import SecretService

log = logging.getLogger(__name__)
Notes = list[str]
SNAPSHOT = ("base", "template", "template_name", "config", "generation", "images", "ports", "link_port")


class AppService:
    """Every app of this home. A record says what is wanted; how an app is, is read off its containers."""

    def __init__(
        self,
        config: Mapping[str, Any],
        home: Home,
        store: Store,
        events: Events,
        devices: DeviceService,
        keys: KeyService,
        secrets: SecretService,
        docker: Docker,
        stack: Stack,
    ) -> None:
        self._store, self._events, self._docker = store, events, docker
        self._gpus, self._log = Gpus(config, devices, docker), AppLog(docker)
        self.stack, self.links = stack, Links(lambda: getattr(home.host(), "url", None))
        self.keeping = Keeping(home, store, keys, secrets)
        self.making = Making(store, docker, stack, self.links, self.keeping, self._gpus)
        self.locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self.usage: dict[str, Mapping[str, Any]] = {}  # by container: what was measured last
        self.health: Mapping[str, tuple[str, str | None]] = {}  # by container: how it is, and why it is not well
        self.deaths: Callable[[str], int] = lambda _: 0
        self.forgive: Callable[[str], None] = lambda _: None

    # Reading

    async def get(self, app_id: str) -> Document:
        """One app, as it is now. Raises NotFound."""
        return self._view(self._store.get("app", app_id), *await self._look())

    async def list(
        self, status: str | None = None, category: str | None = None, limit: int = 100, offset: int = 0
    ) -> tuple[Sequence[Document], int]:
        """A page of apps, oldest first, and how many there are in all."""
        seen, why = await self._look()
        rows = [self._view(record, seen, why) for record in self._store.find("app")]
        chosen = [row for row in rows if status in (None, row["status"]) and category in (None, row["category"])]
        return chosen[offset : offset + limit], len(chosen)

    async def logs(
        self, app_id: str, tail: int, since: str | None = None, cursor: str | None = None, seconds: float = 0.0
    ) -> tuple[Sequence[str], str]:
        """The last lines its containers wrote, each with its time, or the next after a cursor; and the cursor behind them.

        seconds: how long to wait for a line where there is none yet.
        """
        record, at = self._store.get("app", app_id), parse(since).timestamp() if since else 0.0
        ids = partial(self.stack.ids, record)
        if cursor is not None:
            lines, places = await self._log.after(record, ids, begun(record, cursor_of(cursor), at), tail, seconds)
            return lines, told(places)
        lines, places = await self._log.last(record, ids, tail, at or None)
        if not lines and seconds:
            lines, places = await self._log.after(record, ids, places, tail, seconds)
        return lines, told(places)

    async def _look(self) -> tuple[Mapping[str, Seen] | None, str | None]:
        try:
            return await self.stack.seen(), None
        except AimaError as error:
            return None, str(error)

    def _view(self, record: Document, seen: Mapping[str, Seen] | None, why: str | None) -> Document:
        return shown(record, seen, why, self.usage, self.health, self.keeping.logins(record), self.deaths(record["id"]))

    # Installing

    async def foresee(self, template: Template, app_id: str, config: Mapping[str, Any]) -> tuple[Document | None, Template, Sequence[str]]:
        """The app that is there, what would be installed, and its images that are not here. Raises as `install` does before it begins."""
        chosen, old = changed(template, config), self._store.peek("app", app_id)
        if old and old["phase"] != "uninstalled" and not _is_same(old, chosen, config):
            raise other(old)
        self._gpus.needed(chosen)
        lacking = [each["image"] for each in chosen["containers"].values() if await self._docker.image(each["image"]) is None]
        return old, chosen, lacking

    async def foresee_update(
        self, app_id: str, template: Template | None, config: Mapping[str, Any] | None
    ) -> tuple[Template | None, Sequence[str]]:
        """What `update` would make of it, None for nothing else, and the images of that which are not here. Raises as `update` does."""
        record = self._installed(app_id)
        _, chosen, given = self.target(record, template, config)
        if _is_same(record, chosen, given):
            return None, []
        return chosen, [each["image"] for each in chosen["containers"].values() if await self._docker.image(each["image"]) is None]

    async def install(
        self, template: Template, app_id: str, config: Mapping[str, Any], caller: Caller, run_id: str, send: Send = silent
    ) -> Document:
        """Install an app and return when it works. The same call again changes nothing; the same run again goes on where it was.

        Raises:
            InvalidArgument: the configuration does not fit the template.
            AlreadyExists: an app of that name is something else.
            FailedPrecondition, NotFound, DeadlineExceeded: it cannot be fetched or does not start; what was made of it is gone again.
            Unavailable: Docker is away, or no registry could be reached.
        """
        chosen = changed(template, config)
        async with self.locks[app_id]:
            old = self._store.peek("app", app_id)
            if old and old["phase"] in ("installed", "updating"):
                if not _is_same(old, chosen, config):
                    raise other(old)
                return (await self._start(self._installed(app_id), caller, send))[0]
            if old and old["phase"] == "installing" and old["run_id"] != run_id:
                raise FailedPrecondition(f"{app_id} is being installed by the run {old['run_id']}", next=[wait(old["run_id"])])
            if old and old["phase"] == "uninstalling":
                raise FailedPrecondition(f"{app_id} is being uninstalled", hint="install it again when that is done")
            self._gpus.needed(chosen)
            await self.stack.seen()  # where Docker is away nothing is begun
            known = old and old["phase"] == "installing"
            record = old if old and known else await self.making.begin(old, template, chosen, app_id, config, run_id)
            try:
                record = await self.making.settle(record, caller, send)
            except AimaError as error:
                with anyio.CancelScope(shield=True):
                    await self._undo_held(record)
                raise undone(error, app_id, bool(record["kept"])) from error
            record = await self.making.change(app_id, phase="installed", kept=False, run_id=None)
        self._events.publish(
            "app.installed", {"app_id": app_id, "template": record["template_name"], "ports": record["ports"]}, subject=app_id
        )
        self._events.publish("app.started", {"app_id": app_id}, subject=app_id)
        return await self.get(app_id)

    async def undo(self, app_id: str, run_id: str) -> None:
        """Take back what an install that was cancelled has made."""
        async with self.locks[app_id]:
            record = self._store.peek("app", app_id)
            if record and record["phase"] == "installing" and record["run_id"] == run_id:
                await self._undo_held(record)

    async def _undo_held(self, record: Document) -> None:
        record = await self.making.change(record["id"], phase="uninstalling", remove_data=not record["kept"], desired=False, undoes=True)
        try:
            await self._remove(record)
        except AimaError as error:  # Docker went away: the reconciler goes on with it
            log.warning("what was made of %s is removed when Docker is back: %s", record["id"], error)

    # Running

    async def start(self, app_id: str, caller: Caller, send: Send = silent) -> tuple[Document, Notes]:
        """Want it to run, and return when it does, with what had to be done besides. Clears a failure.

        Raises as `install`; the app stays, as failed. PermissionDenied: its key was revoked, and the caller may not give it another.
        """
        self._store.get("app", app_id)
        async with self.locks[app_id]:
            return await self._start(self._installed(app_id), caller, send)

    def has_lost_key(self, app_id: str) -> bool:
        """Whether a start would give it another key."""
        return self.keeping.has_lost_key(self._store.get("app", app_id))

    async def _start(self, record: Document, caller: Caller, send: Send) -> tuple[Document, Notes]:
        app_id, notes = record["id"], Notes()
        before = await self.get(app_id)
        self.forgive(app_id)
        record = await self.making.change(app_id, desired=True, error=None)
        try:
            if self.keeping.has_lost_key(record):
                record = await self._renew_key(record, caller, send, notes)
            record = await self.making.prepare(record, None, send)
            await self.making.bring_up(record, send)
        except AimaError as error:
            if isinstance(error, Unavailable | DeadlineExceeded) and self._docker.is_away:
                hint = f"{error.hint}; {app_id} is started when Docker is back"
                raise type(error)(f"app {app_id}: {error}", hint=hint, next=[call("app.get", app_id)]) from error
            await self.fail(app_id, str(error))
            calls = [*error.next, call("app.logs", app_id), call("app.start", app_id)]
            raise type(error)(f"app {app_id}: {error}", hint=error.hint, next=calls, details=error.details) from error
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):  # nobody wants it any more, so nobody shall start it behind their back
                await self.making.change(app_id, desired=False)
            raise
        if before["status"] != "running" or notes:
            self._events.publish("app.started", {"app_id": app_id}, subject=app_id)
        return await self.get(app_id), notes

    async def _renew_key(self, record: Document, caller: Caller, send: Send, notes: Notes) -> Document:
        """Another key for one whose key lets nobody in; its containers are made anew, for they know the old one."""
        old, number = record["key_id"], record["generations"] + 1
        key_id = await self.keeping.key(record, caller)
        notes.append(f"its key {old} had been revoked: it has another, {key_id}, and its containers were made anew with that")
        await send({"phase": "starting", "message": notes[-1], "completed": None, "total": None})
        return await self.making.change(record["id"], key_id=key_id, generation=number, generations=number)

    async def stop(self, app_id: str, timeout_seconds: float | None = None) -> Document:
        """Want it not to run, and return when it does not."""
        self._refuse_busy(app_id)
        async with self.locks[app_id]:
            record = await self.making.change(self._installed(app_id)["id"], desired=False, error=None)
            ended = await self.stack.put_down(record, timeout_seconds)
            await self.links.close(app_id)
            if ended:
                self._events.publish("app.stopped", {"app_id": app_id}, subject=app_id)
        return await self.get(app_id)

    async def fail(self, app_id: str, why: str) -> None:
        """An app does not run, though it is wanted, and nobody tries any more."""
        record = self._store.peek("app", app_id)
        if record and record["desired"]:
            await self.making.change(app_id, error=why)
            self._events.publish("app.failed", {"app_id": app_id, "cause": why}, subject=app_id)

    async def repair(self, app_id: str) -> None:
        """Bring up what is missing of an app that is wanted. For who holds its lock. Raises what hinders."""
        record = self._store.peek("app", app_id)
        if record and record["phase"] == "installed" and record["desired"] and not record["error"]:
            record = await self.making.prepare(record, None, silent)
            await self.making.bring_up(record, silent)

    # Another version

    async def update(
        self, app_id: str, template: Template | None, config: Mapping[str, Any] | None, caller: Caller, run_id: str, send: Send = silent
    ) -> Document:
        """Run an app by another template or configuration on the data it has. When the new one does not work the old one runs again.

        Raises:
            InvalidArgument: the configuration does not fit.
            FailedPrecondition, DeadlineExceeded, NotFound, Unavailable: the new one could not be fetched, or did not work; it is as it was.
        """
        self._store.get("app", app_id)
        async with self.locks[app_id]:
            record = self._installed(app_id, run_id)
            if record["phase"] == "installed":
                base, chosen, given = self.target(record, template, config)
                if _is_same(record, chosen, given):
                    return await self.get(app_id)
                record = await self._turn(record, base, chosen, given, run_id)
            try:
                record = await self.making.prepare(record, caller, send)
                await (self.making.bring_up(record, send) if record["desired"] else self.stack.clear(app_id))
            except AimaError as error:
                with anyio.CancelScope(shield=True):
                    await self.roll_back(app_id, str(error))
                hint = f"{error.hint or 'mend the cause'}; {app_id} runs as before"
                raise type(error)(f"app {app_id}: {error}", hint=hint, next=error.next, details=error.details) from error
            outdated = _only(record["previous"]["images"], record["images"])
            record = await self.making.change(app_id, phase="installed", previous=None, error=None, run_id=None)
            await self.stack.drop_images(outdated)
        images = {name: each["digest"] or each["image_id"] for name, each in record["images"].items()}
        self._events.publish("app.updated", {"app_id": app_id, "images": images}, subject=app_id)
        return await self.get(app_id)

    def target(
        self, record: Document, template: Template | None, config: Mapping[str, Any] | None
    ) -> tuple[Template, Template, Mapping[str, Any]]:
        """Of an update: the template, what the configuration makes of it, and that. Raises InvalidArgument."""
        given, base = record["config"] if config is None else config, template or self._base(record)
        return base, changed(base, given), given

    @staticmethod
    def _base(record: Document) -> Template:
        """What it was installed from: of a template that comes with AIMA, as it comes now."""
        base: Template = record["base"]
        return builtins().get(record["template_name"], base) if not record["custom"] else base

    async def _turn(self, record: Document, base: Template, template: Template, config: Mapping[str, Any], run_id: str) -> Document:
        """What is wanted from now on, with what was."""
        ports, link_port = await self.making.allot(template, record["id"], config, record, host_ports(record))
        previous = {key: record[key] for key in SNAPSHOT}
        changes: Document = {
            "base": dict(base),
            "template": dict(template),
            "config": dict(config),
            "ports": ports,
            "link_port": link_port,
            "previous": previous,
        }
        number = record["generations"] + 1
        return await self.making.change(record["id"], phase="updating", run_id=run_id, generation=number, generations=number, **changes)

    async def roll_back(self, app_id: str, why: str) -> None:
        """Run an app as it was before its update; containers that were not replaced yet go on. For who holds its lock."""
        record = self._store.get("app", app_id)
        before, fetched = dict(record["previous"]), record["images"]
        record = await self.making.change(app_id, **before, phase="installed", previous=None, run_id=None)
        self._events.publish("app.rolled_back", {"app_id": app_id, "cause": why}, subject=app_id)
        try:
            if record["desired"]:
                record = await self.making.prepare(record, None, silent)
                await self.making.bring_up(record, silent)
            await self.stack.drop_images(_only(fetched, record["images"]))
        except (Unavailable, DeadlineExceeded) as error:  # the reconciler goes on with it
            log.warning("%s is as before, and is brought up by the reconciler: %s", app_id, error)
        except AimaError as error:
            await self.fail(app_id, f"as it was before its update it does not start either: {error}")

    # Leaving

    async def uninstall(self, app_id: str, remove_data: bool) -> Document:
        """Remove its containers, network, key and link; its data as well, if that is wanted. Without, it stays listed as uninstalled.

        Returns {app_id, data_removed, kept_volumes}.
        """
        self._refuse_busy(app_id)
        async with self.locks[app_id]:
            wish: Document = {"phase": "uninstalling", "desired": False, "remove_data": remove_data, "error": None, "undoes": False}
            record = await self.making.change(app_id, **wish)
            with anyio.CancelScope(shield=True):
                await self._remove(record)
        kept = [] if remove_data else volumes_of(record["template"])
        return {"app_id": app_id, "data_removed": remove_data, "kept_volumes": kept}

    async def _remove(self, record: Document) -> None:
        """Go through with an uninstall, or with what is left of one. For who holds its lock."""
        app_id = record["id"]
        await self.links.close(app_id)
        await self.keeping.revoke(record)
        await self.keeping.hide(record)
        if not record["remove_data"]:  # what it has written shall be whole
            await self.stack.put_down(record)
        await self.stack.clear(app_id)
        self.forgive(app_id)
        data = bool(volumes_of(record["template"]) or record["template"].get("secrets"))
        if record["remove_data"] or not data:
            await self.stack.clear_data(record)
            await self.keeping.forget(record, but=record["given"] if record.get("undoes") else ())
            await self._store.delete("app", app_id)
        else:
            await self.making.change(app_id, phase="uninstalled", key_id=None, kept=True, run_id=None, previous=None)
        self._events.publish("app.uninstalled", {"app_id": app_id, "data_removed": bool(record["remove_data"] or not data)}, subject=app_id)

    async def go_on(self, app_id: str) -> None:
        """Finish what a host that died has left of an install, update or uninstall, or Docker going away. For who holds its lock."""
        record = self._store.peek("app", app_id)
        if record is None:
            return
        if record["phase"] == "uninstalling":
            await self._remove(record)
        elif record["phase"] == "installing":
            await self._undo_held(record)
        elif record["phase"] == "updating":
            await self.roll_back(app_id, "the run that updated it has ended")

    # Small things

    def _refuse_busy(self, app_id: str) -> None:
        """Raises FailedPrecondition while a run makes or changes it: who would stop that cancels the run. NotFound where there is none."""
        record = self._store.get("app", app_id)
        run = self._store.peek("run", record["run_id"]) if record["run_id"] else None
        if record["phase"] in ("installing", "updating") and run and run["status"] == "running":
            cancel = {"unit": "run.cancel", "arguments": {"run_id": run["id"]}}
            raise FailedPrecondition(
                f"{app_id} is {record['phase']}, by the run {run['id']}",
                hint="cancel that, or wait for it",
                next=[cancel, wait(run["id"])],
            )

    def _installed(self, app_id: str, run_id: str | None = None) -> Document:
        record = self._store.get("app", app_id)
        if record["phase"] == "installed" or (record["phase"] == "updating" and record["run_id"] == run_id):
            return record
        if record["phase"] == "uninstalled":
            install = {"unit": "app.install", "arguments": {"template": record["template_name"], "name": app_id}}
            raise FailedPrecondition(
                f"{app_id} is not installed; its data is here", hint="install it again", next=[] if record["custom"] else [install]
            )
        raise FailedPrecondition(
            f"{app_id} is {record['phase']}", hint="wait for that", next=[wait(record["run_id"])] if record["run_id"] else []
        )


def _only(images: Mapping[str, Document], others: Mapping[str, Document]) -> Sequence[Document]:
    """Images that the others are not."""
    known = {each["image_id"] for each in others.values()}
    return [each for each in images.values() if each["image_id"] not in known]


def _is_same(record: Document, template: Template, config: Mapping[str, Any]) -> bool:
    return bool(record["template"] == template and record["config"] == dict(config))
