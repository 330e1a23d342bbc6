"""Who is next: callers take turns, so that one with a thousand requests waits no less for one with a single request than the other way."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Requests by caller. A caller's next request has at most one request of each other caller before it."""

    def __init__(self) -> None:
        self._callers: OrderedDict[str, deque[T]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def of(self, caller: str) -> int:
        """How many of a caller's requests wait."""
        return len(self._callers.get(caller, ()))

    @property
    def callers(self) -> int:
        """How many callers wait."""
        return len(self._callers)

    def put(self, caller: str, item: T, *, first: bool = False) -> None:
        """Let a request wait; `first` for one whose turn had come already."""
        line = self._callers.setdefault(caller, deque())
        if first:
            line.appendleft(item)
            self._callers.move_to_end(caller, last=False)
        else:
            line.append(item)
        self._count += 1

    def pop(self) -> T:
        """The next request; its caller goes to the end. Raises IndexError when nobody waits."""
        if not self._callers:
            raise IndexError("nobody waits")
        caller, line = next(iter(self._callers.items()))
        item = line.popleft()
        self._count -= 1
        if line:
            self._callers.move_to_end(caller)
        else:
            del self._callers[caller]
        return item

    def remove(self, caller: str, item: T) -> bool:
        """Forget a request; says whether it waited still."""
        line = self._callers.get(caller)
        if line is None or item not in line:
            return False
        line.remove(item)
        self._count -= 1
        if not line:
            del self._callers[caller]
        return True

    def clear(self) -> list[T]:
        """Every request that waited, in the order they would have gone."""
        found = []
        while self._count:
            found.append(self.pop())
        return found
