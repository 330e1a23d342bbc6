"""What probes of engines say: bookkeeping over a clock."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable

from aima_lib.errors import FailedPrecondition, Unavailable
from aima_lib.infra.store import Document

MISSES = 3  # probes without an answer before an engine counts as unhealthy: a long prompt may keep it busy


class Probes:
    """When each engine is to be probed, and how often it did not answer."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._missed: defaultdict[str, int] = defaultdict(int)
        self._last: dict[str, float] = {}
        self._answered: dict[str, float] = {}
        self._under_way: set[str] = set()

    def is_due(self, id: str) -> bool:
        """Whether to probe it now."""
        return id not in self._under_way and time.monotonic() - self._last.get(id, 0.0) >= self._seconds

    async def judge(self, instance: Document, ask: Callable[[], Awaitable[None]]) -> str:
        """Its health after one probe more."""
        id = instance["id"]
        self._under_way.add(id)
        try:
            await ask()
            self._missed[id], self._answered[id] = 0, time.monotonic()
        except (Unavailable, FailedPrecondition):
            self._missed[id] += 1
            self._answered.setdefault(id, time.monotonic())
        finally:
            self._under_way.discard(id)
            self._last[id] = time.monotonic()
        return "healthy" if not self._missed[id] else "unhealthy" if self._missed[id] >= MISSES else str(instance["health"])

    def silent_seconds(self, id: str) -> float:
        """How long ago it answered last."""
        return time.monotonic() - self._answered[id]

    def forget(self, id: str) -> None:
        """It is another process now, or none."""
        self._missed.pop(id, None)
        self._answered.pop(id, None)
