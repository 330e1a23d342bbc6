"""Who is next: callers take turns, so that one with a thousand requests waits no less for one with a single request than the other way.

A caller of a higher priority takes its place before those of a lower one, but not for ever: between two turns of one of these it goes AHEAD
times at most.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Generic, TypeVar

T = TypeVar("T")
AHEAD = 4


class _Line(Generic[T]):
    """What one caller has waiting, and how often others have stepped before it since its last turn."""

    __slots__ = ("items", "passed", "rank")

    def __init__(self, rank: int) -> None:
        self.items: deque[T] = deque()
        self.rank = rank
        self.passed: Counter[str] = Counter()


class FairQueue(Generic[T]):
    """Requests by caller. A caller's next request has at most one request of each other caller before it, or AHEAD of one with a higher
    priority."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line[T]] = {}
        self._order: deque[str] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def of(self, caller: str) -> int:
        """How many of a caller's requests wait."""
        line = self._lines.get(caller)
        return len(line.items) if line else 0

    @property
    def callers(self) -> int:
        """How many callers wait."""
        return len(self._lines)

    def put(self, caller: str, item: T, *, rank: int = 0, first: bool = False) -> None:
        """Let a request wait; `first` for one whose turn had come already. The caller of a higher rank has the higher priority."""
        line = self._lines.get(caller)
        is_new = line is None
        if line is None:
            line = self._lines[caller] = _Line(rank)
        if first:
            line.items.appendleft(item)
            if not is_new:
                self._order.remove(caller)
            self._order.appendleft(caller)
        else:
            line.items.append(item)
            if is_new:
                self._place(caller, line)
        self._count += 1

    def head(self) -> T:
        """The next request, which stays. Raises IndexError when nobody waits."""
        if not self._order:
            raise IndexError("nobody waits")
        return self._lines[self._order[0]].items[0]

    def pop(self) -> T:
        """The next request; its caller goes to the end. Raises IndexError when nobody waits."""
        item = self.head()
        caller = self._order.popleft()
        line = self._lines[caller]
        line.items.popleft()
        self._count -= 1
        if line.items:
            line.passed.clear()
            self._place(caller, line)
        else:
            del self._lines[caller]
        return item

    def remove(self, caller: str, item: T) -> bool:
        """Forget a request; says whether it waited still."""
        line = self._lines.get(caller)
        if line is None or item not in line.items:
            return False
        line.items.remove(item)
        self._count -= 1
        if not line.items:
            del self._lines[caller]
            self._order.remove(caller)
        return True

    def clear(self) -> list[T]:
        """Every request that waited, in the order they would have gone."""
        found = []
        while self._count:
            found.append(self.pop())
        return found

    def _place(self, caller: str, line: _Line[T]) -> None:
        """Behind everybody, but before those of a lower priority that it has not stepped before too often."""
        place = len(self._order)
        for other in reversed(self._order):
            behind = self._lines[other]
            if behind.rank >= line.rank or behind.passed[caller] >= AHEAD - 1:
                break
            behind.passed[caller] += 1
            place -= 1
        self._order.insert(place, caller)
