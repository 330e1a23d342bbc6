"""One request and its response, between a connection and the ASGI app."""

from __future__ import annotations

import asyncio
import http
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message

if TYPE_CHECKING:
    from aima_mcp.guard import GuardedProtocol

HIGH = 64 << 10  # bytes of a body that wait for the app, where the client is told to wait too
STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}
NO_NAME, NO_VALUE = re.compile(rb"[^!#$%&'*+.^_`|~0-9A-Za-z-]"), re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# What most answers say, and needs no look.
PLAIN = {b"content-type": (b"application/json",), b"x-content-type-options": (b"nosniff",), b"cache-control": (b"no-store",)}
BROKEN = b"Internal Server Error"
log = logging.getLogger(__name__)


class Leaving:
    """See Cycle.leaving."""

    __slots__ = ("_cycle", "_leaver")

    def __init__(self, cycle: Cycle, leaver: Callable[[], None]) -> None:
        self._cycle, self._leaver = cycle, leaver

    def __enter__(self) -> None:
        self._cycle.leavers.append(self._leaver)
        if self._cycle.has_left:
            self._leaver()

    def __exit__(self, *reason: object) -> None:
        self._cycle.leavers.remove(self._leaver)


class Cycle:
    """Receives what the protocol has and writes what the app sends. The head goes out with the first piece of the body."""

    def __init__(self, protocol: GuardedProtocol, scope: dict[str, Any], keep_alive: bool, expects: bool) -> None:
        self._protocol, self.scope, self.keep_alive, self._expects = protocol, scope, keep_alive, expects
        self._body, self._more, self._said, self.has_left = bytearray(), True, False, False
        self._news: asyncio.Future[None] | None = None
        self.leavers: list[Callable[[], None]] = []
        self._head, self._rest = b"", 0
        self._chunked = False
        self.started = self.complete = False
        scope["extensions"] = {"aima.cycle": self}

    # From the connection

    def add(self, body: bytes) -> None:
        """A piece of the request's body. What comes after the answer is dropped."""
        if self.complete:
            return
        self._body += body
        if len(self._body) > HIGH:
            self._protocol.pause_reading()
        if self._news is not None:
            self._tell()

    def whole(self) -> None:
        """The request's body has ended."""
        self._more = False
        if self._news is not None:
            self._tell()

    def leave(self) -> None:
        """The client has gone."""
        if not self.complete:
            self.has_left = True
            for leaver in list(self.leavers):
                leaver()
        self._tell()

    def leaving(self, leaver: Callable[[], None]) -> Leaving:
        """A block within which `leaver` is called when the client goes before it has the whole answer."""
        return Leaving(self, leaver)

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    # The app

    def begin(self, app: ASGIApp) -> asyncio.Task[None]:
        """Let the app answer."""
        loop = asyncio.get_running_loop()
        self.task: asyncio.Task[None] = loop.create_task(app(self.scope, self.receive, self.send))  # type: ignore[arg-type]
        self.task.add_done_callback(self._over)
        return self.task

    def _over(self, task: asyncio.Task[None]) -> None:
        self._protocol.over(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s %s failed", self.scope["method"], self.scope["path"], exc_info=error)
            if not self.started and not self.has_left:
                self.started, self.keep_alive, self._rest = True, False, len(BROKEN)
                self._head = STATUS[500] + b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n" % len(BROKEN)
                self._head += b"connection: close\r\n\r\n"
                self._write(BROKEN, more=False)
        if not self.complete:
            self._protocol.abort()

    async def receive(self) -> Message:
        """ASGI."""
        if self._expects and self._more and not self._body:
            self._expects = False
            self._protocol.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while True:
            if self.has_left or self.complete:
                return {"type": "http.disconnect"}
            if self._body or not (self._more or self._said):
                body, self._body, self._said = bytes(self._body), bytearray(), not self._more
                return {"type": "http.request", "body": body, "more_body": self._more}
            self._protocol.resume_reading()
            self._news = asyncio.get_running_loop().create_future()
            await self._news

    async def send(self, message: Message) -> None:
        """ASGI."""
        if self._protocol.is_paused and not self.has_left:
            await self._protocol.drained()
        if self.has_left:
            return
        if message["type"] == "http.response.start":
            self._start(message["status"], message.get("headers", []))
        else:
            self._write(message.get("body", b""), message.get("more_body", False))

    @property
    def kept(self) -> dict[str, Any]:
        """What the app remembers of the connection."""
        return self._protocol.kept

    def taken(self) -> bytes | None:
        """The request's whole body, if it is here; `receive` has it otherwise."""
        if self._more or self._said or self.has_left:
            return None
        body, self._body, self._said = bytes(self._body), bytearray(), True
        return body

    def reply(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """The whole answer at once; False where the client has not read the one before, and `send` must wait."""
        if self._protocol.is_paused:
            return False
        if not self.has_left:
            self._begin(status, headers)
            self._write(body, more=False)
        return True

    async def drained(self) -> None:
        """Wait until the client has read what there is for it."""
        await self._protocol.drained()

    def put(self, body: bytes) -> bool:
        """A piece of the answer's body, at once; whether the client has enough to read for now."""
        protocol = self._protocol
        if self._head or not self._chunked:
            if not self.has_left:
                self._write(body, more=True)
        elif body and not self.has_left:
            protocol.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return protocol.is_paused

    def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._begin(status, headers)
        asyncio.get_running_loop().call_soon(self._flush)

    def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        if self.started:
            raise RuntimeError("a response began twice")
        self.started, self._expects = True, False
        lines, length = [STATUS[status]], None
        for name, value in headers:
            if name in PLAIN and value in PLAIN[name]:
                lines += (name, b": ", value, b"\r\n")
                continue
            if NO_NAME.search(name) or NO_VALUE.search(value):
                raise RuntimeError(f"no header: {name!r}")
            lowered = name.lower()
            if lowered == b"content-length":
                length = int(value)
            elif lowered == b"connection" and b"close" in value.lower():
                self.keep_alive = False
                continue
            lines += (name, b": ", value, b"\r\n")
        silent = self.scope["method"] == "HEAD" or status in (204, 304)
        self._rest = 0 if silent else -1 if length is None else length
        if self._rest < 0:
            self._chunked = self.scope["http_version"] != "1.0"
            self.keep_alive = self.keep_alive and self._chunked
            lines.append(b"transfer-encoding: chunked\r\n" if self._chunked else b"")
        lines.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        self._head = b"".join(lines)

    def _flush(self) -> None:
        """The head, where no body came at once."""
        if self._head and not self.has_left:
            head, self._head = self._head, b""
            self._protocol.write(head)

    def _write(self, body: bytes, more: bool) -> None:
        if not self.started or self.complete:
            raise RuntimeError("a body without a head, or after its end")
        head, self._head = self._head, b""
        if self._chunked:
            piece = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            data = head + piece + (b"" if more else b"0\r\n\r\n")
        elif self._rest < 0:
            data = head + body
        else:
            silent = self.scope["method"] == "HEAD"
            data = head if silent else head + body
            self._rest -= 0 if silent else len(body)
            if self._rest < 0 or (self._rest and not more):
                raise RuntimeError("a body of another length than its head said")
        if data:
            self._protocol.write(data)
        if not more:
            self.complete = True
            if self._news is not None:
                self._tell()
            self._protocol.answered(self)
