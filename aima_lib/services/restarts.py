"""When a service that died may start again, and when it has died too often: pure bookkeeping over a clock."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

LONGEST_DELAY = 30.0


@dataclass
class _History:
    deaths: list[float] = field(default_factory=list)
    noted: deque[str] = field(default_factory=lambda: deque(maxlen=16))
    due: float = 0.0
    delay: float = 0.0


class Restarts:
    """Backoff of 1, 2, 4 … seconds; spent after `limit` deaths within the window."""

    def __init__(self, limit: int, window_seconds: float) -> None:
        self._limit, self.window_seconds = limit, window_seconds
        self._histories: dict[str, _History] = {}

    def note(self, service_id: str, start: str | None) -> None:
        """Count a death: of the instance that started at `start`, once however often it is noted; None is a start that came to nothing."""
        history = self._histories.setdefault(service_id, _History())
        if start in history.noted:
            return
        if start is not None:
            history.noted.append(start)
        history.deaths.append(time.monotonic())
        history.delay = min(2.0 ** (self.deaths(service_id) - 1), LONGEST_DELAY)
        history.due = time.monotonic() + history.delay

    def deaths(self, service_id: str) -> int:
        """How often it died within the window."""
        history = self._histories.get(service_id)
        if history is None:
            return 0
        history.deaths = [moment for moment in history.deaths if time.monotonic() - moment <= self.window_seconds]
        return len(history.deaths)

    def is_spent(self, service_id: str) -> bool:
        """Whether it died too often to be started again."""
        return self.deaths(service_id) >= self._limit

    def is_due(self, service_id: str) -> bool:
        """Whether something is to be done now: it may start again, or it is spent and must be said to have failed."""
        history = self._histories.get(service_id)
        return history is None or self.is_spent(service_id) or time.monotonic() >= history.due

    def attempt(self, service_id: str) -> dict[str, Any]:
        """Which restart this is, and how long it was waited for."""
        history = self._histories.get(service_id, _History())
        return {"attempt": max(1, len(history.deaths)), "delay_seconds": history.delay}

    def forget(self, service_id: str) -> None:
        """Begin anew: somebody mended it, or it is gone."""
        self._histories.pop(service_id, None)
