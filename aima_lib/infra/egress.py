"""The only way out of this machine.

A URL is taken in its plain form or not at all. A name is resolved here; when one of its addresses is neither public nor allowed, nothing
is sent, else the connection goes to an address that was looked at, while TLS and Host keep the name. Redirects are followed here, each
checked like the first request.

A proxy of the host's environment is its owner's choice and is used. Places are checked before it is asked, as far as their names resolve
here; a name that only the proxy can resolve is the proxy's to judge.
"""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio

from aima_lib.errors import FailedPrecondition, InvalidArgument, Unavailable
from aima_lib.infra.places import (
    ELSEWHERE,
    METADATA,
    OWNERS,
    PLAIN,
    Address,
    Barred,
    Place,
    carried,
    configured,
    listed,
    place,
    public,
    redirected,
    shown,
)  # fmt: skip

if TYPE_CHECKING:
    import httpx
    from httpx import Response as Response

    from aima_lib.infra.link import Link

MOST_REDIRECTS, MOST_ADDRESSES = 5, 8
DIRECT = 512 << 10  # of a body; a connection less is cheaper than copying so much
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
HARMLESS = frozenset({"accept", "accept-encoding", "range", "if-range", "user-agent"})
SAID = {"User-Agent": "aima", "Accept": "*/*", "Accept-Encoding": "gzip, deflate"}


class Again(Unavailable):
    """Worth another try at once; `wait_seconds` is what the server asked for."""

    wait_seconds: float | None = None


class Rest:
    """What is left of a long body. Threads take it, one after the other."""

    def __init__(self, link: Link, left: int, name: str, stall_seconds: float) -> None:
        self.left = left
        self._link, self._name, self._stall = link, name, stall_seconds
        self._silent = 0.0

    def fill(self, buffer: memoryview, seconds: float) -> int:
        """Bytes of it into a buffer; none when none came for so long. Blocks.

        Raises:
            Again: it ended too soon, or no byte came for longer than a stall may last.
        """
        began = time.monotonic()
        try:
            count = self._link.fill(buffer[: self.left], seconds)
        except OSError as error:
            raise Again(f"{self._name} could not be read: {error}", hint=ELSEWHERE) from error
        if count is None:
            raise Again(f"{self._name} ended {self.left} bytes too soon", hint=ELSEWHERE)
        self._silent = 0.0 if count else self._silent + time.monotonic() - began
        if self._silent > self._stall:
            raise Again(f"{self._name}: no byte for {self._stall:g} s", hint=ELSEWHERE)
        self.left -= count
        return count


class Egress:
    """Sends requests to places that are public, or that the owner named.

    allow: `[egress] allow`: host:port, an address, or a network.
    endpoints: URLs of the owner's configuration; asked for only when a place is not public.
    resolve: the addresses of a name.

    Raises:
        InvalidArgument: an entry of `allow` is neither.
    """

    def __init__(
        self,
        allow: Iterable[str] = (),
        endpoints: Callable[[], Iterable[str]] = tuple,
        *,
        resolve: Resolve | None = None,
        connect_seconds: float = 10,
        stall_seconds: float = 30,
    ) -> None:
        self._endpoints, self._resolve = endpoints, resolve or _looked_up
        self._connect, self._stall = connect_seconds, stall_seconds
        self._transports: dict[str | None, httpx.AsyncHTTPTransport] = {}
        self._networks, self._places = [], set[tuple[str, int]]()
        for entry in allow:
            try:
                self._networks.append(ip_network(entry))
            except ValueError:
                self._places.add(listed(entry))

    async def addresses(self, host: str, port: int) -> list[Address]:
        """Every address of a host.

        Raises:
            Barred: one of them is neither public nor allowed.
            OSError: it has none.
        """
        found = await self._all(host, port)
        for address in found:
            allowed = public(address) or any(address in network for network in self._networks)
            if not allowed and not await self._named(host, port, address):
                raise Barred(f"{host}:{port} is not a public place", hint=OWNERS, details={"host": host, "port": port})
        return found[:MOST_ADDRESSES]

    async def _all(self, host: str, port: int) -> list[Address]:
        try:
            return [ip_address(host)]
        except ValueError:
            return [ip_address(text) for text in await self._resolve(host, port)]

    async def _named(self, host: str, port: int, address: Address) -> bool:
        """Whether the owner named this place: itself, or by a name that leads to the same address and port."""
        places = self._places | {(at.host, at.port) for at in map(configured, self._endpoints()) if at}
        if (str(address), port) in places:
            return True
        inner = carried(address)
        if inner.is_link_local or inner.is_multicast or inner.is_unspecified or inner in METADATA:
            return False  # no name is meant to lead there: only the address itself opens it
        names = [name for name, at in places if at == port]
        return host in names or any([address in await self._known(name, port) for name in names])

    async def _known(self, name: str, port: int) -> list[Address]:
        try:
            return await self._all(name, port)
        except OSError:
            return []

    @asynccontextmanager
    async def open(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[Response]:
        """The response to a GET after at most five redirects, its body not read yet.

        Only headers that tell nothing about who asks follow to another scheme, host or port.

        Raises:
            Barred: it, or a place it redirects to, may not be reached.
            InvalidArgument: the URL is not in its plain form, or redirects too often.
            Again: the network failed in a way that may pass.
        """
        target, sent = place(url), SAID | dict(headers)
        for _ in range(MOST_REDIRECTS + 1):
            async with self._answer(url, target, sent) as answer:
                location = answer.headers.get("location") if answer.status_code in (301, 302, 303, 307, 308) else None
                if location is None:
                    yield answer
                    return
            url, after = redirected(url, target, location)
            sent = sent if after == target else {key: value for key, value in sent.items() if key.lower() in HARMLESS}
            target = after
        raise InvalidArgument(f"{shown(url)}: more than {MOST_REDIRECTS} redirects", hint="name another mirror")

    async def body(self, response: Response) -> AsyncIterator[bytes | Rest]:
        """The body as it comes, within `open`. Of a long one only the beginning: then the rest, for a thread to take from the connection,
        which is not used again.
        """
        length, link = response.headers.get("content-length", ""), response.extensions.get("network_stream")
        is_direct = length.isdigit() and "transfer-encoding" not in response.headers and hasattr(link, "fill")
        left = int(length) if is_direct else 0
        async with aclosing(response.aiter_raw()) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                yield chunk
                left -= len(chunk)
                if link is not None and left >= DIRECT:
                    yield Rest(link, left, shown(str(response.request.url)), self._stall)
                    return

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """The status that a POST is answered with. A redirect is an answer like any other, and not followed. Raises as `open` does."""
        async with self._answer(url, place(url), SAID | dict(headers), body) as answer:
            return answer.status_code

    @asynccontextmanager
    async def send(self, method: str, url: str, headers: Mapping[str, str], content: bytes = b"") -> AsyncIterator[Response]:
        """The response to one request with a body, whatever its status, its own body not read yet. No redirect is followed: what is sent
        is meant for the place that was named. Raises as `open` does.
        """
        async with self._answer(url, place(url), SAID | dict(headers), content or None, method) as answer:
            yield answer

    @asynccontextmanager
    async def _answer(
        self, url: str, target: Place, headers: Mapping[str, str], body: bytes | None = None, method: str | None = None
    ) -> AsyncIterator[Response]:
        import httpcore
        import httpx

        limits = httpx.Timeout(self._stall, connect=self._connect, pool=None).as_dict()
        try:
            transport = await self._transport(target)
            request = httpx.Request(
                method or ("GET" if body is None else "POST"), url, headers=dict(headers), content=body, extensions={"timeout": limits}
            )
            response = await transport.handle_async_request(request)
            response.request = request
            try:
                yield response
            finally:
                await response.aclose()
        except httpx.InvalidURL as error:
            raise InvalidArgument(f"{shown(url)}: {error}", hint=PLAIN) from error
        except (httpx.TimeoutException, httpcore.TimeoutException) as error:
            waited = "no connection in time" if isinstance(error, httpx.ConnectTimeout) else f"no byte for {self._stall:g} s"
            raise Again(f"{shown(url)}: {waited}", hint=ELSEWHERE) from error
        except (httpx.HTTPError, httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise Again(f"{shown(url)} could not be read: {str(error) or type(error).__name__}", hint=ELSEWHERE) from error

    async def _transport(self, target: Place) -> httpx.AsyncHTTPTransport:
        proxy = _proxy(target)
        if proxy is not None:
            try:
                with anyio.fail_after(self._connect):
                    await self.addresses(target.host, target.port)
            except OSError:  # a timeout, too: the proxy may know better
                pass
        if proxy not in self._transports:
            self._transports[proxy] = _pinned(self.addresses) if proxy is None else _through(proxy)
        return self._transports[proxy]

    async def close(self) -> None:
        """Give the connections back."""
        transports, self._transports = self._transports, {}
        for transport in transports.values():
            await transport.aclose()


def _pinned(addresses: Callable[[str, int], Awaitable[Sequence[Address]]]) -> httpx.AsyncHTTPTransport:
    """httpx's transport, over connections to the addresses that were looked at."""
    import httpcore
    import httpx

    from aima_lib.infra.link import dialled

    class Dialer(httpcore.AnyIOBackend):
        async def connect_tcp(
            self,
            host: str,
            port: int,
            timeout: float | None = None,
            local_address: str | None = None,  # noqa: ARG002
            socket_options: Any = None,  # noqa: ARG002
        ) -> httpcore.AsyncNetworkStream:
            failed: Exception = httpcore.ConnectError(f"{host} has no address")
            try:
                with anyio.fail_after(timeout):
                    found = await addresses(host, port)
            except TimeoutError as error:
                raise httpcore.ConnectTimeout("its name was not resolved in time") from error
            except OSError as error:
                raise httpcore.ConnectError(str(error)) from error
            for address in found:
                try:
                    return await dialled(str(address), port, timeout and timeout / len(found))
                except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                    failed = error
            raise failed

    class Pinned(httpx.AsyncHTTPTransport):
        def __init__(self) -> None:  # should httpx come to keep its pool elsewhere, nothing is sent at all
            secure, idle = httpx.create_ssl_context(), httpx.Limits().keepalive_expiry
            self._pool = httpcore.AsyncConnectionPool(secure, None, 16, 4, idle, network_backend=Dialer())

    return Pinned()


def _through(proxy: str) -> httpx.AsyncHTTPTransport:
    import httpx

    if urlsplit(proxy).scheme not in ("http", "https"):
        raise FailedPrecondition("the proxy of the host's environment is no HTTP proxy", hint="set HTTPS_PROXY to http://host:port")
    return httpx.AsyncHTTPTransport(proxy=proxy)


def _proxy(target: Place) -> str | None:
    """The proxy that the host's environment names for this place."""
    from urllib.request import getproxies, proxy_bypass

    host = target.host if ":" in target.host else f"{target.host}:{target.port}"
    known = getproxies()
    proxy = None if proxy_bypass(host) else known.get(target.scheme) or known.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


async def _looked_up(host: str, port: int) -> list[str]:
    rows = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(row[4][0]) for row in rows))
