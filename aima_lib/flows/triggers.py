"""Runs that begin by themselves: by the clock, and on events. Kept by the host's loop, and picked up by the next host where this one stops.

Each moment and each event begins a run under a key of its own, and only then is it written down how far the trigger has come: a crash
between the two begins no second run. An event is never missed, as none happens without a host; for moments the schedule says what is
made up for.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import anyio
from anyio.abc import TaskStatus

from aima_lib.errors import AimaError
from aima_lib.flows import clockwork
from aima_lib.flows.expression import evaluate, events, truth
from aima_lib.flows.journal import Journal
from aima_lib.flows.reference import resolve
from aima_lib.flows.shelf import Edition, Shelf
from aima_lib.gateway import Gateway
from aima_lib.infra import lineage
from aima_lib.infra.clock import parse, stamp
from aima_lib.infra.progress import silent

CLOCK, LOG = "schedule", "events"  # places of cursors
LONGEST_SLEEP = 3600.0
NOTED_SECONDS = 5.0
MOST_AT_ONCE = 16  # runs that the triggers of one pipeline have under way; further events wait
MOST_OF_ONE, KEPT = 1000, 4096  # runs of one pipeline that belong to one thing; such things that are remembered
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Watched:
    """A pipeline that begins by itself."""

    id: str
    edition: Edition

    @property
    def schedule(self) -> Mapping[str, Any] | None:
        found: Mapping[str, Any] | None = self.edition.pipeline.config.get("schedule")
        return found

    @property
    def triggers(self) -> list[Mapping[str, Any]]:
        return list(self.edition.pipeline.config.get("triggers", ()))


class Triggers:
    """The schedules and triggers of all pipelines of a home."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway, self._services = gateway, gateway.services
        self._shelf, self._journal = Shelf(gateway.services.store, gateway.registry), Journal(gateway.services.store)
        self._watched: list[_Watched] = []
        self._cursors: dict[tuple[str, str], str] = {}
        self._changed = anyio.Event()
        self._begun: dict[str, list[str]] = {}
        self._of_one: Counter[tuple[str, str]] = Counter()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Begin runs until cancelled."""
        leave = self._services.events.subscribe(self._hear)
        try:
            self._cursors = self._journal.cursors()
            await self._look()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._keep_time)
                tasks.start_soon(self._read_log)
                task_status.started()
        finally:
            leave()

    def _hear(self, event: Mapping[str, Any]) -> None:
        if event["type"] in ("pipeline.created", "pipeline.deleted", "system.thawed"):
            changed, self._changed = self._changed, anyio.Event()
            changed.set()

    async def _look(self) -> None:
        """Which pipelines begin by themselves now. One that is new begins from now on."""
        found = [_Watched(id, edition) for id, edition in self._shelf.newest() if edition.creator is not None]
        self._watched = [one for one in found if one.schedule is not None or one.triggers]
        begins = {CLOCK: stamp(datetime.now(UTC)), LOG: str(self._services.events.last)}
        wanted = {(one.id, place) for one in self._watched for place, has in ((CLOCK, one.schedule), (LOG, one.triggers)) if has}
        for id, place in wanted - set(self._cursors):
            await self._move(id, place, begins[place])
        for id, place in set(self._cursors) - wanted:
            del self._cursors[id, place]
            await self._journal.move(id, {}, [place])

    # By the clock

    async def _keep_time(self) -> None:
        while True:
            changed = self._changed
            await self._look()
            now = datetime.now(UTC)
            if self._services.freeze.record is None:
                for one in self._watched:
                    if one.schedule is not None:
                        await self._tick(one, one.schedule, now)
            with anyio.move_on_after(self._until_next(now)):
                await changed.wait()

    async def _tick(self, one: _Watched, schedule: Mapping[str, Any], now: datetime) -> None:
        for moment in clockwork.due(schedule, parse(self._cursors[one.id, CLOCK]), now):
            await self._begin(one, f"{one.id}.at.{moment:%Y%m%dt%H%M%Sz}", schedule.get("input", {}))
            await self._move(one.id, CLOCK, stamp(moment))

    def _until_next(self, now: datetime) -> float:
        """Seconds until some schedule is due."""
        moments = [clockwork.upcoming(one.schedule, now) for one in self._watched if one.schedule is not None]
        return max(0.0, min([LONGEST_SLEEP, *((moment - datetime.now(UTC)).total_seconds() for moment in moments)]))

    # On events

    async def _read_log(self) -> None:
        noted = anyio.current_time()
        while True:
            cursors = [int(cursor) for (_, place), cursor in self._cursors.items() if place == LOG]
            if not cursors:
                await self._changed.wait()
                await self._look()
                continue
            async for event in self._services.events.follow(min(cursors)):
                while self._services.freeze.record is not None:
                    await self._changed.wait()
                for one in self._watched:
                    if one.triggers and event["type"] != "lagged":
                        await self._consider(one, event)
                if anyio.current_time() - noted > NOTED_SECONDS:
                    noted = anyio.current_time()
                    await self._note()

    async def _consider(self, one: _Watched, event: Mapping[str, Any]) -> None:
        if event["seq"] <= int(self._cursors.get((one.id, LOG), event["seq"])):
            return
        for place, given in self._asked(one, event):
            if self._runs_in_circles(one.id, event):
                continue
            await self._room(one.id)
            if (run_id := await self._begin(one, f"{one.id}.on.{event['seq']}.{place}", given, event)) is not None:
                self._begun[one.id].append(run_id)
            await self._move(one.id, LOG, str(event["seq"] - 1))  # others of its triggers may ask for the same event
        self._cursors[one.id, LOG] = str(event["seq"])

    def _asked(self, one: _Watched, event: Mapping[str, Any]) -> Iterator[tuple[int, Any]]:
        """The triggers that this event sets off, and the input of each run. A pipeline's own runs set off no other of it."""
        if event["payload"].get("pipeline_id") == one.id:
            return
        for place, trigger in enumerate(one.triggers):
            if event["type"] not in events(trigger["when"]):
                continue
            try:
                if truth(evaluate(trigger["when"], {"event": event})):
                    yield place, resolve(trigger.get("input", {}), {"event": event})
            except AimaError as error:
                log.error("trigger %s of %s, on event %s: %s", place, one.id, event["seq"], error)

    def _runs_in_circles(self, id: str, event: Mapping[str, Any]) -> bool:
        """Whether so much has come of one thing that the pipeline must be setting off itself, by way of others."""
        place = id, str(event["correlation_id"])
        self._of_one[place] += 1
        if self._of_one[place] == MOST_OF_ONE:
            log.error("%s was set off %d times by what came of %s, and is not set off by it any more", id, MOST_OF_ONE, place[1])
        if len(self._of_one) > KEPT:
            del self._of_one[next(iter(self._of_one))]
        return self._of_one[place] >= MOST_OF_ONE

    async def _room(self, id: str) -> None:
        """Wait until the triggers of a pipeline have few enough runs under way."""
        begun = self._begun.setdefault(id, [])
        while len(begun) >= MOST_AT_ONCE:
            await self._gateway.runs.follow(begun[0], silent)
            begun.pop(0)

    async def _note(self) -> None:
        """Write down how far the log is read, also where nothing was set off."""
        for (id, place), cursor in list(self._cursors.items()):
            if place == LOG:
                await self._journal.move(id, {LOG: cursor})

    # Both

    async def _begin(self, one: _Watched, key: str, given: Any, event: Mapping[str, Any] | None = None) -> str | None:
        """Begin a run as whoever made the pipeline; returns its id. Where that cannot be done the host's log says why."""
        creator = one.edition.creator
        assert creator is not None
        try:
            if self._services.keys.deadline(creator) <= anyio.current_time():
                raise self._services.keys.ended(creator)
            with lineage.after(event):
                run = await self._gateway.start("pipeline.run", {"pipeline_id": one.id, "input": given}, caller=creator, key=key)
            return str(run["id"])
        except AimaError as error:
            log.error("%s was to run by itself (%s): %s", one.id, key, error)
            return None

    async def _move(self, id: str, place: str, cursor: str) -> None:
        self._cursors[id, place] = cursor
        await self._journal.move(id, {place: cursor})
