"""Apps kept as they are wanted, for as long as the host lives: what ends is started again, what was left half done is finished."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus

from aima_lib.errors import AimaError, DeadlineExceeded, NotFound, Unavailable
from aima_lib.infra.clock import parse
from aima_lib.infra.docker import Docker, Happening
from aima_lib.infra.events import Events
from aima_lib.infra.store import Document, Store
from aima_lib.services.app import AppService
from aima_lib.services.app_stack import KIND, Seen, owner_of
from aima_lib.services.app_template import container_of
from aima_lib.services.restarts import Restarts

log = logging.getLogger(__name__)
TICK, MEASURE, STRAYS = 1.0, 5.0, 60.0
OOM_QUIET = 1.0  # the kernel may say so of each of its processes


class AppWatch:
    """Compares the apps that are wanted with the containers there are."""

    def __init__(self, config: Mapping[str, Any], store: Store, events: Events, docker: Docker, apps: AppService) -> None:
        limits = config["engines"]
        self._restarts = Restarts(int(limits["restart_limit"]), float(limits["restart_window_seconds"]))
        self._store, self._events, self._docker, self._apps = store, events, docker, apps
        self._news = anyio.Event()
        self._told: dict[str, float] = {}  # when it was last said of a container that it was out of memory
        self._measured: dict[str, tuple[float, float]] = {}  # by container: when, and its CPU seconds then
        self._strays_at = self._measure_at = 0.0
        apps.deaths, apps.forgive = self._restarts.deaths, self._restarts.forget
        docker.listen(self._hear)

    async def _hear(self, happening: Happening) -> None:
        if happening.action == "connected":
            self._strays_at = 0.0
        elif happening.kind != KIND:
            return
        if happening.action == "oom":
            self._note_oom(happening)
        news, self._news = self._news, anyio.Event()
        news.set()

    def _note_oom(self, happening: Happening) -> None:
        moment = time.monotonic()
        if moment - self._told.get(happening.name, -OOM_QUIET) < OOM_QUIET:
            return
        self._told[happening.name] = moment
        app_id, container = owner_of(happening.name), happening.name.rpartition("--")[2]
        record = self._store.peek("app", app_id) or {"template": {"containers": {}}}
        limit = record["template"]["containers"].get(container, {}).get("memory_bytes")
        self._events.publish("app.oom_detected", {"app_id": app_id, "container": container, "memory_limit_bytes": limit}, subject=app_id)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Look at every app once a second, and when Docker says something, until cancelled."""
        task_status.started()
        if self._store.count("app"):
            with suppress(AimaError):
                await self._apps.stack.seen()  # from now on Docker is listened to
        try:
            async with anyio.create_task_group() as repairs:
                while True:
                    news = self._news
                    if not self._docker.is_away:
                        await self._look(repairs)
                    with anyio.move_on_after(TICK):
                        await news.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await self._apps.links.close_all()

    async def _look(self, repairs: TaskGroup) -> None:
        records = self._store.find("app")
        try:
            if time.monotonic() - self._strays_at > STRAYS:
                known = [record["id"] for record in records if record["phase"] != "uninstalled"]
                if not any(lock.locked() for lock in self._apps.locks.values()):
                    self._strays_at = time.monotonic()
                    for app_id in await self._apps.stack.clear_strays(known):
                        log.warning("removed what was left of the app %s", app_id)
            if not records:
                return
            seen = await self._apps.stack.seen()
            for record in records:
                if not self._apps.locks[record["id"]].locked():
                    self._consider(record, seen, repairs)
            if time.monotonic() - self._measure_at > MEASURE:
                self._measure_at = time.monotonic()
                repairs.start_soon(self._measure, [each for each in seen.values() if each.runs])
        except (Unavailable, DeadlineExceeded) as error:
            log.debug("Docker is away: %s", error)

    def _consider(self, record: Document, seen: Mapping[str, Seen], repairs: TaskGroup) -> None:
        app_id, phase = record["id"], record["phase"]
        if phase in ("installing", "updating", "uninstalling"):
            if not self._is_worked_on(record) and self._restarts.is_due(app_id):
                repairs.start_soon(self._go_on, app_id)
            return
        if phase != "installed" or record["error"]:
            return
        names = [container_of(app_id, name) for name in record["template"]["containers"]]
        ended = [each for name in names if (each := seen.get(name)) is not None and not each.runs]
        absent = [name for name in names if name not in seen]
        stale = [name for name in names if name in seen and seen[name].generation != str(record["generation"])]
        if not record["desired"]:
            if len(ended) + len(absent) < len(names):
                repairs.start_soon(self._stop, app_id)
            return
        for each in ended:
            if each.started_at:
                self._restarts.note(app_id, f"{each.id} {each.started_at}")
        if (ended or absent or stale or self._lacks_link(record)) and self._restarts.is_due(app_id):
            repairs.start_soon(self._repair, app_id, _why(ended, absent))

    def _lacks_link(self, record: Document) -> bool:
        return record["link_port"] is not None and not self._apps.links.is_kept(record["id"])

    def _is_worked_on(self, record: Document) -> bool:
        """Whether the run goes on that began this, or a call that needs none."""
        run = self._store.peek("run", record["run_id"]) if record["run_id"] else None
        return record["phase"] != "uninstalling" and run is not None and run["status"] == "running"

    async def _go_on(self, app_id: str) -> None:
        async with self._apps.locks[app_id]:
            try:
                await self._apps.go_on(app_id)
            except AimaError as error:
                log.warning("app %s: %s; it is tried again", app_id, error)
                self._restarts.note(app_id, None)

    async def _stop(self, app_id: str) -> None:
        try:
            await self._apps.stop(app_id)
        except AimaError as error:
            log.warning("app %s: %s", app_id, error)

    async def _repair(self, app_id: str, why: str | None) -> None:
        async with self._apps.locks[app_id]:
            record = self._store.peek("app", app_id)
            if record is None or not record["desired"] or record["error"] or not self._restarts.is_due(app_id):
                return
            if self._restarts.is_spent(app_id):
                deaths, window = self._restarts.deaths(app_id), self._restarts.window_seconds
                await self._apps.fail(app_id, f"{deaths} deaths in {window:g} s; the last: {why}")
                await self._apps.stack.put_down(record)
                return
            if why is not None:
                payload = {"app_id": app_id, "cause": why, **self._restarts.attempt(app_id)}
                self._events.publish("app.restarted", payload, subject=app_id)
            try:
                await self._apps.repair(app_id)
            except (Unavailable, NotFound) as error:
                log.info("app %s waits: %s", app_id, error)
            except AimaError as error:
                log.warning("app %s: %s", app_id, error)
                self._restarts.note(app_id, None)

    async def _measure(self, running: list[Seen]) -> None:
        kept: dict[str, Mapping[str, Any]] = {}
        for each in running:
            try:
                seconds, memory, _ = await self._apps.stack.usage(each.id)
            except AimaError:
                continue
            moment, before = time.monotonic(), self._measured.get(each.id)
            self._measured[each.id] = moment, seconds
            cores = None if before is None else max(0.0, (seconds - before[1]) / (moment - before[0]))
            uptime = (datetime.now(UTC) - parse(each.started_at)).total_seconds() if each.started_at else 0.0
            kept[each.id] = {"cpu_cores": cores, "memory_bytes": memory, "uptime_seconds": round(max(0.0, uptime), 1)}
        self._measured = {id: known for id, known in self._measured.items() if id in kept}
        self._apps.usage = kept


def _why(ended: list[Seen], absent: list[str]) -> str | None:
    """What happened to its containers, in words; None where nothing did but AIMA's own end."""
    if ended:
        memory = " for want of memory" if ended[0].out_of_memory else ""
        return f"{ended[0].name.rpartition('--')[2]} ended with {ended[0].exit_code}{memory}"
    return f"{absent[0].rpartition('--')[2]} was not there" if absent else None
