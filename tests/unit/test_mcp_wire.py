"""The MCP face on the wire: lines over pipes, files and a real process, and HTTP behind uvicorn."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import uvicorn
from mcp import Client, StdioServerParameters

from aima_lib import __version__
from aima_lib.door import OWNER
from aima_lib.infra.home import Home
from aima_mcp.faces.mcp.jsonrpc import Refused, id_in, read_message
from aima_mcp.faces.mcp.stdio import Lines
from tests.mcp_world import DEADLINE, World, opened, serve, until

pytestmark = [
    pytest.mark.anyio,
    # Its client warns that the handshake era ends; that era's clients are who we serve.
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
]


@pytest.fixture
async def world(home: Home, tmp_path: Path, anyio_backend: str) -> AsyncIterator[World]:
    async with opened(home, tmp_path) as found:
        yield found


# Lines


BAD = [
    (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}', -32700, None),
    (b'{"jsonrpc":"2.0","id":3,"method":"ping","params":{"a":1,"a":2}}', -32700, 3),
    (b'{"jsonrpc":"2.0","id":"s","method":"ping","params":{"a":"\\ud800"}}', -32700, "s"),
    (b'{"jsonrpc":"2.0","id":4,"method":"ping","params":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}", -32700, 4),
    (b'{"jsonrpc":"2.0","id":5,"method":"ping","params":{"a":NaN}}', -32700, 5),
    (b'{"jsonrpc":"2.0","id":10,"method":"ping","params":{"a":"\\u0000"}}', -32700, 10),
    (b'{"jsonrpc":"2.0","id":6,"method"', -32700, 6),
    (b"\xff\xfe{}", -32700, None),
    (b"[]", -32600, None),
    (b"7", -32600, None),
    (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600, None),
    (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600, None),
    (b'{"jsonrpc":"2.0","id":8,"method":"ping","params":[1]}', -32600, 8),
    (b'{"jsonrpc":"1.0","id":9,"method":"ping"}', -32600, 9),
]


@pytest.mark.parametrize(("raw", "code", "id"), BAD, ids=range(len(BAD)))
def test_a_message_that_cannot_be_taken_is_refused_with_a_reason(raw: bytes, code: int, id: int | str | None) -> None:
    """Trap 10."""
    with pytest.raises(Refused) as refused:
        read_message(raw)
    reply = refused.value.reply()
    assert (reply.error.code, reply.id) == (code, id)
    assert reply.error.data["code"] == "invalid_argument" and '"id":' in reply.model_dump_json()


def test_an_id_is_told_only_when_it_is_sure() -> None:
    assert id_in(b'{"params":{"id":1},"id":2,') == 2
    assert id_in(b'{"params":{"id":1}') is None
    assert id_in(b'{"id":1,"id":1}') is None
    assert id_in(b'{"id":true}') is None


def test_lines_are_bounded() -> None:
    lines = Lines(longest=10)
    found = [line for chunk in (b"one\ntw", b"o\n\n \r\n", b"0123456789", b"abc\nlast") for line in lines.feed(chunk)] + list(lines.end())
    assert [(line.raw, line.size) for line in found] == [(b"one", 3), (b"two", 3), (b"0123456789", 13), (b"last", 4)]
    with pytest.raises(Refused, match="13 bytes"):
        found[2].message()


HELLO = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}
CALL = {"jsonrpc": "2.0", "id": 99, "method": "tools/call", "params": {"name": "system_info"}}


async def test_no_line_is_left_without_a_reply(world: World) -> None:
    theirs, ours = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=theirs)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve, world.face, ours)
        writer.write(b"\n".join([json.dumps(HELLO).encode(), *(raw for raw, _, _ in BAD), json.dumps(CALL).encode()]))
        writer.write_eof()  # and the last call, which no line break ends, is still answered
        with anyio.fail_after(DEADLINE):
            raw = await reader.read()
    writer.close()
    replies = [json.loads(line) for line in raw.splitlines()]
    assert sorted(str(reply["id"]) for reply in replies) == sorted(str(id) for id in (0, 99, *(id for _, _, id in BAD)))
    assert next(reply for reply in replies if reply["id"] == 99)["result"]["structuredContent"]["version"] == __version__


PROGRAM = """
import os, sys, anyio
from aima_lib import runtime
from aima_lib.infra.home import Home
from aima_mcp.faces.mcp import build

async def main():
    async with runtime.host(Home(sys.argv[1])) as gateway:
        gateway.find = stray(gateway.find)
        await build(gateway).run_stdio()

def stray(find):
    def loud(name):
        print("stray", flush=True)
        os.system("echo child; cat")
        return find(name)
    return loud

anyio.run(main)
"""
PATHS = {"PYTHONPATH": ":".join(sys.path)}


@pytest.mark.parametrize("mode", ("legacy", "auto"))
async def test_a_process_serves_its_stdin(home: Home, mode: str) -> None:
    """What handlers and their children print or read is not the protocol's."""
    server = StdioServerParameters(command=sys.executable, args=["-c", PROGRAM, str(home.path)], env=PATHS)
    with anyio.fail_after(DEADLINE):
        async with Client(server, mode=mode) as client:
            assert client.protocol_version == ("2025-11-25" if mode == "legacy" else "2026-07-28")
            result = await client.call_tool("system_info", {})
            assert len((await client.list_tools()).tools) > 10
    assert result.structured_content is not None and result.structured_content["home"] == str(home.path)


async def test_files_do_for_pipes_and_stdout_carries_nothing_but_messages(home: Home, tmp_path: Path) -> None:
    (tmp_path / "in").write_text(f"{json.dumps(HELLO)}\n{json.dumps(CALL)}\n")
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as sink, anyio.fail_after(DEADLINE):
        done = await anyio.run_process([sys.executable, "-c", PROGRAM, str(home.path)], stdin=source, stdout=sink, env=os.environ | PATHS)
    replies = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [reply["id"] for reply in replies] == [0, 99] and replies[1]["result"]["isError"] is False
    assert b"stray" in done.stderr and b"child" in done.stderr


# HTTP


@pytest.fixture
async def url(world: World, anyio_backend: str) -> AsyncIterator[str]:
    """The face behind uvicorn, with the caller that an application's key check would have found."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        scope["state"] = {"caller": OWNER}
        await world.face.asgi(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(application, host="127.0.0.1", port=0, lifespan="off", ws="none", log_level="warning"))
    async with world.face.lifespan(), anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve)
        await until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/mcp"
        server.force_exit = server.should_exit = True


@pytest.mark.parametrize("mode", ("legacy", "auto"))
async def test_http_serves_both_eras(world: World, url: str, mode: str) -> None:
    heard: list[str | None] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message)

    async with Client(url, mode=mode, message_handler=world.listen) as client:
        assert client.server_capabilities.tools is not None and client.server_capabilities.tools.list_changed is False
        assert not (await client.call_tool("system_info", {})).is_error
        await client.call_tool("thing_say", {}, progress_callback=hear)
        assert heard == ["one ", "two ", "three"]
        if mode == "legacy":
            await client.subscribe_resource("aima://things")
            await client.call_tool("thing_change", {})
            await until(lambda: world.updated() == {"aima://things"})
            return
        async with client.listen(resource_subscriptions=["aima://things"]) as changes:
            await client.call_tool("thing_change", {})
            with anyio.fail_after(DEADLINE):
                assert (await anext(aiter(changes))) is not None


async def test_leaving_over_http_ends_the_work(world: World, url: str) -> None:
    async with Client(url, mode="2026-07-28") as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.call_tool, "thing_hang", {})
        await until(world.inside.under_way.is_set)
        tasks.cancel_scope.cancel()
    await until(lambda: world.inside.log == ["cancelled"])


PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
JSON = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
WRONG = [
    ({"host": "evil.example"}, PING, 421),
    ({"host": "localhost.evil.example:80"}, PING, 421),
    ({"host": "127.0.0.1:1@evil.example"}, PING, 421),
    ({"origin": "http://localhost:1@evil.com"}, PING, 403),
    ({"origin": "http://localhost.evil.com"}, PING, 403),
    ({"origin": "null"}, PING, 403),
    ({"content-type": "application/jsonx"}, PING, 415),
    ({"content-type": "application/json; charset=utf-16"}, PING.decode().encode("utf-16"), 415),
    ({}, PING.decode().encode("utf-16"), 400),
    ({}, b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}', 400),
    ({}, b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"\\udfff"}}', 400),
    ({}, b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":' + b'{"a":' * 5000 + b"1" + b"}" * 5001 + b"}", 400),
    ({}, b" " * (4 * 1024 * 1024 + 1), 413),
]


@pytest.mark.parametrize(("headers", "body", "status"), WRONG, ids=range(len(WRONG)))
async def test_http_refuses_what_leaves_something_to_guess(url: str, headers: Mapping[str, str], body: bytes, status: int) -> None:
    """Traps 5 and 10."""
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(url, content=body, headers=JSON | dict(headers))
    assert answer.status_code == status
    assert answer.json()["error"]["data"]["code"] == "invalid_argument"


@pytest.mark.parametrize("headers", ({"origin": "http://localhost:5173"}, {"host": "LOCALHOST:99"}, {"host": "[::1]:8080"}, {}))
async def test_http_lets_loopback_in(url: str, headers: Mapping[str, str]) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(url, content=PING, headers=JSON | dict(headers))
    assert answer.status_code == 400 and "data" not in answer.json()["error"], "it reached the SDK, which wants a session first"


async def test_a_body_in_chunks_is_bounded_too(url: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(80):
            yield b" " * 65_536

    async with httpx.AsyncClient(trust_env=False) as client:
        try:
            status = (await client.post(url, content=endless(), headers=JSON)).status_code
        except httpx.TransportError:  # the server answered and closed while the client still sent
            status = 413
    assert status == 413


async def test_who_has_no_caller_may_do_nothing(world: World) -> None:
    async with (
        world.face.lifespan(),
        httpx.AsyncClient(transport=httpx.ASGITransport(world.face.asgi), base_url="http://localhost") as client,
    ):
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "system_info", "arguments": {}, "_meta": _ENVELOPE}}
        headers = {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "system_info"}
        answer = await client.post("/mcp", json=body, headers=JSON | headers)
    assert answer.json()["result"]["structuredContent"]["code"] == "permission_denied"


async def test_http_answers_only_while_it_is_up(world: World) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(world.face.asgi), base_url="http://localhost") as client:
        assert (await client.post("/mcp", content=PING, headers=JSON)).status_code == 503


_ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
