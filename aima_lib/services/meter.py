"""What a service did in the last minute, counted as it happens."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, NamedTuple

WINDOW_SECONDS = 60.0
LEAST_MEASURED, SLOW = 20, 0.5


class Sample(NamedTuple):
    """One request that has ended."""

    moment: float
    ttft_ms: float | None
    tokens_per_second: float | None
    failed: bool


class Meter:
    """Requests of one service. What was not measured in the window is None."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=10_000)
        self._since = time.monotonic()
        self._recent = self._usual = 0.0
        self._measured = 0
        self.open = 0

    @property
    def speeds(self) -> tuple[float, float]:
        """Tokens a second of its last requests, and what it has been used to: averages that forget, the one soon and the other late."""
        return self._recent, self._usual

    @property
    def is_slow(self) -> bool:
        """Whether it answers at less than half the speed it is used to."""
        return self._measured >= LEAST_MEASURED and self._recent < self._usual * SLOW

    def record(self, ttft_ms: float | None, tokens_per_second: float | None, failed: bool) -> None:
        """Count a request that has ended."""
        if tokens_per_second is not None:
            self._measured += 1
            self._recent += (tokens_per_second - self._recent) * max(1 / self._measured, 0.2)
            self._usual += (tokens_per_second - self._usual) * max(1 / self._measured, 0.01)
        self._samples.append(Sample(time.monotonic(), ttft_ms, tokens_per_second, failed))

    def ttft_since(self, moment: float, least: int) -> float | None:
        """The median time to first token of the requests that ended after a moment (monotonic), in ms; None of fewer than `least`."""
        found: list[float] = []
        for sample in reversed(self._samples):
            if sample.moment < moment:
                break
            if sample.ttft_ms is not None:
                found.append(sample.ttft_ms)
        return _quantile(sorted(found), 0.50) if len(found) >= least else None

    def read(self) -> dict[str, Any]:
        """The metrics of a service."""
        moment = time.monotonic()
        recent = [sample for sample in self._samples if moment - sample.moment <= WINDOW_SECONDS]
        since = recent[0].moment if len(recent) == self._samples.maxlen else self._since  # of more requests only the last are known
        first = sorted(sample.ttft_ms for sample in recent if sample.ttft_ms is not None)
        speeds = [sample.tokens_per_second for sample in recent if sample.tokens_per_second is not None]
        return {
            "requests_per_second": round(len(recent) / min(WINDOW_SECONDS, max(moment - since, 1.0)), 3),
            "ttft_p50_ms": _quantile(first, 0.50),
            "ttft_p99_ms": _quantile(first, 0.99),
            "tokens_per_second": round(sum(speeds) / len(speeds), 2) if speeds else None,
            "error_rate": round(sum(sample.failed for sample in recent) / len(recent), 4) if recent else None,
            "queue_depth": self.open,
            "window_seconds": WINDOW_SECONDS,
        }


def _quantile(ordered: list[float], part: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else None
