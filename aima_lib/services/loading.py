"""From a process to an engine that answers: wait for its first token, see what it can do, or clear up and say why it came to nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio

from aima_lib.engines.cause import cause as cause_of
from aima_lib.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from aima_lib.infra.clock import now
from aima_lib.infra.launch import Launch
from aima_lib.infra.progress import Send, silent
from aima_lib.infra.store import Document, Store
from aima_lib.launchers import process
from aima_lib.services import placement
from aima_lib.services.containers import Containers
from aima_lib.services.device import DeviceService
from aima_lib.services.engine_calls import logs_call
from aima_lib.services.engine_catalog import EngineCatalog, calls_tools
from aima_lib.services.engine_news import EngineNews
from aima_lib.services.measuring import Measuring
from aima_lib.services.probes import Probes
from aima_lib.services.readiness import says_a_token, tried
from aima_lib.services.wire import Address, Wire

GONE: Document = {
    "health": "unknown", "pid": None, "keeper_pid": None, "base_url": None, "tasks": [], "tools": None, "json_schema": None,
    "container_id": None,
}  # fmt: skip


class Loading:
    """Every start goes through here, also one whose host died half way."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        home: Path,
        store: Store,
        wire: Wire,
        catalog: EngineCatalog,
        containers: Containers,
        devices: DeviceService,
        measuring: Measuring,
        news: EngineNews,
        probes: Probes,
    ) -> None:
        self._settings, self._home, self._store, self._wire = settings, home, store, wire
        self._catalog, self._devices, self._measuring, self._news, self._probes = catalog, devices, measuring, news, probes
        self._containers = containers

    async def until_ready(self, document: Document, launch: Launch, port: int | None, send: Send) -> Document:
        """Wait for the first token. Whatever else happens, a cancelled caller too, nothing of the start is left.

        Raises:
            FailedPrecondition: it died; the cause is named.
            DeadlineExceeded: no token within engines.start_timeout_seconds.
        """
        seconds, succeeded = float(self._settings["start_timeout_seconds"]), False
        try:
            await self._news.progress(document, "loading", f"loading {document['model_id']}", send)
            with anyio.fail_after(seconds):
                address = await self._first_token(document, launch, port)
            ready = await self._mark_ready(document, launch, address)
            succeeded = True
        except TimeoutError as error:
            message = f"{document['id']} gave no token within {seconds:g} s"
            raise DeadlineExceeded(message, hint="raise engines.start_timeout_seconds", next=[logs_call(document["id"])]) from error
        finally:
            if not succeeded:
                with anyio.CancelScope(shield=True):
                    await self.give_up(document)
        await self._news.progress(ready, "ready", f"{ready['id']} answers at {ready['base_url']}", send)
        return ready

    async def _first_token(self, document: Document, launch: Launch, port: int | None) -> Address:
        id, key = document["id"], process.read_key(self._home, document["id"])
        while True:
            self._refuse_dead(id)
            announced = process.read_ready(self._home, id) if launch.announces else None
            url = announced["url"] if announced else f"http://127.0.0.1:{port}" if port and not launch.announces else None
            if url is not None:
                try:
                    address = Address(id, url, key)
                    await says_a_token(self._wire, address, launch)
                    return address
                except Unavailable:
                    pass  # not yet: it loads, or it has just died, which the next look will say
            await anyio.sleep(0.05)

    def _refuse_dead(self, id: str) -> None:
        kept, over = process.read_state(self._home, id), process.read_exit(self._home, id)
        if over is None and (kept is None or kept.is_running()):
            return
        if over is None and kept is not None and kept.has_keeper():
            return  # its keeper is about to say how it ended
        why = self.cause(id)
        model_id = self._store.get("instance", id)["model_id"]
        calls = [logs_call(id), {"unit": "model.verify", "arguments": {"model_id": model_id}}]
        raise FailedPrecondition(
            f"{id} did not start: {why}", hint="engine.logs has the rest of what it said", next=calls, details={"said": why}
        )

    async def _mark_ready(self, document: Document, launch: Launch, address: Address) -> Document:
        engine = self._catalog.adapter(document["engine"])
        announced = process.read_ready(self._home, document["id"])
        inner = process.read_inner(self._home, document["id"])
        gpus = None if announced or inner else await anyio.to_thread.run_sync(engine.gpus)
        placed = placement.observed(document, self._devices.devices(), announced, gpus)
        properties = await self._wire.get(address, "/props", timeout=5)
        able = {"tools": calls_tools(properties[1]), "json_schema": None}
        for what in engine.asked if "chat" in launch.tasks else ():
            able[what] = await tried(self._wire, address, launch.alias, what) if able[what] is None else able[what]
        ready = await self._store.update(
            "instance", document["id"], status="ready", health="healthy", ready_at=now(), base_url=address.base_url,
            tasks=list(launch.tasks), device=placed["device"], placement=placed, error=None,
            container_id=inner and inner["container_id"], **able,
        )  # fmt: skip
        self._probes.forget(ready["id"])
        self._news.started(ready, adopted=False)
        await self._measuring.started(ready, self._catalog.version(ready["engine"], ready["options"]))
        return ready

    async def give_up(self, document: Document) -> None:
        """End what is left of a start, and record why."""
        kept = process.read_state(self._home, document["id"])
        alive = kept is not None and kept.is_running()
        why = "it was given up before its first token" if alive else self.cause(document["id"])
        await self._containers.stop(document, 0.0)
        await self.fail(document, why, silent)

    async def fail(self, document: Document, why: str, send: Send) -> None:
        """Record that it did not start."""
        await self._store.update("instance", document["id"], status="failed", error=why, **GONE)
        await self._news.progress(document, "failed", why, send)
        self._news.error(document, why)

    def cause(self, id: str) -> str:
        """Why an instance ended, in one line."""
        if why := process.read_why(self._home, id):
            return why
        over = process.read_exit(self._home, id) or {}
        if over.get("reason") == "no host":
            return "its keeper ended it: the home had no host for longer than engines.grace_seconds"
        served = self._store.get("instance", id)["ready_at"] is not None
        lines = process.tail(process.log_of(self._home, id), 20 if served else 200)
        return cause_of(lines, over.get("returncode"), served=served)
