"""Server-sent events: a stream that starts late enough to fail with a status, beats while idle, and ends when its client does."""

from __future__ import annotations

import math
from typing import Any

import anyio

from aima_mcp.faces import strict_json
from aima_mcp.faces.http.exchange import Exchange

MEDIA_TYPE = "text/event-stream"
HEADERS = {"content-type": MEDIA_TYPE, "cache-control": "no-store", "x-accel-buffering": "no"}
HEARTBEAT_SECONDS = 15.0
PATIENCE_SECONDS = 1.0


class EventStream:
    """One stream of events. Starts with its first event, or after a second without one."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._last = anyio.current_time()

    async def event(self, kind: str, data: Any, id: int | None = None) -> None:
        """Send one event; `data` becomes one line of JSON."""
        head = b"" if id is None else b"id: %d\n" % id
        await self._write(head + b"event: " + kind.encode() + b"\ndata: " + strict_json.write(data) + b"\n\n")

    async def open(self) -> None:
        """Send the head now: whoever listens knows from here on that nothing is missed."""
        await self._write(b": open\n\n")

    async def close(self) -> None:
        """The end."""
        if not self._exchange.started:
            await self._exchange.start(200, HEADERS)
        await self._exchange.write(b"", more=False)

    async def beat(self) -> None:
        """Comments while nothing happens, so that no proxy and no client takes the stream for dead. Runs until cancelled."""
        while True:
            rest = (HEARTBEAT_SECONDS if self._exchange.started else PATIENCE_SECONDS) - (anyio.current_time() - self._last)
            if rest <= 0:
                await self._write(b": still here\n\n")
            else:
                await anyio.sleep(math.nextafter(rest, math.inf))

    async def _write(self, data: bytes) -> None:
        self._last = anyio.current_time()
        if not self._exchange.started:
            await self._exchange.start(200, HEADERS)
        await self._exchange.write(data)
