"""How fast a home may fetch, and over how many connections: what all its downloads share."""

from __future__ import annotations

import time

import anyio

BURST_SECONDS = 0.25


class Throttle:
    """At most so many bytes a second (None: as many as come) over at most so many connections at once."""

    def __init__(self, bytes_per_second: float | None = None, connections: int = 12) -> None:
        self._rate, self._connections = bytes_per_second, connections
        self._lanes: anyio.CapacityLimiter | None = None
        self._free = 0.0

    @property
    def lanes(self) -> anyio.CapacityLimiter:
        """One token a connection."""
        if self._lanes is None:
            self._lanes = anyio.CapacityLimiter(self._connections)
        return self._lanes

    async def let_pass(self, count: int) -> None:
        """Wait until so many bytes more are within the rate."""
        if self._rate is None:
            return
        moment = time.monotonic()
        self._free = max(self._free, moment - BURST_SECONDS) + count / self._rate
        if self._free > moment:
            await anyio.sleep(self._free - moment)
