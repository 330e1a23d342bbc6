"""A client of one host over HTTP/1.1: few lines, quick to import, and calls may take as long as they like.

Connections are kept for the next request. One that was kept may have ended meanwhile: it is looked at before it is used, and a request that
may be repeated is, once. Leaving an answer early closes its connection, which is how the host sees that nobody waits any more.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httptools

from aima_lib.infra.proxy import Proxy
from aima_lib.infra.stream import Connect, Stream

if TYPE_CHECKING:
    import ssl

CONNECT_SECONDS = 5.0
MOST_IDLE, IDLE_SECONDS = 8, 15.0  # hosts close idle connections too: ours after 30 s, so that neither meets the other's close
REPEATABLE = ("GET",)
LONGEST_HEAD = 64 << 10
WORD, TARGET, VALUE = re.compile(r"[!#-'*+.^-z|~A-Z0-9-]+"), re.compile(r"[!-~]+"), re.compile(r"[ \t!-~\x80-\xff]*")
Headers = Iterable[tuple[str, str]]


class Broken(Exception):
    """The connection failed in the middle, or what came is no HTTP."""


class Unreached(Broken):
    """There was no connection: nothing was sent."""


class Silent(Broken):
    """The connection ended before a byte of the answer."""


class Answer:
    """Status, headers (names in lower case) and a body that comes as it is read."""

    def __init__(self, line: _Line) -> None:
        self._line = line
        self.status, self.headers = line.status, line.headers

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body, in pieces. Raises Broken."""
        while piece := await self._line.piece():
            yield piece

    async def read(self) -> bytes:
        """The whole body. Raises Broken."""
        return b"".join([piece async for piece in self])


class Http1:
    """Requests to the host of one http or https URL; a path in the URL goes before that of each request. HEAD is none of them: its answer
    has the length of a body that does not come."""

    def __init__(self, url: str, connect: Connect, *, headers: Headers = (), proxy: Proxy | None = None) -> None:
        self._connect, self._proxy = connect, proxy
        self._headers = tuple(headers)
        self._idle: list[tuple[float, _Line]] = []
        self._context: ssl.SSLContext | None = None
        self._lead(url)

    @property
    def url(self) -> str:
        """Where requests go."""
        return self._url

    @url.setter
    def url(self, url: str) -> None:
        self.close()
        self._lead(url)

    def close(self) -> None:
        """Let the idle connections go."""
        while self._idle:
            self._idle.pop()[1].close()

    @asynccontextmanager
    async def ask(self, method: str, target: str, headers: Headers = (), body: bytes | None = None) -> AsyncIterator[Answer]:
        """The answer to one request, its body not read yet.

        Raises:
            Broken: see its kinds.
            ValueError: a header cannot be sent.
        """
        line, answer = await self._begin(self._request(method, target, headers, body), method in REPEATABLE)
        try:
            yield answer
        finally:
            self._leave(line)

    def _request(self, method: str, target: str, headers: Headers, body: bytes | None) -> bytes:
        length = () if body is None else (("Content-Length", str(len(body))),)
        fields = [("Host", self._host_field), *self._headers, *headers, *length]
        wrong = next((name for name, value in fields if not (WORD.fullmatch(name) and VALUE.fullmatch(value))), None)
        if wrong is not None or not (WORD.fullmatch(method) and TARGET.fullmatch(self._path + target)):
            raise ValueError(f"the request cannot be sent: {'its target' if wrong is None else wrong} holds what HTTP has no place for")
        head = f"{method} {self._path}{target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields)
        return head.encode("latin-1") + b"\r\n" + (body or b"")

    async def _begin(self, request: bytes, repeatable: bool) -> tuple[_Line, Answer]:
        kept = self._kept()
        if kept is not None:
            try:
                return await self._sent(kept, request)
            except Silent:
                if not repeatable:
                    raise
        return await self._sent(_Line(await self._dialled()), request)

    async def _sent(self, line: _Line, request: bytes) -> tuple[_Line, Answer]:
        begun = False
        try:
            await line.ask(request)
            begun = True
        finally:
            if not begun:
                line.close()
        return line, Answer(line)

    def _kept(self) -> _Line | None:
        """An idle connection that has not ended, or None. The one used last is the likeliest to live."""
        while self._idle:
            since, line = self._idle.pop()
            if time.monotonic() - since < IDLE_SECONDS and not line.stream.is_stale():
                return line
            line.close()
        return None

    def _leave(self, line: _Line) -> None:
        if line.is_free() and len(self._idle) < MOST_IDLE:
            self._idle.append((time.monotonic(), line))
        else:
            line.close()

    async def _dialled(self) -> Stream:
        host, port = (self._host, self._port) if self._proxy is None else (self._proxy.host, self._proxy.port)
        try:
            stream = await self._connect(host, port, CONNECT_SECONDS)
            led = False
            try:
                if self._proxy is not None:
                    await self._proxy.open(stream, self._authority)
                if self._secure:
                    await stream.secure(self._tls(), self._host, CONNECT_SECONDS)
                led = True
            finally:
                if not led:
                    stream.close()
        except OSError as error:
            late = isinstance(error, TimeoutError) and error.errno is None
            raise Unreached(f"no connection within {CONNECT_SECONDS:g} s" if late else said(error)) from error
        return stream

    def _lead(self, url: str) -> None:
        parts = urlsplit(url)
        self._url, self._secure = url, parts.scheme == "https"
        name = parts.hostname or ""
        self._host = name if name.isascii() else name.encode("idna").decode("ascii")
        self._port = parts.port or (443 if self._secure else 80)
        self._path = parts.path.rstrip("/")
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self._authority = f"{shown}:{self._port}"
        self._host_field = shown if parts.port is None else self._authority

    def _tls(self) -> ssl.SSLContext:
        import ssl

        if self._context is None:
            self._context = ssl.create_default_context()
            self._context.set_alpn_protocols(["http/1.1"])
        return self._context


class _Line:
    """One connection and where its conversation stands."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._pieces: deque[bytes] = deque()

    async def ask(self, request: bytes) -> None:
        """Send a request and take in the head of its answer. Raises Broken."""
        self._parser = httptools.HttpResponseParser(self)
        self._heard = self._headed = self._framed = self._done = self._kept = self._more = False
        self._size = 0
        failed: OSError | None = None
        try:
            await self.stream.send(request)
        except OSError as error:  # a host that refuses a body may close before it has all of it, and its answer is there
            failed = error
        try:
            while not self._headed:
                await self._receive()
        except Silent as error:
            raise (Silent(said(failed)) if failed else error) from failed

    async def piece(self) -> bytes:
        """The next piece of the body, nothing at its end. Raises Broken."""
        while not (self._pieces or self._done):
            await self._receive()
        return self._pieces.popleft() if self._pieces else b""

    def is_free(self) -> bool:
        """Whether the exchange is over and another may follow. What is here already of the body is passed over; nothing is waited for."""
        self._pieces.clear()
        return self._kept and not self._more

    def close(self) -> None:
        """Let it go."""
        self.stream.close()

    async def _receive(self) -> None:
        try:
            data = await self.stream.receive()
        except OSError as error:
            raise (Broken if self._heard else Silent)(said(error)) from error
        if not data:
            self._end()
        self._heard = True
        if not self._headed:
            self._size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self._done:  # what follows an answer is nobody's
                raise Broken(f"what came is no HTTP: {error}") from error
            self._more = True
        if not self._headed and self._size > LONGEST_HEAD:
            raise Broken("the head of the answer does not end")

    def _end(self) -> None:
        if not self._heard:
            raise Silent("the connection was closed without an answer")
        if not self._headed or self._framed:
            raise Broken("the connection was closed before the answer was whole")
        self._done = True  # a body without a length ends with its connection

    # What the parser says

    def on_message_begin(self) -> None:
        self._more = self._more or self._done
        self._fields: dict[str, str] = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._headed or status < 200:  # another answer that nobody asked for; or a word before this one
            return
        self._headed, self.status, self.headers = True, status, self._fields
        self._framed = status in (204, 304) or not self.headers.keys().isdisjoint(("content-length", "transfer-encoding"))

    def on_body(self, data: bytes) -> None:
        if not self._done:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self._headed and not self._done:
            self._done, self._kept = True, self._framed and self._parser.should_keep_alive()


def said(error: OSError) -> str:
    """What the system says of it."""
    return error.strerror or str(error) or type(error).__name__
