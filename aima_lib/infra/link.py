"""A connection to elsewhere, over which httpcore speaks, and from which a thread then takes a long body.

A parser and an event loop copy each byte several times, which costs more than fetching it: a thread that reads into one buffer is thrice as
quick, and leaves the loop to others.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import anyio
import httpcore

from aima_lib.infra.stream import is_readable

Result = TypeVar("Result")
Late = type[httpcore.TimeoutException]
Failed = type[httpcore.NetworkError]


class Link(httpcore.AsyncNetworkStream):
    """A socket that never blocks, in the clear or in TLS."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """What came, at most so many bytes; nothing at the end."""
        return await self._when_able(partial(self._socket.recv, max_bytes), timeout, httpcore.ReadTimeout, httpcore.ReadError)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Hand all of it over."""
        left = memoryview(buffer)
        while left:
            left = left[
                await self._when_able(partial(self._socket.send, left), timeout, httpcore.WriteTimeout, httpcore.WriteError, True) :
            ]

    async def start_tls(self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None) -> Link:
        """Speak TLS from here on, with who can prove to be `server_hostname`."""
        self._socket = secure = ssl_context.wrap_socket(self._socket, server_hostname=server_hostname, do_handshake_on_connect=False)
        is_agreed = False
        try:
            await self._when_able(secure.do_handshake, timeout, httpcore.ConnectTimeout, httpcore.ConnectError)
            is_agreed = True
        finally:
            if not is_agreed:
                await self.aclose()
        return self

    async def aclose(self) -> None:
        """Let it go."""
        anyio.notify_closing(self._socket)
        self._socket.close()

    def get_extra_info(self, info: str) -> Any:
        """What httpcore asks: whether an idle connection has ended, and what TLS agreed on."""
        if info == "is_readable":
            return is_readable(self._socket)
        if info == "ssl_object":
            return self._socket if isinstance(self._socket, ssl.SSLSocket) else None
        return self._socket if info == "socket" else None

    async def _when_able(
        self, call: Callable[[], Result], seconds: float | None, late: Late, failed: Failed, sends: bool = False
    ) -> Result:
        """The result of a call that does not block, as soon as it has one."""
        try:
            with anyio.fail_after(seconds):
                await anyio.lowlevel.checkpoint()
                while True:
                    try:
                        return call()
                    except ssl.SSLWantReadError:
                        await anyio.wait_readable(self._socket)
                    except ssl.SSLWantWriteError:
                        await anyio.wait_writable(self._socket)
                    except BlockingIOError:
                        await (anyio.wait_writable if sends else anyio.wait_readable)(self._socket)
        except TimeoutError as error:
            raise late(str(error)) from error
        except (OSError, anyio.ClosedResourceError) as error:
            raise failed(str(error)) from error

    def fill(self, buffer: memoryview, seconds: float) -> int | None:
        """Blocks its thread, for so long at most: how many bytes came into the buffer, and None at the end. Raises OSError."""
        done, end = 0, time.monotonic() + seconds
        while done < len(buffer):
            try:
                count = self._socket.recv_into(buffer[done:])
            except (BlockingIOError, ssl.SSLWantReadError):
                if done or not is_readable(self._socket, max(0.0, end - time.monotonic())):
                    break
                continue
            if not count:
                return done or None
            done += count
        return done


async def dialled(address: str, port: int, seconds: float | None) -> Link:
    """A connection to an address. Raises httpcore's ConnectError and ConnectTimeout."""
    connection, is_up = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP), False
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with anyio.fail_after(seconds):
            await asyncio.get_running_loop().sock_connect(connection, (address, port))
        is_up = True
    except TimeoutError as error:
        raise httpcore.ConnectTimeout(str(error)) from error
    except OSError as error:
        raise httpcore.ConnectError(str(error)) from error
    finally:
        if not is_up:
            connection.close()
    return Link(connection)
