"""A client of one host over HTTP/1.1: few lines, quick to import, and calls may take as long as they like.

Connections are kept for the next request. One that was kept may have ended meanwhile: it is looked at before it is used, and a request that
may be repeated is, once. Leaving an answer early closes its connection, which is how the host sees that nobody waits any more.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import h11

from aima_lib.infra.proxy import Proxy
from aima_lib.infra.stream import Connect, Stream

if TYPE_CHECKING:
    import ssl

CONNECT_SECONDS = 5.0
MOST_IDLE, IDLE_SECONDS = 8, 15.0  # hosts close idle connections too: ours after 30 s, so that neither meets the other's close
REPEATABLE = ("GET", "HEAD")
Headers = Iterable[tuple[str, str]]


class Broken(Exception):
    """The connection failed in the middle, or what came is no HTTP."""


class Unreached(Broken):
    """There was no connection: nothing was sent."""


class Silent(Broken):
    """The connection ended before a byte of the answer."""


class Answer:
    """Status, headers (names in lower case) and a body that comes as it is read."""

    def __init__(self, line: _Line, head: h11.Response) -> None:
        self._line = line
        self.status = head.status_code
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body, in pieces. Raises Broken."""
        while isinstance(event := await self._line.next(), h11.Data):
            yield bytes(event.data)

    async def read(self) -> bytes:
        """The whole body. Raises Broken."""
        return b"".join([piece async for piece in self])


class Http1:
    """Requests to the host of one http or https URL; a path in the URL goes before that of each request."""

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
        line, answer = await self._begin(self._request(method, target, headers, body), body or b"")
        try:
            yield answer
        finally:
            self._leave(line)

    def _request(self, method: str, target: str, headers: Headers, body: bytes | None) -> h11.Request:
        length = () if body is None else (("Content-Length", str(len(body))),)
        fields = [("Host", self._host_field), *self._headers, *headers, *length]
        try:
            return h11.Request(method=method, target=self._path + target, headers=fields)
        except (h11.LocalProtocolError, UnicodeEncodeError) as error:
            raise ValueError(f"the request cannot be sent: {error}") from error

    async def _begin(self, request: h11.Request, body: bytes) -> tuple[_Line, Answer]:
        kept = self._kept()
        if kept is not None:
            try:
                return await self._sent(kept, request, body)
            except Silent:
                if request.method.decode() not in REPEATABLE:
                    raise
        return await self._sent(_Line(await self._dialled()), request, body)

    async def _sent(self, line: _Line, request: h11.Request, body: bytes) -> tuple[_Line, Answer]:
        begun = False
        try:
            answer = Answer(line, await line.ask(request, body))
            begun = True
        finally:
            if not begun:
                line.close()
        return line, answer

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
        self._state = h11.Connection(h11.CLIENT)
        self._heard = False

    async def ask(self, request: h11.Request, body: bytes) -> h11.Response:
        """Send a request; the head of its answer. Raises Broken."""
        self._heard = False
        data = [self._state.send(event) or b"" for event in (request, h11.Data(data=body), h11.EndOfMessage())]
        failed: OSError | None = None
        try:
            await self.stream.send(b"".join(data))
        except OSError as error:  # a host that refuses a body may close before it has all of it, and its answer is there
            failed = error
        try:
            while not isinstance(head := await self.next(), h11.Response):
                assert isinstance(head, h11.InformationalResponse)
        except Silent as error:
            raise (Silent(said(failed)) if failed else error) from failed
        return head

    async def next(self) -> object:
        """The next event of h11. Raises Broken."""
        try:
            while (event := self._state.next_event()) is h11.NEED_DATA:
                data = await self.stream.receive()
                if not data and not self._heard:
                    raise Silent("the connection was closed without an answer")
                self._heard = True
                self._state.receive_data(data)
        except OSError as error:
            raise (Broken if self._heard else Silent)(said(error)) from error
        except h11.RemoteProtocolError as error:
            raise Broken(str(error)) from error
        return event

    def is_free(self) -> bool:
        """Whether the exchange is over and another may follow. What is here already of the body is passed over; nothing is waited for."""
        try:
            while isinstance(self._state.next_event(), h11.Data):
                pass
            self._state.start_next_cycle()
        except h11.ProtocolError:
            return False
        return not self._state.trailing_data[0]

    def close(self) -> None:
        """Let it go."""
        self.stream.close()


def said(error: OSError) -> str:
    """What the system says of it."""
    return error.strerror or str(error) or type(error).__name__
