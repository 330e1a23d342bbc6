"""Server-sent events: a stream that starts late enough to fail with a status, beats while idle, and ends when its client does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import anyio

from aima_mcp.faces import strict_json
from aima_mcp.faces.http.exchange import Exchange

MEDIA_TYPE = "text/event-stream"
HEADERS = {"content-type": MEDIA_TYPE, "cache-control": "no-store", "x-accel-buffering": "no"}
HEARTBEAT_SECONDS = 15.0
PATIENCE_SECONDS = 1.0
KEPT = 1024  # events whose bytes are kept


def frame(kind: str, data: Any, id: int | None = None) -> bytes:
    """One event as it is sent."""
    head = b"" if id is None else b"id: %d\n" % id
    return head + b"event: " + kind.encode() + b"\ndata: " + strict_json.write(data) + b"\n\n"


class Frames:
    """Events of the log as they are sent: the newest are made up once for all who listen."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Mapping[str, Any], bytes]] = {}

    def of(self, event: Mapping[str, Any]) -> bytes:
        """The bytes of an event."""
        place = event["seq"] % KEPT
        found = self._made.get(place)
        if found is None or found[0] is not event:
            found = self._made[place] = (event, frame(event["type"], event, event["seq"]))
        return found[1]


class EventStream:
    """One stream of events. Starts with its first event, or after a second without one."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._last = anyio.current_time()

    async def event(self, kind: str, data: Any, id: int | None = None) -> None:
        """Send one event; `data` becomes one line of JSON."""
        await self._write(frame(kind, data, id))

    async def write(self, frames: Sequence[bytes]) -> None:
        """Send events that are made up already, in one piece."""
        await self._write(b"".join(frames))

    async def open(self, id: int) -> None:
        """Send the head now: whoever listens knows from here on that nothing is missed, and where to go on should nothing come."""
        await self._write(b": open\nid: %d\n\n" % id)

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
