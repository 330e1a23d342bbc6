"""Bytes to and from a host: the shape of a stream, and the one that blocks, for a process that has nothing else to do meanwhile."""

from __future__ import annotations

import socket
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import ssl

CHUNK_BYTES = 65_536
Result = TypeVar("Result")


class Stream(Protocol):
    """A connection. What goes wrong with it is an OSError."""

    async def secure(self, context: ssl.SSLContext, name: str, seconds: float) -> None:
        """Speak TLS from here on, with who can prove to be `name`."""

    async def send(self, data: bytes) -> None:
        """Hand all of it over."""

    async def receive(self) -> bytes:
        """What came, at least one byte; nothing at the end."""
        ...

    def is_stale(self) -> bool:
        """Whether something came that nobody asked for: the end, as a rule. Only an idle stream may be asked."""
        ...

    def close(self) -> None:
        """Let it go at once: the other side sees that nobody listens any more."""


class Connect(Protocol):
    """How a stream is opened: raises OSError (TimeoutError after so many seconds) where it cannot be."""

    async def __call__(self, host: str, port: int, seconds: float) -> Stream: ...


class Blocking:
    """A stream whose awaiting blocks the thread: a command that makes one call need not import an event loop, which takes longer than
    the call. Its coroutines never suspend, so `driven` runs them.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    async def secure(self, context: ssl.SSLContext, name: str, seconds: float) -> None:
        """See Stream.secure."""
        before = self._socket.gettimeout()
        self._socket.settimeout(seconds)
        self._socket = context.wrap_socket(self._socket, server_hostname=name)
        self._socket.settimeout(before)

    async def send(self, data: bytes) -> None:
        """See Stream.send."""
        self._socket.sendall(data)

    async def receive(self) -> bytes:
        """See Stream.receive."""
        return self._socket.recv(CHUNK_BYTES)

    def is_stale(self) -> bool:
        """See Stream.is_stale."""
        return is_readable(self._socket)

    def close(self) -> None:
        """See Stream.close."""
        self._socket.close()


def blocking(silence_seconds: float | None = None) -> Connect:
    """Opens streams that block; one that is silent for so long fails with TimeoutError."""

    async def connect(host: str, port: int, seconds: float) -> Stream:
        connection = socket.create_connection((host, port), seconds)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(silence_seconds)
        return Blocking(connection)

    return connect


def driven(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that awaits blocking streams and nothing else.

    Raises:
        RuntimeError: it waits for an event loop.
    """
    try:
        work.send(None)
    except StopIteration as end:
        result: Result = end.value
        return result
    finally:
        work.close()
    raise RuntimeError("this work waits for an event loop, and there is none")


def is_readable(connection: socket.socket, seconds: float = 0) -> bool:
    """Whether reading would give something within so many seconds, or at once: bytes, the end, or an error."""
    import select

    if connection.fileno() < 0:
        return True
    if not hasattr(select, "poll"):
        return bool(select.select([connection], [], [], seconds)[0])
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
