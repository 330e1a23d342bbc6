"""What uvicorn leaves open: deadlines for heads and bodies, limits on connections and heads, and no request that two readers read as two.

llhttp parses, which is quick and strict about line ends, lengths and names. What it passes and we do not is refused here.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections import deque
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.utils import get_local_addr, get_remote_addr
from uvicorn.server import ServerState

from aima_mcp.cycle import Cycle

HEAD_SECONDS = 10.0
BODY_SECONDS = 60.0
KEEP_ALIVE_SECONDS = 30
FRAME_BYTES, FRAME_RATIO = 64 << 10, 16
MOST, FILES = 12_000, 32_768
HEAD, BODY, NOTHING = range(3)  # what the client owes
REFUSAL = b"HTTP/1.1 %b\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
PROBLEM = b'{"type":"about:blank","title":"%b","status":%b,"code":"invalid_argument","message":"%b","retryable":false}'
FULL = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
BAD = b"400 Bad Request", b"this is no HTTP/1.1 request"
LATE = b"408 Request Timeout", b"the head of this request did not end in time"
LONG = b"431 Request Header Fields Too Large", b"the head of this request does not end"


def open_more() -> None:
    """Let this process open as many files as the system would: shells are given few, for programs of another age."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_connections() -> int:
    """Three quarters of the files this process may open: the rest is for the store, models and engines."""
    if sys.platform == "win32":
        return 500
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else max(16, min(MOST, soft * 3 // 4))


class GuardedProtocol(asyncio.Protocol):
    """A connection, as uvicorn starts it. A head must be whole within 10 s of its first byte or of the connection, a body within 60 s of
    its head; more bytes of the same do not move a deadline.
    """

    transport: asyncio.Transport

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        self._app, self._state, self._app_state = config.loaded_app, server_state, app_state
        self._keep_alive = config.timeout_keep_alive
        self._loop = _loop or asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Cycle] = deque()  # the first is being answered; the others came before their turn
        self._taking: Cycle | None = None  # whose body comes
        self._owed, self._due, self._timer = HEAD, 0.0, cast("asyncio.TimerHandle | None", None)
        self._url, self._headers, self._frame = b"", list[tuple[bytes, bytes]](), 0
        self._refusal: tuple[bytes, bytes] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._is_held = self._is_over = False
        self.kept: dict[str, Any] = {}  # what the app remembers of this connection

    # What asyncio says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, unless there are too many."""
        self.transport = cast("asyncio.Transport", transport)
        self._ends = get_local_addr(self.transport), get_remote_addr(self.transport)
        if len(self._state.connections) >= most_connections():
            self.write(FULL)
            self.transport.close()
        self._state.connections.add(self)  # type: ignore[arg-type]
        self._owe(HEAD, HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Tell whoever works for it."""
        self._is_over = True
        self._state.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()
        for cycle in self._queue:
            cycle.leave()

    def data_received(self, data: bytes) -> None:
        """Read what came. Whatever means two things, or nothing, ends the connection."""
        if self.transport.is_closing() or self._refusal is not None:
            return
        if self._owed == NOTHING:
            self._owe(HEAD, HEAD_SECONDS)
        self._frame += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # nobody here speaks anything else: this request is answered, and is the last
            self._queue[-1].keep_alive = False
        except httptools.HttpParserError:
            self._refuse(BAD)
        else:
            if self._frame > FRAME_BYTES:
                self._refuse(LONG if self._owed == HEAD else BAD)

    def eof_received(self) -> None:
        """The client says no more: with that it has left."""

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """It has caught up, or is gone."""
        waiting, self._writable = self._writable, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    # What llhttp says

    def on_message_begin(self) -> None:
        """A request begins, perhaps in the middle of what came."""
        self._url, self._headers = b"", []
        if self._owed != HEAD:
            self._owe(HEAD, HEAD_SECONDS)

    def on_url(self, url: bytes) -> None:
        """The target, or a part of it."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, without the space around its value. Those after a body are nobody's."""
        if self._owed == HEAD:
            self._headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        """Begin to answer, unless the head means two things."""
        version, headers = self._parser.get_http_version(), self._headers
        names = [name for name, _ in headers]
        if names.count(b"host") > 1 or (b"host" not in names and version != "1.0"):
            raise ValueError("not one host")
        if self._parser.should_upgrade() and (b"content-length" in names or b"transfer-encoding" in names):
            raise ValueError("an upgrade with a body")
        self._owe(BODY, BODY_SECONDS)
        self._frame = 0
        expects = b"expect" in names and (b"expect", b"100-continue") in headers
        cycle = self._taking = Cycle(self, self._scope(version), self._parser.should_keep_alive(), expects)
        self._queue.append(cycle)
        if len(self._queue) == 1:
            self._start(cycle)
        else:
            self.pause_reading()

    def on_body(self, body: bytes) -> None:
        """A piece of the body. What frames it may be as long as a head, and no more than so much for each byte."""
        self._frame = max(0, self._frame - len(body) * FRAME_RATIO)
        assert self._taking is not None
        self._taking.add(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._owe(NOTHING, math.inf)
        self._frame = 0
        taking, self._taking = self._taking, None
        assert taking is not None
        taking.whole()
        if taking.complete:
            self._rest()

    # For the cycles

    @property
    def is_paused(self) -> bool:
        """Whether what is written would only be heaped up."""
        return self._writable is not None

    async def drained(self) -> None:
        """Wait until the client has caught up, or is gone."""
        while self._writable is not None:
            await self._writable

    def write(self, data: bytes) -> None:
        """Hand bytes over."""
        self.transport.write(data)

    def abort(self) -> None:
        """Cut the connection: an answer cannot be ended as it should."""
        self.transport.abort()

    def pause_reading(self) -> None:
        """Let the client wait."""
        if not self._is_held and not self._is_over:
            self._is_held = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Let it go on."""
        if self._is_held and not self._is_over and len(self._queue) < 2 and self._refusal is None:
            self._is_held = False
            self.transport.resume_reading()

    def answered(self, cycle: Cycle) -> None:
        """The answer is whole: go on with the next, or wait for one."""
        self._state.total_requests += 1
        self._queue.popleft()
        if not cycle.keep_alive:
            self._queue.clear()
            self.transport.close()
            return
        self.resume_reading()
        if self._queue:
            self._start(self._queue[0])
        elif self._refusal is not None:
            self._refuse(self._refusal)
        elif self._owed == NOTHING:
            self._rest()

    def over(self, task: asyncio.Task[None]) -> None:
        """An answer needs no more work."""
        self._state.tasks.discard(task)

    def shutdown(self) -> None:
        """uvicorn ends: nothing after what is being answered."""
        if self._queue:
            self._queue[0].keep_alive = False
        else:
            self.transport.close()

    # Small things

    def _start(self, cycle: Cycle) -> None:
        self._state.tasks.add(cycle.begin(self._app))

    def _scope(self, version: str) -> dict[str, Any]:
        raw, _, query = self._url.partition(b"?")
        path = raw.decode("ascii")
        server, client = self._ends
        return {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": version, "server": server, "client": client,
            "scheme": "http", "method": self._parser.get_method().decode("ascii"), "path": unquote(path) if "%" in path else path,
            "raw_path": raw, "query_string": query, "root_path": "", "headers": self._headers, "state": self._app_state.copy(),
        }  # fmt: skip

    def _refuse(self, why: tuple[bytes, bytes]) -> None:
        """End the connection, saying why once the requests before are answered. In the middle of a request there is nothing to say."""
        if self._taking is not None:
            self.abort()
        elif self._queue:
            self._refusal = why
            self.pause_reading()
        else:
            status, title = why[0].partition(b" ")[::2]
            body = PROBLEM % (title, status, why[1])
            self.write(REFUSAL % (why[0], len(body), body))
            self.transport.close()

    def _rest(self) -> None:
        """Between requests."""
        self._owe(NOTHING, self._keep_alive)

    def _owe(self, what: int, seconds: float) -> None:
        """What the client owes now, and until when. One timer serves every deadline, and looks again when it was too early."""
        self._owed = what
        self._due = self._loop.time() + seconds
        if seconds != math.inf and (self._timer is None or self._timer.when() > self._due):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._due == math.inf or self.transport.is_closing():
            return
        if self._loop.time() < self._due:
            self._timer = self._loop.call_at(self._due, self._look)
        elif self._owed == NOTHING:
            self.transport.close()
        elif self._owed == HEAD:
            self._refuse(LATE)
        else:
            self.abort()  # the app sees the client leave
