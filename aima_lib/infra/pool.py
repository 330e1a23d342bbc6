"""Connections to engines, kept for the next request: HTTP/1.1 over bare asyncio, for requests by the thousand.

A kept connection may have been closed by its engine meanwhile. A request that meets such a close is sent once more over a fresh one, a POST
too, as long as no byte of its answer came: the engine had ended the connection before it read the request.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from urllib.parse import urlsplit

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
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._reset()

    def _reset(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._held, self._size, self._paused = 0, 0, False
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Callable[[bytes], bool] | None = None
        self._fault: str | None = None
        self._kept = self._framed = False
        self.heard = self.headed = self.done = self._gone = False
        self.status, self.content_type = 0, ""
        self.facts: dict[str, str] = {}  # headers of the answer that begin with x-

    # The request

    async def ask(self, data: bytes) -> None:
        """Send a request and wait for the head of its answer; without one it is closed. Raises Lost."""
        if self.uses:
            self._reset()
        self.uses += 1
        self.transport.write(data)
        try:
            while not self.headed:
                if self._fault is not None:
                    raise Lost(self._fault, heard=self.heard, gone=self._gone)
                self._waiter = self._loop.create_future()
                await self._waiter
        finally:
            self._waiter = None
            if not self.headed:
                self.close()

    async def first(self) -> None:
        """Return when something of the body is here, or all of it. Raises Lost."""
        while not (self._pieces or self.done):
            await self._more()

    async def pour(self, sink: Callable[[bytes], bool], drained: Callable[[], Awaitable[None]]) -> None:
        """Hand the body to `sink` as it comes, without waking anybody for it. Where it returns that it is full, the engine is told to wait
        until `drained` returns. Raises Lost when the body ends early."""
        self._sink = sink
        full = bool(self._pieces) and sink(self._all())
        while not self.done:
            if full or self._paused:
                self._hold()
                await drained()
                self._go_on()
            full = False
            await self._more()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, in pieces as they come. Raises Lost when it ends early."""
        while True:
            if self._pieces:
                data = self._all()
                if self._held < LOW:
                    self._go_on()
                yield data
            elif self.done:
                return
            else:
                await self._more()

    async def read(self) -> bytes:
        """The whole body. Raises Lost."""
        while not self.done:
            self._go_on()
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

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the body waits for its reader."""
        return not self._pieces

    def _all(self) -> bytes:
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._held = 0
        return data

    def _hold(self) -> None:
        if not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def _go_on(self) -> None:
        if self._paused:
            self._paused = False
            self.transport.resume_reading()

    async def _more(self) -> None:
        if self._fault is not None:
            raise Lost(self._fault, heard=self.heard, gone=self._gone)
        self._waiter = self._loop.create_future()
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
        if self._sink is not None and self._pieces and self._sink(self._all()):
            self._hold()
        if self._sink is None or self.done or self._paused:
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
        if self._held > HIGH:
            self._hold()

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
        line = self._taken(url)
        kept = line is not None or self._open[url] < keep
        head = _head(method, url, path, tuple(headers.items()), kept)
        data = head + (b"\r\n" if body is None else b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self._open[url] += 1
        begun = gone = False
        try:
            if line is not None:
                try:
                    await line.ask(data)
                    begun = True
                except Lost as error:
                    if error.heard:
                        raise
                    gone = error.gone
            if line is None or not begun:
                line = await self._dialled(url, gone)
                await line.ask(data)
                begun = True
            line.url, line.kept = url, kept
            return line
        finally:
            if not begun:
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


@lru_cache(maxsize=256)
def _head(method: str, url: str, path: str, headers: tuple[tuple[str, str], ...], kept: bool) -> bytes:
    """A request's head, but for the length of its body and the empty line."""
    if any("\r" in value or "\n" in value for _, value in headers):
        raise ValueError("a header cannot hold the end of a line")
    parts = urlsplit(url)
    lines = [f"{method} {parts.path.rstrip('/')}{path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in headers]
    if not kept:
        lines.append("Connection: close\r\n")
    if method == "POST" and all(name != "Content-Type" for name, _ in headers):
        lines.append("Content-Type: application/json\r\n")
    return "".join(lines).encode("latin-1")
