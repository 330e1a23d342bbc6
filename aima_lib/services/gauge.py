"""How far a fetch is, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

REPORT_SECONDS = 0.5


@dataclass(slots=True)
class Meter:
    """Counts bytes and tells `hear` about twice a second."""

    hear: Callable[[Meter], None] = lambda _: None
    total: int | None = None
    completed: int = 0
    rate: float | None = None
    _seen: tuple[float, int] = field(default_factory=lambda: (time.monotonic(), 0))

    def step(self, count: int) -> None:
        """`count` bytes more (or, negative, lost)."""
        self.completed += count
        moment, before = self._seen
        waited = time.monotonic() - moment
        if waited >= REPORT_SECONDS:
            latest = max(0.0, (self.completed - before) / waited)
            self.rate = latest if self.rate is None else 0.7 * self.rate + 0.3 * latest
            self._seen = (moment + waited, self.completed)
            self.hear(self)

    def resume(self, count: int) -> None:
        """`count` bytes that were there before count as done, and not as speed."""
        self.completed += count
        self._seen = (self._seen[0], self._seen[1] + count)

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to go at the present rate, or None."""
        if self.total is None or not self.rate:
            return None
        return round(max(0, self.total - self.completed) / self.rate, 1)
