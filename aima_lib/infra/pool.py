"""Connections to engines, kept for the next request: HTTP/1.1 over bare asyncio, for requests by the thousand.

A kept connection may have been closed by its engine meanwhile. A request that meets such a close is sent once more over a fresh one, a POST
too, as long as no byte of its answer came: the engine had ended the connection before it read the request.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import SplitResult, urlsplit

import httptools

CONNECT_SECONDS = 5.0
IDLE_SECONDS = 4.0  # engines close idle connections after five, as a rule
LONGEST_HEAD = 64 << 10
HIGH, LOW = 1 << 20, 256 << 10  # bytes that wait for their reader: where the engine is told to wait too, and where to go on


class Lost(Exception):
    """The connection failed, or what came is no HTTP. `heard`: bytes of an answer had come. `gone`: the other side ended it, and had the
    request."""

    def __init__(self, message: str, *, heard: bool = True, reached: bool = True, gone: bool = False) -> None:
        super().__init__(message)
        self.heard, self.reached, self.gone = heard, reached, gone


class Line(asyncio.Protocol):
    """One connection, with one request at a time; and the answer to it: status, kind, and a body that comes as it is read."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.is_open, self.since, self.uses = True, 0.0, 0
        self.url, self.kept = "", False
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: deque[bytes] = deque()
        self._held, self._size, self._paused = 0, 0, False
        self._waiter: asyncio.Future[None] | None = None
        self._fault: str | None = None
        self._kept = self._framed = False
        self.heard = self.headed = self.done = self._gone = False
        self.status, self.content_type = 0, ""
        self.facts: dict[str, str] = {}  # headers of the answer that begin with x-

    # The request

    async def ask(self, data: bytes) -> None:
        """Send a request and wait for the head of its answer. Raises Lost."""
        if self.uses:
            self._reset()
        self.uses += 1
        self.transport.write(data)
        while not self.headed:
            await self._more()

    async def first(self) -> None:
        """Return when something of the body is here, or all of it. Raises Lost."""
        while not (self._pieces or self.done):
            await self._more()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, in pieces as they come. Raises Lost when it ends early."""
        while True:
            if self._pieces:
                data = self._pieces.popleft() if len(self._pieces) == 1 else self._all()
                self._held -= len(data)
                if self._paused and self._held < LOW:
                    self._paused = False
                    self.transport.resume_reading()
                yield data
            elif self.done:
                return
            else:
                await self._more()

    async def read(self) -> bytes:
        """The whole body. Raises Lost."""
        while not self.done:
            if self._paused:
                self._paused = False
                self.transport.resume_reading()
            await self._more()
        return self._all()

    def close(self) -> None:
        """End it at once: the engine sees that nobody listens."""
        self.is_open = False
        self.transport.abort()

    @property
    def is_free(self) -> bool:
        """Whether another request may follow on it."""
        return self.done and self._kept and self.is_open and not self._pieces

    def _all(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data

    async def _more(self) -> None:
        if self._fault is not None:
            raise Lost(self._fault, heard=self.heard, gone=self._gone)
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, why: str) -> None:
        self._fault = self._fault or why
        self.is_open = False
        self._wake()

    # What asyncio says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self.done or not self.uses:  # nobody asked
            self.close()
            return
        self.heard = True
        if not self.headed:
            self._size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"what came is no HTTP: {error}")
            self.transport.abort()
        if not self.headed and self._size > LONGEST_HEAD:
            self._fail("the head of its answer does not end")
            self.transport.abort()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self.headed and not self._framed and exc is None:
            self.done = True  # a body without a length ends with its connection
        if not self.done:
            self._gone = self._fault is None
            self._fault = self._fault or (str(exc) if exc else "the connection was closed")
        self._wake()

    # What the parser says

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self.content_type = value.decode("latin-1").partition(";")[0].strip().lower()
        elif name in (b"content-length", b"transfer-encoding"):
            self._framed = True
        elif name.startswith(b"x-"):
            self.facts[name.decode("latin-1")] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self.headed = self.status >= 200
        self._framed = self._framed or self.status in (204, 304)

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)
        self._held += len(data)
        if self._held > HIGH and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        if self.headed:
            self.done, self._kept = True, self._framed and self._parser.should_keep_alive()


class Pool:
    """Lines to any number of hosts. `close` lets the idle ones go."""

    def __init__(self) -> None:
        self._idle: defaultdict[str, list[Line]] = defaultdict(list)
        self._open: defaultdict[str, int] = defaultdict(int)

    def close(self) -> None:
        """Let every idle line go."""
        for lines in self._idle.values():
            for line in lines:
                line.close()
        self._idle.clear()

    @asynccontextmanager
    async def ask(self, method: str, url: str, path: str, headers: Mapping[str, str], body: bytes | None, keep: int) -> AsyncIterator[Line]:
        """The answer to a request, its body not read yet. Leaving the block early closes the line. See `begin`."""
        line = await self.begin(method, url, path, headers, body, keep)
        try:
            yield line
        finally:
            self.end(line)

    async def begin(self, method: str, url: str, path: str, headers: Mapping[str, str], body: bytes | None, keep: int) -> Line:
        """The answer to a request, its body not read yet; `end` must follow.

        keep: how many kept lines the host bears; a request beyond those gets a line of its own.

        Raises:
            Lost: no connection, or none that lasted.
        """
        kept = self._open[url] < keep or bool(self._idle[url])
        data = _request(method, urlsplit(url), path, headers, body, kept)
        self._open[url] += 1
        line: Line | None = None
        try:
            line = await self._begun(url, data)
            line.url, line.kept = url, kept
            return line
        finally:
            if line is None:
                self._count_off(url)

    def end(self, line: Line) -> None:
        """Keep the line for the next request if its answer is whole, else close it."""
        if line.kept and line.is_free:
            line.since = time.monotonic()
            self._idle[line.url].append(line)
        else:
            line.close()
        self._count_off(line.url)

    def _count_off(self, url: str) -> None:
        self._open[url] -= 1
        if not self._open[url] and not self._idle[url]:
            del self._open[url], self._idle[url]

    async def _begun(self, url: str, data: bytes) -> Line:
        """A line on which the answer to `data` has begun."""
        line, gone = self._taken(url), False
        if line is not None:
            try:
                return await _asked(line, data)
            except Lost as error:
                if error.heard:
                    raise
                gone = error.gone
        return await _asked(await self._dialled(url, gone), data)

    def _taken(self, url: str) -> Line | None:
        """An idle line that has not ended. The one used last is the likeliest to live."""
        lines, oldest = self._idle[url], time.monotonic() - IDLE_SECONDS
        while lines:
            line = lines.pop()
            if line.is_open and line.since > oldest:
                return line
            line.close()
        return None

    async def _dialled(self, url: str, gone: bool) -> Line:
        parts, loop = urlsplit(url), asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, line = await loop.create_connection(Line, parts.hostname or "", parts.port or 80)
        except TimeoutError as error:
            raise Lost(f"no connection within {CONNECT_SECONDS:g} s", heard=False, reached=False) from error
        except OSError as error:
            raise Lost(error.strerror or str(error), heard=False, reached=False, gone=gone) from error
        return line


async def _asked(line: Line, data: bytes) -> Line:
    begun = False
    try:
        await line.ask(data)
        begun = True
    finally:
        if not begun:
            line.close()
    return line


def _request(method: str, parts: SplitResult, path: str, headers: Mapping[str, str], body: bytes | None, kept: bool) -> bytes:
    lines = [f"{method} {parts.path.rstrip('/')}{path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
    if not kept:
        lines.append("Connection: close\r\n")
    if body is not None:
        kind = "" if "Content-Type" in headers else "Content-Type: application/json\r\n"
        lines.append(f"{kind}Content-Length: {len(body)}\r\n")
    if any("\r" in value or "\n" in value for value in headers.values()):
        raise ValueError("a header cannot hold the end of a line")
    return "".join(lines).encode("latin-1") + b"\r\n" + (body or b"")
