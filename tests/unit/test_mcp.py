"""The MCP face, driven by the SDK's own client in both eras: tools, progress, runs, resources and who watches them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import anyio
import mcp_types as types
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError

from aima_lib import __version__
from aima_lib.errors import NotFound
from aima_lib.infra.home import Home
from aima_mcp.faces.mcp import build
from aima_mcp.faces.mcp.results import Progress, failure, success, tool, unfinished
from aima_mcp.faces.mcp.watch import concerns
from tests.mcp_world import DEADLINE, ERAS, World, client_of, opened, text_of, until

pytestmark = [
    pytest.mark.anyio,
    # Its client warns that the handshake era ends; that era's clients are who we serve.
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
]


@pytest.fixture
async def world(home: Home, tmp_path: Path, anyio_backend: str) -> AsyncIterator[World]:
    async with opened(home, tmp_path) as found:
        yield found


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
    assert json.loads(text_of(result))[0]["name"] == "run.wait"


@pytest.mark.parametrize(
    ("tool", "arguments", "wanted"),
    [
        ("run_list", {"limit": "2"}, {"runs": [], "total": 0}),
        (
            "unit_call",
            {"name": "run.list", "arguments": '{"limit": "2", "offset": "0"}'},
            {"name": "run.list", "result": {"runs": [], "total": 0}},
        ),
        ("unit_call", {"name": "run.list", "plan": "false"}, {"name": "run.list", "result": {"runs": [], "total": 0}}),
        ("run_list", {"limit": "two"}, '"two" is not of type "integer"'),
        ("run_list", {"limit": "2.5"}, '"2.5" is not of type "integer"'),
        ("run_list", {"limit": "true"}, '"true" is not of type "integer"'),
        ("run_list", {"limit": "0"}, "0 is less than the minimum of 1"),
        ("unit_call", {"name": "run.list", "arguments": "[1]"}, 'is not of type "object"'),
        ("unit_call", {"name": "run.list", "arguments": '{"limit": 1, "limit": 2}'}, 'is not of type "object"'),
        ("run_get", {"run_id": "12"}, "no run called '12'"),
        ("service_create", {"model_id": "a", "name": "x" * 5000}, "is longer than"),
    ],
)
async def test_what_a_host_sends_as_text_by_mistake_is_what_it_means(world: World, tool: str, arguments: Any, wanted: Any) -> None:
    async with Client(world.face.server) as client:
        result = await client.call_tool(tool, arguments)
    if isinstance(wanted, str):
        assert result.is_error and wanted in text_of(result) and len(text_of(result)) < 1500
    else:
        assert result.structured_content == wanted


@pytest.mark.parametrize("mode", ERAS)
async def test_an_error_says_what_to_do(world: World, mode: str) -> None:
    async with Client(world.face.server, mode=mode) as client:
        missing = await client.call_tool("run_get", {"run_id": "nothing"})
        mistyped = await client.call_tool("run_list", {"dry_run": True})
    assert missing.is_error and missing.structured_content is not None and missing.structured_content["code"] == "not_found"
    assert mistyped.is_error and "dry_run" in text_of(mistyped)
    assert 'next: call unit_describe with {"name":"run.list"}' in text_of(mistyped)


@pytest.mark.parametrize("mode", ERAS)
async def test_an_unknown_tool_is_a_protocol_error_naming_the_nearest(world: World, mode: str) -> None:
    async with Client(world.face.server, mode=mode) as client:
        with pytest.raises(MCPError) as refused:
            await client.session.call_tool("system_inf", {})
    assert refused.value.code == types.INVALID_PARAMS
    assert "system_info" in refused.value.data["hint"]


@pytest.mark.parametrize("mode", ERAS)
async def test_text_from_inside_never_reaches_aclient_of(world: World, mode: str) -> None:
    """Trap 2: the SDK hands an uncaught exception's text to handshake clients."""

    async def crash(ctx: Any, params: Any) -> Any:
        raise RuntimeError("/root/secret")

    world.face.server.add_request_handler("x/crash", types.RequestParams, crash)
    async with Client(world.face.server, mode=mode) as client:
        with pytest.raises(MCPError) as refused:
            await client.session.send_request(_Crash(), types.EmptyResult)
        result = await client.call_tool("thing_crash", {})
    assert refused.value.code == types.INTERNAL_ERROR and "secret" not in str(refused.value.error)
    assert result.is_error and "secret" not in result.model_dump_json() and "RuntimeError" in text_of(result)


@pytest.mark.parametrize("mode", ERAS)
async def test_half_a_surrogate_pair_does_not_end_the_session(world: World, mode: str) -> None:
    async with client_of(world.face, mode) as client:
        result = await client.call_tool("thing_name", {})
        assert text_of(result) == "half ? a pair"
        assert not (await client.call_tool("system_info", {})).is_error


def test_the_main_field_is_said_first_and_the_rest_after_it(world: World) -> None:
    say = world.gateway.registry["thing.say"]
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
        assert again.structured_content == {"answer": 42} and text_of(again) == "42"
        failed = await client.call_tool("thing_fetch", {"thing_id": "none"})
        assert failed.is_error and "next: call thing_name with {}" in text_of(failed)


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
    async with client_of(world.face, mode) as client:
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
    async with client_of(world.face, mode) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "thing_hang", {})
            await until(world.inside.under_way.is_set)
            tasks.cancel_scope.cancel()
        await until(lambda: world.inside.log == ["cancelled"])
        assert not (await client.call_tool("system_info", {})).is_error


async def test_a_durable_run_outlives_its_caller(world: World) -> None:
    slow = build(world.gateway)
    async with client_of(slow, "legacy") as client, anyio.create_task_group() as tasks:
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
    async with client_of(world.face, mode) as client:
        assert client.server_info is not None and (client.server_info.name, client.server_info.version) == ("aima", __version__)
        assert client.instructions is not None and "system_info" in client.instructions
        found = client.server_capabilities
        assert client.protocol_version == ("2025-11-25" if mode == "legacy" else "2026-07-28")
    assert found.tools is not None and found.tools.list_changed is False
    assert found.resources is not None and found.resources.list_changed is False and found.resources.subscribe is True
    assert found.prompts is not None and found.prompts.list_changed is False and found.completions is not None


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
        await until(lambda: world.updated() >= {"aima://things", "aima://thing/a"})
        await client.unsubscribe_resource("aima://things")
        world.heard.clear()
        await client.call_tool("thing_change", {})
        await until(lambda: world.updated() == {"aima://thing/a", "aima://thing/b"})
    assert refused.value.code == -32002
    watch = next(iter(world.face._watches), None)
    assert watch is None or not watch._sessions, "a connection that closed is forgotten"


async def test_a_listen_stream_hears_of_what_it_asked_for(world: World) -> None:
    uris = ["aima://things", "aima://thing/b"]
    async with client_of(world.face) as client, client.listen(resource_subscriptions=uris) as changes:
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
    async with client_of(world.face) as client, client.listen(resource_subscriptions=["aima://things"]) as changes:
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


class _Crash(types.Request[types.RequestParams | None, Literal["x/crash"]]):
    method: Literal["x/crash"] = "x/crash"
    params: types.RequestParams | None = None
