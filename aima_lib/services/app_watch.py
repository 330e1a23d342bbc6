"""Apps kept as they are wanted, for as long as the host lives: what ends is started again, what was left half done is finished."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus

from aima_lib.errors import AimaError, DeadlineExceeded, NotFound, Unavailable
from aima_lib.infra import lineage
from aima_lib.infra.clock import parse
from aima_lib.infra.docker import Docker, Happening
from aima_lib.infra.events import Events
from aima_lib.infra.lineage import Notice
from aima_lib.infra.store import Document, Store
from aima_lib.services.app import AppService
from aima_lib.services.app_health import UNHEALTHY, AppHealth
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
        limit, self._probe_seconds = int(limits["restart_limit"]), float(limits["probe_seconds"])
        self._restarts = Restarts(limit, float(limits["restart_window_seconds"]))
        self._relapses = Restarts(limit, math.inf)  # of one that runs and is not well; forgotten when it has been well for a window
        self._well_since: dict[str, float] = {}
        self._hindrances: dict[str, str] = {}  # by app: why it could not be brought up
        self._health = AppHealth(apps.stack)
        self._causes: dict[str, tuple[float, Notice]] = {}  # by app: what was told last that went wrong with it, and when
        self._store, self._events, self._docker, self._apps = store, events, docker, apps
        self._news = anyio.Event()
        self._told: dict[str, float] = {}  # when it was last said of a container that it was out of memory
        self._measured: dict[str, tuple[float, float]] = {}  # by container: when, and its CPU seconds then
        self._strays_at = self._measure_at = self._probe_at = 0.0
        apps.deaths, apps.forgive, apps.health = self._deaths, self._forgive, self._health.known
        docker.listen(self._hear)

    def _deaths(self, app_id: str) -> int:
        return self._restarts.deaths(app_id) + self._relapses.deaths(app_id)

    def _forgive(self, app_id: str) -> None:
        for kept in (self._well_since, self._causes, self._hindrances):
            kept.pop(app_id, None)
        self._restarts.forget(app_id)
        self._relapses.forget(app_id)

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
        payload = {"app_id": app_id, "container": container, "memory_limit_bytes": limit}
        self._causes[app_id] = moment, self._events.publish("app.oom_detected", payload, subject=app_id)

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
                    with anyio.move_on_after(min(TICK, self._probe_seconds)):
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
            self._health.keep(seen)
            for record in records:
                if not self._apps.locks[record["id"]].locked():
                    self._consider(record, seen, repairs)
            if time.monotonic() - self._probe_at > self._probe_seconds:
                self._probe_at = math.inf  # until this round of it is over
                repairs.start_soon(self._probe, [each for each in records if _is_kept(each)], seen)
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
        ill = self._tell_health(record, seen)
        names = [container_of(app_id, name) for name in record["template"]["containers"]]
        there = [seen[name] for name in names if name in seen]
        ended = [each for each in there if not (each.runs or each.is_paused)]
        paused = [each for each in there if each.is_paused]
        absent = [name for name in names if name not in seen]
        stale = [name for name in names if name in seen and seen[name].generation != str(record["generation"])]
        if not record["desired"]:
            if len(ended) + len(absent) < len(names):
                repairs.start_soon(self._stop, app_id)
            return
        for each in ended:
            if each.started_at:
                self._restarts.note(app_id, f"{each.id} {each.started_at}")
        for each, _ in ill:
            self._relapses.note(app_id, f"{each.id} {each.started_at}")
        lacks = ended or absent or stale or paused or self._lacks_link(record)
        if (lacks or ill) and self._is_due(app_id):
            repairs.start_soon(self._repair, record, _why(ended, absent, paused) or (ill[0][1] if ill else None), ended, ill)

    def _tell_health(self, record: Document, seen: Mapping[str, Seen]) -> list[tuple[Seen, str]]:
        """Say which of its containers turned ill or well; those that are ill, of an app that is wanted."""
        app_id = record["id"]
        turns, ill = self._health.judge(record, seen)
        for turn in turns:
            status = {"old_status": turn.before, "new_status": turn.now, "reason": turn.reason}
            notice = self._events.publish("app.health_changed", {"app_id": app_id, "container": turn.container, **status}, subject=app_id)
            if turn.now == UNHEALTHY:
                self._causes[app_id] = time.monotonic(), notice
        if ill or not self._health.is_well(record, seen):
            self._well_since.pop(app_id, None)
        elif time.monotonic() - self._well_since.setdefault(app_id, time.monotonic()) > self._restarts.window_seconds:
            self._relapses.forget(app_id)
        return ill if record["desired"] else []

    async def _probe(self, records: list[Document], seen: Mapping[str, Seen]) -> None:
        try:
            await self._health.probe(records, seen)
        finally:
            self._probe_at = time.monotonic()

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

    async def _repair(self, seen_record: Document, why: str | None, ended: list[Seen], ill: list[tuple[Seen, str]]) -> None:
        app_id = seen_record["id"]
        async with self._apps.locks[app_id]:
            record = self._store.peek("app", app_id)
            if record is None or record["updated_at"] != seen_record["updated_at"] or not self._is_due(app_id):
                return
            with lineage.after(self._cause(app_id)):
                if too_often := self._too_often(app_id):
                    last = self._hindrances.get(app_id) or f"{why}{await self._words(ended or [each for each, _ in ill])}"
                    await self._apps.fail(app_id, f"{too_often}; the last: {last}")
                    await self._apps.stack.put_down(record)
                    return
                if why is not None:
                    counts = self._relapses if ill and not ended else self._restarts
                    payload = {"app_id": app_id, "cause": why, **counts.attempt(app_id)}
                    self._causes[app_id] = time.monotonic(), self._events.publish("app.restarted", payload, subject=app_id)
                await self._mend(record, ill)

    async def _words(self, seen: list[Seen]) -> str:
        return await self._apps.stack.words(seen[0].id) if seen else ""

    def _cause(self, app_id: str) -> Notice | None:
        """What an app's end came of, as far as that was told lately."""
        moment, notice = self._causes.get(app_id, (-math.inf, None))
        return notice if time.monotonic() - moment < self._restarts.window_seconds else None

    def _is_due(self, app_id: str) -> bool:
        return self._restarts.is_due(app_id) and self._relapses.is_due(app_id)

    def _too_often(self, app_id: str) -> str | None:
        """Why it is not tried again; None where it is."""
        window = self._restarts.window_seconds
        if self._restarts.is_spent(app_id):
            return f"{self._restarts.deaths(app_id)} deaths in {window:g} s"
        if self._relapses.is_spent(app_id):
            return f"it ran {self._relapses.deaths(app_id)} times without being well for {window:g} s"
        return None

    async def _mend(self, record: Document, ill: list[tuple[Seen, str]]) -> None:
        app_id = record["id"]
        try:
            for each, _ in ill:
                await self._apps.stack.end(record, each)
            await self._apps.repair(app_id)
            self._hindrances.pop(app_id, None)
        except (Unavailable, NotFound) as error:
            log.info("app %s waits: %s", app_id, error)
        except DeadlineExceeded as error:  # it runs, and is not well in time
            log.warning("app %s: %s", app_id, error)
            self._relapses.note(app_id, None)
            self._hindrances[app_id] = str(error)
        except AimaError as error:
            log.warning("app %s: %s", app_id, error)
            self._restarts.note(app_id, None)
            self._hindrances[app_id] = str(error)

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


def _is_kept(record: Document) -> bool:
    return bool(record["phase"] == "installed" and record["desired"] and not record["error"])


def _why(ended: list[Seen], absent: list[str], paused: list[Seen]) -> str | None:
    """What happened to its containers, in words; None where nothing did but AIMA's own end."""
    if ended:
        memory = " for want of memory" if ended[0].out_of_memory else ""
        return f"{ended[0].container} ended with {ended[0].exit_code}{memory}"
    if absent:
        return f"{absent[0].rpartition('--')[2]} was not there"
    return f"{paused[0].container} was paused" if paused else None
