"""How an app's containers reach this AIMA: a listener on the bridge of the app's own network, for /v1 or /metrics and nothing else.

The host listens at loopback, where no container can come. Its gateway into the app's network is an address of this machine too, so one
listener there, for that network's addresses alone, passes requests on to the host. The key that the app was given is judged by the host as
any other. On a daemon whose bridges are in another machine (Docker Desktop, rootless Docker) nobody can listen there, and that is said.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from aima_lib.errors import FailedPrecondition

HEAD_BYTES, HEAD_SECONDS, PIECE, MOST = 64 << 10, 10.0, 64 << 10, 128
PATHS = {"inference": ("/v1/",), "metrics": ("/metrics",)}
SCOPES = {"inference": ("inference",), "metrics": ("read",)}
FREEBIND = 15  # IP_FREEBIND of Linux: an address may be listened at before it is there
OURS = (b"host", b"connection", b"proxy-connection", b"keep-alive")  # headers that are between two neighbours
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bridge:
    """A network of Docker's as this machine sees it: our address in it, and the addresses that are its containers'."""

    gateway: str
    subnet: str


class Links:
    """The listeners of all apps. `url` says where the host answers now; None where it does not listen."""

    def __init__(self, url: Callable[[], str | None]) -> None:
        self._url = url
        self._open: dict[str, tuple[Bridge, int, str, asyncio.Server]] = {}

    async def keep(self, app_id: str, kind: str, bridge: Bridge, port: int) -> None:
        """Listen for an app; again, nothing happens. Podman makes a bridge with the first container, so its address may be still to come.

        Raises:
            FailedPrecondition: somebody has the port, or this machine cannot listen where it has no address yet.
        """
        known = self._open.get(app_id)
        if known and known[:3] == (bridge, port, kind) and known[3].is_serving():
            return
        await self.close(app_id)
        relay = _Relay(self._url, PATHS[kind], bridge)
        try:
            server = await asyncio.start_server(relay.answer, sock=_bound(bridge.gateway, port), limit=HEAD_BYTES)
        except OSError as error:
            raise _unreachable(app_id, bridge, port, error) from error
        self._open[app_id] = (bridge, port, kind, server)

    def prove(self, app_id: str) -> None:
        """Raise FailedPrecondition where a container of the app runs and its network's side of the bridge is no address of this machine."""
        if (known := self._open.get(app_id)) is None:
            return
        with socket.socket() as probe:
            try:
                probe.bind((known[0].gateway, 0))
            except OSError as error:
                raise _unreachable(app_id, known[0], known[1], error) from error

    def is_kept(self, app_id: str) -> bool:
        """Whether it listens for an app."""
        return app_id in self._open

    async def close(self, app_id: str) -> None:
        """Stop listening for an app."""
        if known := self._open.pop(app_id, None):
            known[3].close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(known[3].wait_closed(), 1)

    async def close_all(self) -> None:
        """Stop listening."""
        for app_id in [*self._open]:
            await self.close(app_id)


def _bound(address: str, port: int) -> socket.socket:
    bound = socket.socket()
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "linux":
            bound.setsockopt(socket.IPPROTO_IP, FREEBIND, 1)
        bound.bind((address, port))
    except OSError:
        bound.close()
        raise
    return bound


def _unreachable(app_id: str, bridge: Bridge, port: int, error: OSError) -> FailedPrecondition:
    return FailedPrecondition(
        f"nobody can listen on {bridge.gateway} port {port}, where the containers of {app_id} would reach AIMA: {error.strerror}",
        hint="Docker Desktop and rootless Docker keep their networks in a machine of their own: there an app has no link yet; "
        "config {link: false} installs it without",
        details={"address": bridge.gateway, "port": port},
    )


class _Relay:
    """One request a connection: its head is looked at, and what follows is passed on in both directions as it comes."""

    def __init__(self, url: Callable[[], str | None], paths: tuple[str, ...], bridge: Bridge) -> None:
        self._url, self._paths, self._net = url, paths, ipaddress.ip_network(bridge.subnet, strict=False)
        self._count = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Whoever connected. What goes wrong ends this connection alone."""
        self._count += 1
        try:
            await self._answer(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("a request by a link broke off: %s", error)
        finally:
            self._count -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")[0]
        if ipaddress.ip_address(peer.partition("%")[0]) not in self._net:
            return  # by a way around the bridge: it is not told that anybody listens
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_SECONDS)
        line, _, rest = head.partition(b"\r\n")
        if self._count > MOST:
            await _refuse(writer, 503, "too many requests at a time")
        elif not self._is_allowed(line):
            await _refuse(writer, 404, f"here is {' and '.join(self._paths)} and nothing else")
        elif (url := self._url()) is None:
            await _refuse(writer, 503, "the process that hosts AIMA does not listen: aima start")
        else:
            await self._pass_on(line, rest, url, reader, writer)

    def _is_allowed(self, line: bytes) -> bool:
        parts = line.split(b" ")
        if len(parts) != 3 or parts[0] not in (b"GET", b"POST", b"HEAD", b"OPTIONS"):
            return False
        path = parts[1].partition(b"?")[0].decode("latin-1")
        return (
            ".." not in path
            and "//" not in path
            and any(path == one or (one.endswith("/") and path.startswith(one)) for one in self._paths)
        )

    async def _pass_on(self, line: bytes, rest: bytes, url: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to = urlsplit(url)
        kept = [row for row in rest.split(b"\r\n") if row and row.partition(b":")[0].strip().lower() not in OURS]
        head = b"\r\n".join([line, b"Host: " + to.netloc.encode(), b"Connection: close", *kept]) + b"\r\n\r\n"
        theirs, ours = await asyncio.open_connection(to.hostname, to.port)
        try:
            ours.write(head)
            sending = asyncio.ensure_future(_pump(reader, ours))
            try:
                await _pump(theirs, writer)
            finally:
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await sending
        finally:
            ours.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(PIECE):
        writer.write(piece)
        await writer.drain()


async def _refuse(writer: asyncio.StreamWriter, status: int, message: str) -> None:
    body = b'{"error":{"message":"%b","code":%d}}' % (message.encode(), status)
    reason = {404: b"Not Found", 503: b"Service Unavailable"}[status]
    head = b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (
        status,
        reason,
        len(body),
    )
    writer.write(head + body)
    await writer.drain()


def bridge_of(network: Mapping[str, object]) -> Bridge:
    """What Docker says of a network, as a Bridge.

    Raises:
        FailedPrecondition: it has no address of IPv4.
    """
    ipam = network.get("IPAM")
    rows = ipam.get("Config") or [] if isinstance(ipam, Mapping) else []
    for row in rows:
        if ":" not in str(row.get("Subnet", "")) and row.get("Gateway"):
            return Bridge(str(row["Gateway"]).partition("/")[0], str(row["Subnet"]))
    raise FailedPrecondition(
        f"the network {network.get('Name')} has no gateway of IPv4", hint="config {link: false} installs the app without a link"
    )
