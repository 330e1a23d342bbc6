"""`aima serve`: host a home and answer over HTTP until somebody ends it."""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import anyio

from aima_lib import __version__, config, runtime
from aima_lib.errors import FailedPrecondition, InvalidArgument
from aima_lib.gateway import Gateway
from aima_lib.infra.home import Home
from aima_lib.launchers import process

if TYPE_CHECKING:
    import uvicorn

log = logging.getLogger(__name__)
ENGINE_SECONDS = 5.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


async def serve(
    home: Home,
    *,
    host: str | None = None,
    port: int | None = None,
    behind_proxy: bool = False,
    ready: Callable[[str], None] | None = None,
    conformance: bool = False,
) -> None:
    """Host `home` and serve until SIGTERM, SIGINT or POST /shutdown. `ready` gets the URL once it answers; `conformance` as for App.

    behind_proxy: a proxy in front speaks TLS, so that an address beyond loopback may be bound.

    Raises:
        FailedPrecondition: the port is taken, or another process hosts the home, who it is is named; or others could read along.
        InvalidArgument: config.toml is wrong, or nobody can listen on that address.
    """
    home.make()
    settings = config.load(home.path)["server"]
    bound, number = host or settings["host"], settings["port"] if port is None else port
    if not (behind_proxy or settings["behind_proxy"]):
        await anyio.to_thread.run_sync(refuse_open, bound)
    # A hosted home is refused by runtime.host, which names the host; its port being taken would say less.
    with contextlib.ExitStack() as stack:
        listener = None if home.host() else stack.enter_context(await anyio.to_thread.run_sync(listen, bound, number))
        async with runtime.host(home) as gateway:
            listener = listener or stack.enter_context(await anyio.to_thread.run_sync(listen, bound, number))
            stop_engines = await _serve(gateway, bound, listener, ready, conformance)
            if stop_engines:
                await _end_engines(gateway)
    if stop_engines:
        await anyio.to_thread.run_sync(_sweep, home)


async def _serve(
    gateway: Gateway, bound: str, listener: socket.socket, ready: Callable[[str], None] | None, conformance: bool = False
) -> bool:
    """Answer requests until told to stop; whether engines are to stop too."""
    from aima_mcp.app import App

    asked: list[bool] = []

    def stop(stop_engines: bool) -> None:
        asked.append(stop_engines)
        server.should_exit = True

    gateway.services.home.key()  # whoever reads that we listen can read the key
    app = App(gateway, bound, stop, conformance=conformance)
    url = _url(bound, listener)

    def started() -> None:
        gc.collect()
        gc.set_threshold(20_000, 20, 20)  # requests leave few cycles; looking for them each 700 objects costs more than they do
        gc.freeze()  # what lives now lives to the end: the collector need not look at it again
        gateway.services.home.announce(url, __version__)
        log.info("listening on %s", url)
        if ready is not None:
            ready(url)

    server = _uvicorn(app, started)
    async with app.lifespan():
        await server.serve(sockets=[listener])
    return any(asked)


def _uvicorn(app: Any, started: Callable[[], None]) -> uvicorn.Server:
    import uvicorn

    from aima_mcp.guard import KEEP_ALIVE_SECONDS, GuardedProtocol, open_more

    open_more()

    class Server(uvicorn.Server):
        """uvicorn, with our own start and end."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            for one in self.servers:
                one.close()
            await app.close()
            await super().shutdown(sockets)

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """As uvicorn's, but the signal ends there: raised again, it would kill us before the home is closed."""
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    return Server(
        uvicorn.Config(
            app,
            http=GuardedProtocol,
            ws="none",
            lifespan="off",
            loop="asyncio",
            access_log=False,
            log_config=None,
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=1,
        )
    )


def refuse_open(host: str) -> None:
    """Refuse an address that others can reach: keys would go there in the clear, as AIMA itself speaks no TLS. Blocking.

    Raises:
        FailedPrecondition: it is beyond loopback.
        InvalidArgument: it is no address.
    """
    try:
        found = {
            str(row[4][0]).partition("%")[0]
            for row in socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        }
    except OSError as error:
        raise InvalidArgument(f"{host} is no address of this machine: {error.strerror}", hint="127.0.0.1 is the safe one") from error
    if not all(ipaddress.ip_address(address).is_loopback for address in found):
        raise FailedPrecondition(
            f"{host or 'every address'} is beyond this machine, and without TLS others could read keys on the way",
            hint="bind 127.0.0.1 and come through SSH, or put a proxy that speaks TLS in front and say --behind-proxy",
            details={"host": host},
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any free one. Blocking.

    Raises:
        FailedPrecondition: the port is taken; who holds it is named.
        InvalidArgument: this machine has no such address, or the port may not be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise InvalidArgument(f"{host} is no address of this machine: {error.strerror}", hint="127.0.0.1 is the safe one") from error
    listener = socket.socket(family, kind, protocol)  # asyncio sets TCP_NODELAY only where the protocol is named: 40 ms a reply otherwise
    try:
        if sys.platform != "win32":  # there it would let two processes share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise _why_not(host, port, error) from error
    listener.setblocking(False)
    return listener


def _why_not(host: str, port: int, error: OSError) -> FailedPrecondition | InvalidArgument:
    import errno

    if error.errno != errno.EADDRINUSE:
        return InvalidArgument(f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}", hint="take a port above 1023")
    holder = process.port_holder(port) or "another program"
    hint = "end it, or take another port: --port 0 takes any"
    return FailedPrecondition(f"port {port} is taken by {holder}", hint=hint, details={"port": port, "holder": holder})


def _url(bound: str, listener: socket.socket) -> str:
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(bound, bound)
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


async def _end_engines(gateway: Gateway) -> None:
    """End every engine at once. What services want stays as it is, so they come back with the next host."""
    engines = gateway.services.engines
    alive = [row["id"] for row in gateway.services.store.find("instance") if row["status"] in ("starting", "ready")]
    async with anyio.create_task_group() as tasks:
        for id in alive:
            tasks.start_soon(engines.end, id, ENGINE_SECONDS)


def _sweep(home: Home) -> None:
    """End what the reconciler may have begun to bring back meanwhile. Blocking."""
    for folder in (home.path / "instances").iterdir():
        kept = process.read_state(home.path, folder.name)
        if kept is not None and kept.is_running():
            process.stop(home.path, folder.name, ENGINE_SECONDS)
