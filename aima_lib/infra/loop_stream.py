"""The stream of a process that has an event loop: waiting leaves the loop to others."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from aima_lib.infra.stream import CHUNK_BYTES, Stream, is_readable

MOST_UNREAD = 4 * CHUNK_BYTES


class Looped(asyncio.Protocol):
    """A connection of an asyncio loop. One task may wait to receive, and one to send."""

    def __init__(self) -> None:
        self._transport: Any = None  # asyncio's types disagree on which transport has what
        self._unread = bytearray()
        self._ended, self._paused, self._full = False, False, False
        self._error: Exception | None = None
        self._waiting: set[asyncio.Future[None]] = set()

    async def secure(self, context: ssl.SSLContext, name: str, seconds: float) -> None:
        """See Stream.secure."""
        loop = asyncio.get_running_loop()
        self._transport = await loop.start_tls(self._transport, self, context, server_hostname=name, ssl_handshake_timeout=seconds)

    async def send(self, data: bytes) -> None:
        """See Stream.send."""
        if self._ended:
            raise self._error or ConnectionResetError("the other side has closed the connection")
        self._transport.write(data)
        while self._full and not self._ended:
            await self._change()

    async def receive(self) -> bytes:
        """See Stream.receive."""
        while not self._unread and not self._ended:
            await self._change()
        if self._unread:
            data = bytes(self._unread)
            self._unread.clear()
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
            return data
        if self._error is not None:
            raise self._error
        return b""

    def is_stale(self) -> bool:
        """See Stream.is_stale."""
        if self._ended or self._unread or self._transport.is_closing():
            return True
        connection = self._transport.get_extra_info("socket")
        return connection is None or is_readable(connection)

    def close(self) -> None:
        """See Stream.close."""
        self._transport.abort()

    async def _change(self) -> None:
        """Wait until something is received, sent or over."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)

    def _changed(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._unread += data
        if len(self._unread) > MOST_UNREAD and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._changed()

    def eof_received(self) -> None:
        self._ended = True
        self._changed()

    def connection_lost(self, error: Exception | None) -> None:
        self._ended, self._error = True, error
        self._changed()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._changed()


async def looped(host: str, port: int, seconds: float) -> Stream:
    """Opens streams of the running loop."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(seconds):
        _, stream = await loop.create_connection(Looped, host, port)
    return stream
