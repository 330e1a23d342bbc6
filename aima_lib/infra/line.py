"""Who goes next where only so many go at once: the more urgent before the less, and of the same urgency the older."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import anyio

COURTESY_SECONDS = 2.0
_numbers = itertools.count()


@dataclass(eq=False, slots=True, weakref_slot=True)
class Place:
    """One that goes when it is its turn. `since`: when it was asked for, as records say it, so that a host's end does not change it."""

    priority: int = 0
    since: str = ""
    number: int = field(default_factory=lambda: next(_numbers))
    until: float = 0.0

    def precedes(self, other: Place) -> bool:
        """Whether it goes before the other."""
        return (-self.priority, self.since, self.number) < (-other.priority, other.since, other.number)


class Line:
    """At most `limit` go at once. Nobody who goes is stopped for one that is more urgent."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._going: list[Place] = []
        self._waiting: list[Place] = []
        self._coming: set[Place] = set()
        self._news = anyio.Event()

    @property
    def urgency(self) -> int:
        """The highest priority of those that go."""
        return max((place.priority for place in self._going), default=0)

    @asynccontextmanager
    async def turn(self, place: Place, hear: Callable[[int], None] = lambda _: None) -> AsyncIterator[None]:
        """Wait until it is this one's turn, and go for as long as the block lasts. `hear` is told how many are ahead, when that changes."""
        await self._wait(place, hear)
        self._going.append(place)
        try:
            yield
        finally:
            self._going.remove(place)
            self._tell()

    @contextmanager
    def coming(self, place: Place) -> Iterator[None]:
        """This one is about to stand in line: for a moment nobody takes the turn that would be its own."""
        place.until = time.monotonic() + COURTESY_SECONDS
        self._coming.add(place)
        try:
            yield
        finally:
            self._coming.discard(place)
            self._tell()

    def hasten(self, place: Place, priority: int) -> None:
        """Somebody wants it more urgently than those who asked before."""
        if priority > place.priority:
            place.priority = priority
            self._tell()

    async def _wait(self, place: Place, hear: Callable[[int], None]) -> None:
        told = 0
        self._waiting.append(place)
        try:
            while not self._may_go(place):
                ahead = len(self._going) + sum(other.precedes(place) for other in self._waiting)
                if ahead != told:
                    told = ahead
                    hear(ahead)
                news = self._news
                with anyio.move_on_after(self._patience()):
                    await news.wait()
        finally:
            self._waiting.remove(place)
            self._tell()

    def _may_go(self, place: Place) -> bool:
        first = {other for other in (*self._waiting, *self._soon()) if other.precedes(place)}
        return len(self._going) + len(first) < self._limit

    def _soon(self) -> set[Place]:
        moment = time.monotonic()
        return {other for other in self._coming.difference(self._going) if other.until > moment}

    def _patience(self) -> float | None:
        """Seconds until one that was to come has let its moment pass."""
        return min((other.until - time.monotonic() for other in self._soon()), default=None)

    def _tell(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()
