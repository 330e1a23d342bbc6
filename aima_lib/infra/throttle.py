"""How fast a home may fetch, and over how many connections: what all its downloads share."""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager

import anyio

from aima_lib.infra.line import Line, Place

BURST_SECONDS = 0.25
LEFT = 0.25  # of the rate, for all who are less urgent than one that is fetching


class Throttle:
    """At most so many bytes a second (None: as many as come) over at most so many connections at once, the more urgent first."""

    def __init__(self, bytes_per_second: float | None = None, connections: int = 12) -> None:
        self._rate, self._lanes = bytes_per_second, Line(connections)
        self.threads = anyio.CapacityLimiter(connections)  # their own: slow links hold them, and others need some too
        self._free = self._free_behind = 0.0

    def connection(self, place: Place) -> AbstractAsyncContextManager[None]:
        """One of the connections."""
        return self._lanes.turn(place)

    def at_once(self, most: int) -> int:
        """How many bytes to ask for at a time, of at most so many."""
        return most if self._rate is None else max(1, min(most, int(self._rate * BURST_SECONDS)))

    async def let_pass(self, count: int, place: Place) -> float:
        """Wait until so many bytes more are within the rate; returns the seconds that took."""
        if self._rate is None:
            return 0
        moment = time.monotonic()
        due = self._free = max(self._free, moment - BURST_SECONDS) + count / self._rate
        if place.priority < self._lanes.urgency:
            self._free_behind = max(self._free_behind, moment - BURST_SECONDS) + count / (self._rate * LEFT)
            due = max(due, self._free_behind)
        if due > moment:
            await anyio.sleep(due - moment)
        return time.monotonic() - moment
