"""MCP over stdin and stdout, on the event loop: no worker threads where the system can wait for a pipe.

One message a line. A line that is no message is answered with an error; none is left without a reply.
"""

from __future__ import annotations

import logging
import os
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import anyio
from anyio import to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types import INVALID_REQUEST, JSONRPCError, JSONRPCMessage, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse, RequestId

from aima_lib.errors import InvalidArgument
from aima_mcp.faces.mcp.jsonrpc import HEAD_BYTES, Refused, id_in, read_message

LONGEST_BYTES = 16 * 1024 * 1024
CHUNK_BYTES = 65_536
DRAIN_SECONDS = 1.0
Incoming = MemoryObjectReceiveStream[SessionMessage | Exception]
Outgoing = MemoryObjectSendStream[SessionMessage]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Line:
    """One line, or the head of one that was too long to keep."""

    raw: bytes
    size: int

    def message(self) -> JSONRPCMessage:
        """The message it holds. Raises Refused."""
        if self.size > len(self.raw):
            reason = InvalidArgument(f"the message has {self.size} bytes; {LONGEST_BYTES} is the limit")
            raise Refused(INVALID_REQUEST, reason, id_in(self.raw))
        return read_message(self.raw)


class Lines:
    """Chunks in, lines out. Never holds more than the longest line allowed."""

    def __init__(self, longest: int = LONGEST_BYTES) -> None:
        self._longest = longest
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[Line]:
        """The lines that end in this chunk."""
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            self._add(end)
            yield from self.end()
        self._add(rest)

    def end(self) -> Iterator[Line]:
        """The line so far, if there is one."""
        line = Line(b"".join(self._parts), self._size)
        self._parts, self._size = [], 0
        if line.raw.strip():
            yield line

    def _add(self, part: bytes) -> None:
        fitted = self._size <= self._longest
        self._size += len(part)
        if self._size <= self._longest:
            self._parts.append(part)
        elif fitted:
            self._parts = [b"".join((*self._parts, part))[: min(HEAD_BYTES, self._longest)]]


@asynccontextmanager
async def stdio() -> AsyncIterator[tuple[Incoming, Outgoing]]:
    """The streams that `Server.run` takes, over this process's stdin and stdout, which serve nothing else meanwhile."""
    with _claimed() as (source, sink):
        async with over(source, sink) as streams:
            yield streams


@asynccontextmanager
async def over(source: int, sink: int) -> AsyncIterator[tuple[Incoming, Outgoing]]:
    """The same over two file descriptors."""
    into, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outgoing, out_of = anyio.create_memory_object_stream[SessionMessage](0)
    wire = _Wire(source, sink)
    async with anyio.create_task_group() as sending:
        sending.start_soon(wire.send, out_of, sending.cancel_scope)
        async with outgoing, anyio.create_task_group() as receiving:
            receiving.start_soon(wire.receive, into, outgoing.clone())
            yield incoming, outgoing
            receiving.cancel_scope.cancel()


class _Wire:
    """The two ends, and which requests still wait for their answer."""

    def __init__(self, source: int, sink: int) -> None:
        self._source, self._sink = source, sink
        self._polls_source, self._polls_sink = _can_poll(source), _can_poll(sink)
        self._waiting: set[RequestId] = set()
        self._answered = anyio.Event()

    async def receive(self, into: MemoryObjectSendStream[SessionMessage | Exception], replies: Outgoing) -> None:
        """Pass messages on until the other side closes; then give those under way a moment to be answered."""
        lines = Lines()
        async with into, replies:
            try:
                while chunk := await self._read():
                    for line in lines.feed(chunk):
                        await self._take(line, into, replies)
                for line in lines.end():
                    await self._take(line, into, replies)
                await self._drain()
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                log.debug("the server closed before its client")

    async def send(self, out_of: MemoryObjectReceiveStream[SessionMessage], scope: anyio.CancelScope) -> None:
        """Write what the server says until it has no more to say, or nobody reads."""
        with _nonblocking(self._sink, self._polls_sink):
            async with out_of:
                async for item in out_of:
                    raw = item.message.model_dump_json(by_alias=True, exclude_unset=True).encode("utf-8")
                    try:
                        await self._write(raw + b"\n")
                    except (BrokenPipeError, ConnectionResetError):
                        scope.cancel()
                        return
                    self._settle(item.message)

    async def _take(self, line: Line, into: MemoryObjectSendStream[SessionMessage | Exception], replies: Outgoing) -> None:
        try:
            message = line.message()
        except Refused as refusal:
            await replies.send(SessionMessage(refusal.reply()))
            return
        if isinstance(message, JSONRPCRequest) and message.method != "subscriptions/listen":
            self._waiting.add(message.id)
        elif isinstance(message, JSONRPCNotification) and message.method == "notifications/cancelled":
            self._waiting.discard((message.params or {}).get("requestId", ""))
        await into.send(SessionMessage(message))

    def _settle(self, message: JSONRPCMessage) -> None:
        if isinstance(message, JSONRPCResponse | JSONRPCError) and message.id is not None:
            self._waiting.discard(message.id)
            self._answered.set()

    async def _drain(self) -> None:
        with anyio.move_on_after(DRAIN_SECONDS):
            while self._waiting:
                self._answered = anyio.Event()
                await self._answered.wait()

    async def _read(self) -> bytes:
        while self._polls_source:
            await anyio.wait_readable(self._source)
            try:
                return os.read(self._source, CHUNK_BYTES)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                return b""
        return await to_thread.run_sync(os.read, self._source, CHUNK_BYTES, abandon_on_cancel=True)

    async def _write(self, raw: bytes) -> None:
        rest = memoryview(raw)
        while rest:
            if not self._polls_sink:
                rest = rest[await to_thread.run_sync(os.write, self._sink, rest) :]
                continue
            try:
                rest = rest[os.write(self._sink, rest) :]
            except BlockingIOError:
                await anyio.wait_writable(self._sink)


def _can_poll(descriptor: int) -> bool:
    """Whether the loop can wait for it: pipes, sockets and terminals; not files, and nothing on Windows."""
    if sys.platform == "win32":
        return False
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)


@contextmanager
def _nonblocking(descriptor: int, wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    before = os.get_blocking(descriptor)
    os.set_blocking(descriptor, False)
    try:
        yield
    finally:
        os.set_blocking(descriptor, before)


@contextmanager
def _claimed() -> Iterator[tuple[int, int]]:
    """stdin and stdout under private numbers: a stray print, or a child's, goes to stderr and cannot break the protocol."""
    sys.stdout.flush()
    source, sink, nothing = os.dup(0), os.dup(1), os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(nothing, 0)
        try:
            os.dup2(2, 1)
        except OSError:  # no stderr: then there is nowhere to go
            os.dup2(nothing, 1)
        yield source, sink
    finally:
        sys.stdout.flush()
        os.dup2(source, 0)
        os.dup2(sink, 1)
        for descriptor in (source, sink, nothing):
            os.close(descriptor)
