"""A sum over the last minute or hour, in bounded memory: pure bookkeeping over a clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

SLOTS = 60


class Window:
    """Amounts of the last `seconds`, in slots of a sixtieth of that. `at` is the caller's clock, which must not go back.

    An amount is kept until `seconds` after its slot's end: so it is let go up to a sixtieth late, and never early.
    """

    __slots__ = ("_slots", "_total", "_width", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds, self._width = seconds, seconds / SLOTS
        self._total: float = 0
        self._slots: deque[list[float]] = deque()  # [end, amount], oldest first

    def add(self, amount: float, at: float) -> None:
        """Count `amount` now. A slot begins with the first amount after the one before has ended."""
        if self._slots and at < self._slots[-1][0]:
            self._slots[-1][1] += amount
        else:
            self.used(at)
            self._slots.append([at + self._width, amount])
        self._total += amount

    def used(self, at: float) -> float:
        """What counts now."""
        slots, oldest = self._slots, at - self.seconds
        while slots and slots[0][0] <= oldest:
            self._total -= slots.popleft()[1]
        if not slots:
            self._total = 0  # sums of fractions would leave a crumb behind
        return self._total

    def wait(self, amount: float, limit: float, at: float) -> float | None:
        """Seconds until `amount` more is within `limit`, 0 when it is now; None when it never will be."""
        if amount > limit:
            return None
        left, then = self.used(at), at
        for end, held in self._slots:
            if left + amount <= limit:
                break
            left, then = left - held, end + self.seconds
        return then - at

    def slots(self, at: float) -> list[tuple[float, float]]:
        """How long ago each slot ended (negative for one that has not) and its amount, oldest first."""
        self.used(at)
        return [(at - end, amount) for end, amount in self._slots]

    def restore(self, slots: Iterable[tuple[float, float]], at: float) -> None:
        """Take up what `slots` told an empty window. A slot from the future, by a clock that was set back, ends with the present one."""
        for ago, amount in sorted(slots, reverse=True):
            self._slots.append([min(at - ago, at + self._width), amount])
            self._total += amount
        self.used(at)
