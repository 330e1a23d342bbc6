"""Whether an endpoint may be asked: after failures it is left alone for a while, then tried with one request. Bookkeeping over a clock."""

from __future__ import annotations

import math

FAILURES = 3
FIRST_SECONDS, LONGEST_SECONDS = 0.5, 30.0


class Breaker:
    """Closed, until three failures in a row, or one connection that could not be had; open for 0.5, 1, 2 … 30 s; then half open: one trial.

    `at` is the caller's clock, in seconds.
    """

    __slots__ = ("_delay", "_failures", "_until")

    def __init__(self) -> None:
        self._failures, self._delay, self._until = 0, 0.0, -math.inf

    @property
    def is_closed(self) -> bool:
        """Whether nothing is held against it."""
        return self._until == -math.inf

    def wait(self, at: float) -> float:
        """Seconds until it may be asked: 0 is now, infinity while a trial is under way."""
        return 0.0 if self.is_closed else max(0.0, self._until - at)

    def begun(self) -> None:
        """A request is sent: where it is half open, that is the trial, and no other goes meanwhile."""
        if not self.is_closed:
            self._until = math.inf

    def succeeded(self) -> None:
        """It answered."""
        self._failures, self._delay, self._until = 0, 0.0, -math.inf

    def spared(self, at: float) -> None:
        """The trial said nothing: its caller left."""
        if self._until == math.inf:
            self._until = at

    def failed(self, at: float, *, unreachable: bool = False) -> None:
        """It did not answer."""
        self._failures += 1
        if unreachable or self._failures >= FAILURES or not self.is_closed:
            self._delay = min(LONGEST_SECONDS, self._delay * 2 or FIRST_SECONDS)
            self._until = at + self._delay
