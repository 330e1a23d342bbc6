"""Whether the containers of apps that run are well: by what Docker's own check of one says, else by the template's health probe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import anyio

from aima_lib.infra.clock import parse
from aima_lib.infra.store import Document
from aima_lib.services.app_stack import START_SECONDS, Seen, Stack
from aima_lib.services.app_template import container_of

HEALTHY, UNHEALTHY, UNKNOWN = "healthy", "unhealthy", "unknown"
FAILS = 3  # probes that fail one after another, before one is called unhealthy


@dataclass(slots=True)
class _Case:
    """What is known of one start of one container."""

    status: str = UNKNOWN
    reason: str | None = None
    was_well: bool = False
    fails: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """A container that became unhealthy, or well again."""

    container: str
    before: str
    now: str
    reason: str | None


class AppHealth:
    """Judges containers; how each is stands in `known`, by Docker's id: its health, and why it is not healthy."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._cases: dict[str, _Case] = {}
        self.known: dict[str, tuple[str, str | None]] = {}

    async def probe(self, records: list[Document], seen: Mapping[str, Seen]) -> None:
        """Ask those that Docker has no check for where their templates say."""
        async with anyio.create_task_group() as tasks:
            for record in records:
                for name, each in _running(record, seen):
                    if each.health is None and "health" in record["template"]["containers"][name]:
                        tasks.start_soon(self._ask, record, name, each)

    async def _ask(self, record: Document, name: str, each: Seen) -> None:
        self._take(each, await self._stack.ails(record, name))

    def _take(self, each: Seen, why: str | None) -> None:
        case = self._case(each)
        case.fails = 0 if why is None else case.fails + 1
        if why is None:
            case.status, case.reason, case.was_well = HEALTHY, None, True
        elif case.fails >= FAILS:
            case.status, case.reason = UNHEALTHY, why

    def judge(self, record: Document, seen: Mapping[str, Seen]) -> tuple[list[Turn], list[tuple[Seen, str]]]:
        """Which of an app's containers turned since they were judged last, and which are unhealthy now, with the reason."""
        turns, ill = [], []
        for name, each in _running(record, seen):
            case, (before, _) = self._case(each), self.known.get(each.id, (UNKNOWN, None))
            if each.health is not None:
                self._hear(case, each, record["template"]["containers"][name])
            self.known[each.id] = case.status, case.reason
            if case.status != before and UNHEALTHY in (case.status, before):
                turns.append(Turn(name, before, case.status, case.reason))
            if case.status == UNHEALTHY:
                ill.append((each, f"{name} is unhealthy: {case.reason}"))
        return turns, ill

    @staticmethod
    def _hear(case: _Case, each: Seen, template: Mapping[str, Any]) -> None:
        """Docker's word. One that has not been well yet has the time that its template gives it: its image's check knows of none."""
        limit = (template.get("health") or {}).get("start_seconds", START_SECONDS)
        status = each.health if each.health in (HEALTHY, UNHEALTHY) else UNKNOWN
        if status == UNHEALTHY and not case.was_well and _age(each) < limit:
            status = UNKNOWN
        case.status, case.reason = status, each.ailment if status == UNHEALTHY else None
        case.was_well = case.was_well or status == HEALTHY

    def is_well(self, record: Document, seen: Mapping[str, Seen]) -> bool:
        """Whether all of an app's containers run, and none is known to be other than well."""
        running = _running(record, seen)
        return len(running) == len(record["template"]["containers"]) and all(self._case(each).status != UNHEALTHY for _, each in running)

    def keep(self, seen: Mapping[str, Seen]) -> None:
        """Forget all but these."""
        starts, ids = {_start(each) for each in seen.values()}, {each.id for each in seen.values()}
        self._cases = {start: case for start, case in self._cases.items() if start in starts}
        for id in self.known.keys() - ids:
            del self.known[id]

    def _case(self, each: Seen) -> _Case:
        return self._cases.setdefault(_start(each), _Case())


def _running(record: Document, seen: Mapping[str, Seen]) -> list[tuple[str, Seen]]:
    named = [(name, seen.get(container_of(record["id"], name))) for name in record["template"]["containers"]]
    return [(name, each) for name, each in named if each is not None and each.runs]


def _start(each: Seen) -> str:
    return f"{each.id} {each.started_at}"


def _age(each: Seen) -> float:
    return (datetime.now(UTC) - parse(each.started_at)).total_seconds() if each.started_at else 0.0
