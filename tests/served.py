"""A host inside the test that listens on a real port, with units of the test's own beside AIMA's, and clients that reach it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx

from aima_lib.door import OWNER, Caller
from aima_lib.gateway import Gateway
from aima_lib.infra.home import Home
from aima_lib.registry import Registry
from aima_lib.runtime import host, own_registry
from aima_mcp import server
from tests.workshop import agreed, imported, write_handlers, write_schemas

DEADLINE = 20


@dataclass
class Served:
    """A host that listens, a client with the owner's key, and what the handlers keep."""

    gateway: Gateway
    home: Home
    url: str
    http: httpx.AsyncClient
    inside: Any

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def key(self, *scopes: str, by: Caller = OWNER, **more: Any) -> tuple[str, str]:
        """A new key: its id and its text."""
        made = await agreed(self.gateway, "key.create", {"name": "guest", "scopes": list(scopes), **more}, caller=by)
        return made["key"]["id"], made["secret"]

    def client(self, key: str) -> httpx.AsyncClient:
        """A client with this key."""
        return client_of(self.url, key)

    async def raw(self, request: bytes, *, wait: bool = True) -> bytes:
        """What the host sends for these bytes until it closes."""
        stream = await anyio.connect_tcp("127.0.0.1", self.port)
        async with stream:
            await stream.send(request)
            answer = b""
            with anyio.move_on_after(DEADLINE):
                try:
                    while wait:
                        answer += await stream.receive()
                except anyio.EndOfStream:
                    pass
            return answer


def client_of(url: str, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=DEADLINE)


def registry(folder: Path, world: Sequence[Mapping[str, Any]], handlers: str) -> tuple[Registry, str]:
    """AIMA's units and the test's; and the name of the package that the test's handlers are in."""
    name = f"handlers_{folder.name.replace('-', '_')}"
    made = folder / name
    package = imported(folder, name) if made.exists() else write_handlers(folder, name, handlers)
    own = Registry.load(package, write_schemas(folder / "schemas", *world))
    return Registry(dict(own_registry()) | dict(own)), name


@asynccontextmanager
async def serving(home: Home, folder: Path, world: Sequence[Mapping[str, Any]], handlers: str) -> AsyncIterator[Served]:
    """Host `home` and serve it until the block ends."""
    known, name = registry(folder, world, handlers)
    urls: list[str] = []
    ready = anyio.Event()

    def began(url: str) -> None:
        urls.append(url)
        ready.set()

    with server.listen("127.0.0.1", 0) as listener:
        async with host(home, registry=known) as gateway, anyio.create_task_group() as tasks:
            tasks.start_soon(server._serve, gateway, "127.0.0.1", listener, began)
            await ready.wait()
            async with client_of(urls[0], home.key()) as owner:
                yield Served(gateway, home, urls[0], owner, sys.modules[f"{name}.only"])
                await owner.post("/shutdown")
