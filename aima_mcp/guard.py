"""What uvicorn leaves open: deadlines for heads and bodies, and a limit on connections."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
BODY_SECONDS = 60.0
KEEP_ALIVE_SECONDS = 30
MOST, FILES = 12_000, 32_768
HEAD_BYTES = 32 << 10
LOOSE = re.compile(rb"(?<!\r)\n|\n[ \t]")
FULL = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


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


class StrictConnection(h11.Connection):
    """HTTP/1 whose lines end in CR LF and are not continued: a proxy may read the looser forms, which h11 takes, otherwise."""

    def next_event(self) -> Any:
        """As h11's. Raises RemoteProtocolError for a head in a looser form."""
        if self.their_state is h11.IDLE:
            waiting, _ = self.trailing_data
            if LOOSE.search(waiting.partition(b"\r\n\r\n")[0]):
                raise h11.RemoteProtocolError("a line of the head ends in a bare LF or is continued")
        return super().next_event()


class GuardedProtocol(H11Protocol):
    """A head must be whole within 10 s of its first byte or of the connection, a body within 60 s of its head."""

    _deadline: asyncio.TimerHandle | None = None
    _awaited: Any = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = StrictConnection(h11.SERVER, self.config.h11_max_incomplete_event_size or HEAD_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless there are too many."""
        if len(self.connections) >= most_connections():
            transport.write(FULL)
            transport.close()
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline with the connection."""
        self._forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Judge by what is awaited after these bytes."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """What is no HTTP is refused as everything is: with a problem."""
        body = (
            b'{"type":"about:blank","title":"Bad Request","status":400,"code":"invalid_argument","message":"this is no HTTP/1.1 request"}'
        )
        headers = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in (h11.Response(status_code=400, headers=headers, reason=b"Bad Request"), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()  # in the middle of a reply there is nothing to say

    def on_response_complete(self) -> None:
        """Between requests the keep-alive timer counts, not ours."""
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        """Keep one deadline for whatever the client owes now; more bytes of the same do not move it."""
        awaited = None if self.transport.is_closing() else self.conn.their_state
        idle = awaited is h11.IDLE and self.cycle is not None and not self.conn.trailing_data[0]
        if awaited not in (h11.IDLE, h11.SEND_BODY) or idle:
            self._forget()
        elif awaited is not self._awaited:
            self._forget()
            self._awaited = awaited
            self._deadline = self.loop.call_later(HEAD_SECONDS if awaited is h11.IDLE else BODY_SECONDS, self._late)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._awaited = None

    def _late(self) -> None:
        self._forget()
        if self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE:
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()
        else:
            self.transport.abort()  # the app sees the client leave
