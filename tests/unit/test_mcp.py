"""The MCP face, driven by the SDK's own client in both eras: in memory, over a real process's pipes, over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import anyio
import httpx
import mcp_types as types
import pytest
import uvicorn
from mcp import Client, StdioServerParameters
from mcp.shared.exceptions import MCPError

from aima_lib import __version__, config, runtime, units
from aima_lib.door import OWNER
from aima_lib.errors import NotFound
from aima_lib.gateway import Gateway
from aima_lib.infra.home import Home
from aima_lib.infra.store import Store
from aima_lib.registry import Registry
from aima_mcp.faces.mcp import McpFace, build
from aima_mcp.faces.mcp_json import Refused, id_in, read_message
from aima_mcp.faces.mcp_results import TEXT_BYTES, Progress, failure, success, tool, unfinished
from aima_mcp.faces.mcp_stdio import Lines, over
from aima_mcp.faces.mcp_watch import concerns
from tests.workshop import unit, write_handlers, write_schemas

pytestmark = [
    pytest.mark.anyio,
    # Its client warns that the handshake era ends; that era's clients are who we serve.
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
]
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
        self.heard.append(message)


@pytest.fixture
async def world(home: Home, tmp_path: Path, request: pytest.FixtureRequest, anyio_backend: str) -> AsyncIterator[World]:
    name = f"handlers_{tmp_path.name.replace('-', '_')}"
    package = write_handlers(tmp_path, name, HANDLERS)
    own = Registry.load(package, write_schemas(tmp_path / "schemas", *WORLD))
    registry = Registry(dict(Registry.load(units)) | dict(own))
    store = Store(home.path / "aima.db")
    gateway = runtime._build(home, config.load(home.path), registry, store)
    async with runtime._running(gateway):
        yield World(gateway, build(gateway, wait_seconds=0.2), sys.modules[f"{name}.only"])
    store.close()


async def until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(DEADLINE):
        while not true():
            await anyio.sleep(0.01)


# Tools


@pytest.mark.parametrize("mode", ERAS)
async def test_every_unit_is_a_tool_as_its_file_says(world: World, mode: str) -> None:
    async with Client(world.face.server, mode=mode) as client:
        listed = await client.list_tools()
    assert listed.next_cursor is None
    assert [found.name for found in listed.tools] == sorted(
        unit.name.replace(".", "_") for unit in world.gateway.registry.of("command", "query")
    )
    for found in listed.tools:
        written = world.gateway.registry[found.name.replace("_", ".", 1)].definition
        wire = found.model_dump(by_alias=True, exclude_unset=True)
        assert wire["inputSchema"] == written["inputSchema"]
        assert json.dumps(wire["inputSchema"]["properties"]) == json.dumps(written["inputSchema"]["properties"]), "in the file's order"
        assert wire["annotations"] == written["annotations"]
        assert (wire["title"], wire["description"]) == (written["title"], written["description"])
        if not written.get("durable"):
            assert wire["outputSchema"] == written["outputSchema"]


def test_a_durable_tool_may_answer_with_its_run(world: World) -> None:
    fetch = world.gateway.registry["thing.fetch"]
    schema = tool(fetch)["outputSchema"]
    assert "required" not in schema and set(schema["properties"]) == {"answer", "run"}
    assert fetch.definition["outputSchema"]["required"] == ["answer"], "the unit's own schema stays"


@pytest.mark.parametrize("mode", ERAS)
async def test_the_main_field_comes_first_and_the_whole_is_structured(world: World, mode: str) -> None:
    async with Client(world.face.server, mode=mode) as client:
        result = await client.call_tool("unit_search", {"query": "wait for a run", "limit": 1})
    assert not result.is_error and result.structured_content is not None
    assert result.structured_content["units"][0]["name"] == "run.wait"
    assert json.loads(_text(result))[0]["name"] == "run.wait"


@pytest.mark.parametrize("mode", ERAS)
async def test_an_error_says_what_to_do(world: World, mode: str) -> None:
    async with Client(world.face.server, mode=mode) as client:
        missing = await client.call_tool("run_get", {"run_id": "nothing"})
        mistyped = await client.call_tool("run_list", {"dry_run": True})
    assert missing.is_error and missing.structured_content is not None and missing.structured_content["code"] == "not_found"
    assert mistyped.is_error and "dry_run" in _text(mistyped)
    assert 'next: call unit_describe with {"name":"run.list"}' in _text(mistyped)


@pytest.mark.parametrize("mode", ERAS)
async def test_an_unknown_tool_is_a_protocol_error_naming_the_nearest(world: World, mode: str) -> None:
    async with Client(world.face.server, mode=mode) as client:
        with pytest.raises(MCPError) as refused:
            await client.session.call_tool("system_inf", {})
    assert refused.value.code == types.INVALID_PARAMS
    assert "system_info" in refused.value.data["hint"]


@pytest.mark.parametrize("mode", ERAS)
async def test_text_from_inside_never_reaches_a_client(world: World, mode: str) -> None:
    """Trap 2: the SDK hands an uncaught exception's text to handshake clients."""

    async def crash(ctx: Any, params: Any) -> Any:
        raise RuntimeError("/root/secret")

    world.face.server.add_request_handler("x/crash", types.RequestParams, crash)
    async with Client(world.face.server, mode=mode) as client:
        with pytest.raises(MCPError) as refused:
            await client.session.send_request(_Crash(), types.EmptyResult)
        result = await client.call_tool("thing_crash", {})
    assert refused.value.code == types.INTERNAL_ERROR and "secret" not in str(refused.value.error)
    assert result.is_error and "secret" not in result.model_dump_json() and "RuntimeError" in _text(result)


@pytest.mark.parametrize("mode", ERAS)
async def test_half_a_surrogate_pair_does_not_end_the_session(world: World, mode: str) -> None:
    async with _client(world.face, mode) as client:
        result = await client.call_tool("thing_name", {})
        assert _text(result) == "half ? a pair"
        assert not (await client.call_tool("system_info", {})).is_error


def test_text_is_bounded_and_says_so(world: World) -> None:
    say = world.gateway.registry["thing.say"]
    whole = success(say, {"text": "é" * TEXT_BYTES})
    text = whole["content"][0]["text"]
    assert len(text.encode()) <= TEXT_BYTES and "cut: 131072 bytes in all" in text
    assert len(whole["structuredContent"]["text"]) == TEXT_BYTES
    assert success(say, {"text": "hello", "more": 1})["content"][0]["text"] == 'hello\n{"more":1}'


def test_errors_and_runs_read_as_lines(world: World) -> None:
    error = NotFound("no model called x", hint="look", next=[{"unit": "model.list", "arguments": {"limit": 5}}])
    assert failure(error)["content"][0]["text"] == 'not_found: no model called x\nhint: look\nnext: call model_list with {"limit":5}'
    run = {"id": "r-1", "unit": "thing.fetch", "status": "running", "progress": {"phase": "a", "message": "b"}, "input": {}}
    text = unfinished(world.gateway.registry["thing.fetch"], run)["content"][0]["text"]
    assert 'call run_wait with {"run_id":"r-1"}' in text and "(a: b)" in text


# Durable tools, progress, cancellation


@pytest.mark.parametrize("mode", ERAS)
async def test_a_durable_call_never_blocks_and_goes_on(world: World, mode: str) -> None:
    async with Client(world.face.server, mode=mode) as client:
        first = await client.call_tool("thing_fetch", {})
        assert first.structured_content is not None and not first.is_error
        run = first.structured_content["run"]
        assert run["status"] == "running" and run["unit"] == "thing.fetch" and run["progress"]["message"] == "half"
        world.inside.gate.set()
        waited = await client.call_tool("run_wait", {"run_id": run["id"]})
        assert waited.structured_content is not None and waited.structured_content["run"]["result"] == {"answer": 42}
        again = await client.call_tool("thing_fetch", {})
        assert again.structured_content == {"answer": 42} and _text(again) == "42"
        failed = await client.call_tool("thing_fetch", {"thing_id": "none"})
        assert failed.is_error and "next: call thing_name with {}" in _text(failed)


@pytest.mark.parametrize("mode", ERAS)
async def test_an_idempotency_key_gives_the_same_run(world: World, mode: str) -> None:
    key: Any = {"io.aima/idempotencyKey": "once"}
    async with Client(world.face.server, mode=mode) as client:
        runs = [(await client.call_tool("thing_fetch", {}, meta=key)).structured_content for _ in range(2)]
        other = await client.call_tool("thing_fetch", {"thing_id": "other"}, meta=key)
        with pytest.raises(MCPError):
            await client.call_tool("thing_fetch", {}, meta={"io.aima/idempotencyKey": 7})  # type: ignore[typeddict-unknown-key]
    assert runs[0] is not None and runs[1] is not None and runs[0]["run"]["id"] == runs[1]["run"]["id"] == "thing-fetch-once"
    assert other.is_error and other.structured_content is not None and other.structured_content["code"] == "already_exists"


@pytest.mark.parametrize("mode", ERAS)
async def test_tokens_and_progress_stream(world: World, mode: str) -> None:
    heard: list[tuple[float, float | None, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))

    world.inside.gate.set()
    async with _client(world.face, mode) as client:
        await client.call_tool("thing_say", {}, progress_callback=hear)
        assert heard == [(1, None, "one "), (2, None, "two "), (3, None, "three")]
        heard.clear()
        done = await client.call_tool("thing_fetch", {}, progress_callback=hear)
    assert done.structured_content == {"answer": 42}
    assert heard[0][2] is not None and heard[0][2].startswith("run thing-fetch-")
    assert [one[0] for one in heard] == sorted({one[0] for one in heard}), "progress only grows"


async def test_progress_only_grows_and_tokens_are_text() -> None:
    sent: list[tuple[float, float | None, str | None]] = []

    async def report(*item: Any) -> None:
        sent.append(item)

    progress = Progress(report)
    for phase, completed, total in (
        ("started", None, None),
        ("pull", 60, 100),
        ("pull", 100, 100),
        ("verify", None, None),
        ("verify", 50, 100),
    ):
        await progress({"phase": phase, "message": "m", "completed": completed, "total": total})
    assert [(round(done, 2), total) for done, total, _ in sent] == [(0, None), (60, 100), (100, 100), (100, None), (150, 200)]
    assert [done for done, _, _ in sent] == sorted({done for done, _, _ in sent})
    tokens = Progress(report)
    for item in ({"delta": {"content": " Paris"}}, {"delta": {"content": None, "reasoning": "hm"}}, {"delta": {"a": "x", "b": 1}}):
        await tokens(item)
    assert sent[5:] == [(1, None, " Paris"), (2, None, "hm"), (3, None, '{"delta":{"a":"x","b":1}}')]


@pytest.mark.parametrize("mode", ERAS)
async def test_a_client_that_cancels_ends_the_work(world: World, mode: str) -> None:
    async with _client(world.face, mode) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "thing_hang", {})
            await until(world.inside.under_way.is_set)
            tasks.cancel_scope.cancel()
        await until(lambda: world.inside.log == ["cancelled"])
        assert not (await client.call_tool("system_info", {})).is_error


async def test_a_durable_run_outlives_its_caller(world: World) -> None:
    slow = build(world.gateway)
    async with _client(slow, "legacy") as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.call_tool, "thing_fetch", {})
        await until(lambda: bool(world.gateway.services.store.find("run", status="running")))
        tasks.cancel_scope.cancel()
    run = world.gateway.services.store.find("run")[0]
    world.inside.gate.set()
    await until(lambda: world.gateway.runs.get(run["id"])["status"] == "succeeded")


# Identity, lists


@pytest.mark.parametrize("mode", ("legacy", "auto"))
async def test_the_server_says_who_it_is_and_what_is_true_of_it(world: World, mode: str) -> None:
    """Trap 3: lists never change while the server lives, and both eras say so; resources can be watched, and both say so."""
    async with _client(world.face, mode) as client:
        assert client.server_info is not None and (client.server_info.name, client.server_info.version) == ("aima", __version__)
        assert client.instructions is not None and "system_info" in client.instructions
        found = client.server_capabilities
        assert client.protocol_version == ("2025-11-25" if mode == "legacy" else "2026-07-28")
    assert found.tools is not None and found.tools.list_changed is False
    assert found.resources is not None and found.resources.list_changed is False and found.resources.subscribe is True
    assert found.prompts is None


@pytest.mark.parametrize("mode", ERAS)
async def test_lists_are_one_page(world: World, mode: str) -> None:
    async with Client(world.face.server, mode=mode) as client:
        with pytest.raises(MCPError) as refused:
            await client.list_tools(cursor="2")
    assert refused.value.code == types.INVALID_PARAMS


def test_no_call_over_http_lists_the_tools_first(world: World) -> None:
    """Trap 1."""
    lookup = world.face.server.get_tool_input_schema
    assert lookup is not None and lookup("system_info") is None


# Resources


@pytest.mark.parametrize("mode", ERAS)
async def test_resources_are_listed_and_read(world: World, mode: str) -> None:
    async with Client(world.face.server, mode=mode) as client:
        fixed = [str(found.uri) for found in (await client.list_resources()).resources]
        templates = [found.uri_template for found in (await client.list_resource_templates()).resource_templates]
        read = await client.read_resource("aima://thing/seven")
        codes = []
        for uri in ("aima://nowhere", "aima://thing/none"):
            with pytest.raises(MCPError) as refused:
                await client.read_resource(uri)
            codes.append(refused.value.code)
    known = {unit.definition["uriTemplate"] for unit in world.gateway.registry.of("resource")}
    assert {*fixed, *templates} == known and fixed == sorted(fixed) and "aima://thing/{thing_id}" in templates
    assert isinstance(read.contents[0], types.TextResourceContents) and json.loads(read.contents[0].text) == {"text": "seven"}
    assert codes == [-32002, -32002] if mode == "legacy" else [-32602, -32602]


async def test_a_handshake_session_hears_of_what_it_watches(world: World) -> None:
    """Trap 4."""
    async with Client(world.face.server, mode="legacy", message_handler=world.listen) as client:
        for uri in ("aima://things", "aima://thing/a", "aima://thing/b"):
            await client.subscribe_resource(uri)
        with pytest.raises(MCPError) as refused:
            await client.subscribe_resource("aima://nowhere")
        await client.call_tool("thing_change", {"thing_id": "a"})
        await until(lambda: _updated(world) >= {"aima://things", "aima://thing/a"})
        await client.unsubscribe_resource("aima://things")
        world.heard.clear()
        await client.call_tool("thing_change", {})
        await until(lambda: _updated(world) == {"aima://thing/a", "aima://thing/b"})
    assert refused.value.code == -32002
    watch = next(iter(world.face._watches), None)
    assert watch is None or not watch._sessions, "a connection that closed is forgotten"


async def test_a_listen_stream_hears_of_what_it_asked_for(world: World) -> None:
    uris = ["aima://things", "aima://thing/b"]
    async with _client(world.face) as client, client.listen(resource_subscriptions=uris) as changes:
        await client.call_tool("thing_change", {"thing_id": "a"})
        await client.call_tool("thing_change", {"thing_id": "b"})
        heard = []
        with anyio.fail_after(DEADLINE):
            async for change in changes:
                heard.append(getattr(change, "uri", None))
                if "aima://thing/b" in heard:
                    break
    assert set(heard) == {"aima://things", "aima://thing/b"}


async def test_listen_streams_can_be_ended(world: World) -> None:
    async with _client(world.face) as client, client.listen(resource_subscriptions=["aima://things"]) as changes:
        world.face.end_streams()
        with anyio.fail_after(DEADLINE):
            assert [change async for change in changes] == []


def test_which_events_concern_a_resource(world: World) -> None:
    one, other = world.gateway.registry["thing.one"], {"thing_id": "a"}
    event = {"type": "thing.changed", "subject": None, "payload": {}}
    assert concerns(one, other, event), "in doubt it does"
    assert concerns(one, other, event | {"subject": "a"}) and not concerns(one, other, event | {"subject": "b"})
    assert not concerns(one, other, event | {"payload": {"thing_id": "b"}, "subject": "a"})
    assert not concerns(one, other, event | {"type": "model.created"})
    assert concerns(world.gateway.registry["event.log"], {}, event)


# Lines


BAD = [
    (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}', -32700, None),
    (b'{"jsonrpc":"2.0","id":3,"method":"ping","params":{"a":1,"a":2}}', -32700, 3),
    (b'{"jsonrpc":"2.0","id":"s","method":"ping","params":{"a":"\\ud800"}}', -32700, "s"),
    (b'{"jsonrpc":"2.0","id":4,"method":"ping","params":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}", -32700, 4),
    (b'{"jsonrpc":"2.0","id":5,"method":"ping","params":{"a":NaN}}', -32700, 5),
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
        tasks.start_soon(_serve, world.face, ours)
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
            await until(lambda: _updated(world) == {"aima://things"})
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


class _Crash(types.Request[types.RequestParams | None, Literal["x/crash"]]):
    method: Literal["x/crash"] = "x/crash"
    params: types.RequestParams | None = None


def _text(result: types.CallToolResult) -> str:
    assert isinstance(result.content[0], types.TextContent)
    return result.content[0].text


def _updated(world: World) -> set[str]:
    return {str(message.params.uri) for message in world.heard if isinstance(message, types.ResourceUpdatedNotification)}


async def _serve(face: McpFace, end: socket.socket) -> None:
    async with over(end.fileno(), end.fileno()) as (incoming, outgoing):
        await face.server.run(incoming, outgoing, face.server.create_initialization_options())
    end.close()


@asynccontextmanager
async def _client(face: McpFace, mode: str = "2026-07-28") -> AsyncIterator[Client]:
    """A client at one end of a socket pair, the face at the other, and lines between them."""
    theirs, ours = socket.socketpair()
    with theirs:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_serve, face, ours)
            async with Client(over(theirs.fileno(), theirs.fileno()), mode=mode) as client:
                yield client
            theirs.shutdown(socket.SHUT_WR)
