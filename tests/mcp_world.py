"""A host whose units do what the tests of the MCP face need, and clients that reach it over real lines."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
from mcp import Client

from aima_lib.gateway import Gateway
from aima_lib.infra.home import Home
from aima_lib.registry import Registry
from aima_lib.runtime import host, own_registry
from aima_mcp.faces.mcp import McpFace, build
from aima_mcp.faces.mcp.stdio import over
from tests.workshop import unit, write_handlers, write_schemas

ERAS = ("legacy", "2026-07-28")
DEADLINE = 30
ID = {"type": "object", "additionalProperties": False, "properties": {"thing_id": {"type": "string"}}}
ANSWER = {"type": "object", "required": ["answer"], "additionalProperties": False, "properties": {"answer": {"type": "integer"}}}
TEXT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}
SAME = {"readOnlyHint": False, "idempotentHint": True, "destructiveHint": False, "openWorldHint": False}
SEEN: dict[str, Any] = {"scope": "read", "mimeType": "application/json", "outputSchema": TEXT, "updatedBy": ["thing.changed"]}
WORLD = (
    unit("command", "thing.fetch", durable=True, inputSchema=ID, outputSchema=ANSWER, primary="answer", annotations=SAME),
    unit("command", "thing.say", streamSchema=TEXT, outputSchema=TEXT, primary="text"),
    unit("command", "thing.change", inputSchema=ID, outputSchema={"type": "object", "properties": {}}),
    unit("query", "thing.hang", streamSchema=TEXT),
    unit("query", "thing.crash"),
    unit("query", "thing.name", outputSchema=TEXT, primary="text"),
    unit("event", "thing.changed", payloadSchema=ID),
    unit("resource", "thing.all", uriTemplate="aima://things", **SEEN),
    unit("resource", "thing.one", uriTemplate="aima://thing/{thing_id}", **SEEN),
)
HANDLERS = """
gate, under_way, log = anyio.Event(), anyio.Event(), []

@handles("thing.fetch")
async def fetch(ctx, thing_id=None):
    await ctx.send({"phase": "fetching", "message": "half", "completed": 50, "total": 100})
    await gate.wait()
    if thing_id == "none":
        raise NotFound("no thing called none", hint="look", next=[{"unit": "thing.name", "arguments": {}}])
    await ctx.send({"phase": "checking", "message": "all of it", "completed": 10, "total": 10})
    return {"answer": 42}

@handles("thing.say")
async def say(ctx):
    for word in ("one ", "two ", "three"):
        await ctx.send({"text": word})
    return {"text": "one two three"}

@handles("thing.hang")
async def hang(ctx):
    try:
        under_way.set()
        await anyio.sleep_forever()
    finally:
        log.append("cancelled")

@handles("thing.change")
async def change(ctx, thing_id=None):
    ctx.services.events.publish("thing.changed", {} if thing_id is None else {"thing_id": thing_id})
    return {}

@handles("thing.crash")
async def crash(ctx):
    raise RuntimeError("/root/secret")

@handles("thing.name")
async def name(ctx):
    return {"text": "half \\udcff a pair"}

@handles("thing.all")
async def all_things(ctx):
    return {"text": "things"}

@handles("thing.one")
async def one_thing(ctx, thing_id):
    if thing_id == "none":
        raise NotFound("no thing called none")
    return {"text": thing_id}
"""


@dataclass
class World:
    """A host with units of a test's own beside AIMA's, its MCP face, and what the handlers keep."""

    gateway: Gateway
    face: McpFace
    inside: Any
    heard: list[Any] = field(default_factory=list)

    async def listen(self, message: Any) -> None:
        """A client's message handler."""
        self.heard.append(message)

    def updated(self) -> set[str]:
        """The resources that a client was told have changed."""
        return {str(message.params.uri) for message in self.heard if isinstance(message, types.ResourceUpdatedNotification)}


@asynccontextmanager
async def opened(home: Home, tmp_path: Path) -> AsyncIterator[World]:
    """Host `home` with the test's units too."""
    name = f"handlers_{tmp_path.name.replace('-', '_')}"
    package = write_handlers(tmp_path, name, HANDLERS)
    own = Registry.load(package, write_schemas(tmp_path / "schemas", *WORLD))
    registry = Registry(dict(own_registry()) | dict(own))
    async with host(home, registry=registry) as gateway:
        yield World(gateway, build(gateway, profile="full", wait_seconds=0.2), sys.modules[f"{name}.only"])


async def until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(DEADLINE):
        while not true():
            await anyio.sleep(0.01)


def text_of(result: types.CallToolResult) -> str:
    assert isinstance(result.content[0], types.TextContent)
    return result.content[0].text


async def serve(face: McpFace, end: socket.socket) -> None:
    async with over(end.fileno(), end.fileno()) as (incoming, outgoing):
        await face.server.run(incoming, outgoing, face.server.create_initialization_options())
    end.close()


@asynccontextmanager
async def client_of(face: McpFace, mode: str = "2026-07-28") -> AsyncIterator[Client]:
    """A client at one end of a socket pair, the face at the other, and lines between them."""
    theirs, ours = socket.socketpair()
    with theirs:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve, face, ours)
            async with Client(over(theirs.fileno(), theirs.fileno()), mode=mode) as client:
                yield client
            theirs.shutdown(socket.SHUT_WR)
