"""Keys: what they look like, who they let in and how far, and what ends when they are taken back."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from aima_lib import AsyncAima
from aima_lib.door import Caller
from aima_lib.errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied, Unauthenticated
from aima_lib.infra.clock import stamp
from aima_lib.infra.home import Home
from aima_lib.infra.keys import START, is_whole, mint
from aima_lib.runtime import host
from tests.served import DEADLINE, registry
from tests.served import Served as World
from tests.workshop import OPEN, agreed, unit
from tests.world import PATIENCE

pytestmark = pytest.mark.anyio
SSE = {"Accept": "text/event-stream"}
ENDS_WITHIN_SECONDS = 1.0
SAME = {"readOnlyHint": False, "idempotentHint": True, "destructiveHint": False, "openWorldHint": False}
COUNT = {
    "type": "object",
    "required": ["count"],
    "additionalProperties": False,
    "properties": {"count": {"type": "integer", "description": "c"}},
}
MODEL = {"type": "object", "additionalProperties": False, "properties": {"model": {"type": "string", "description": "m"}}}
WORLD = [
    unit("query", "thing.hang", streamSchema=COUNT, outputSchema=OPEN),
    unit("command", "thing.work", scope="write", durable=True, outputSchema=OPEN, annotations=SAME),
    unit("command", "thing.ask", scope="inference", inputSchema=MODEL, outputSchema=OPEN, annotations=SAME),
    unit("query", "thing.voices", scope="inference", outputSchema=OPEN),
    unit("resource", "thing.all", scope="read", uriTemplate="aima://things", mimeType="application/json", outputSchema=OPEN)
    | {"updatedBy": ["*"]},
]
HANDLERS = """
gate, log = anyio.Event(), []

@handles("thing.hang")
async def hang(ctx):
    try:
        await ctx.send({"count": 1})
        await anyio.sleep_forever()
    finally:
        log.append("ended")

@handles("thing.work")
async def work(ctx):
    await ctx.send({"phase": "working", "message": "at it"})
    await gate.wait()
    return {}

@handles("thing.ask")
async def ask(ctx, model=None):
    return {"model": model}

@handles("thing.voices")
async def voices(ctx):
    return {}

@handles("thing.all")
async def all_things(ctx):
    return {}
"""


@pytest.fixture
def world(served: World) -> World:
    return served


async def until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(DEADLINE):
        while not true():
            await anyio.sleep(0.01)


async def refusal(world: World, key: str, path: str = "/caller") -> tuple[int, str]:
    async with world.client(key) as client:
        answer = await client.get(path)
    return answer.status_code, answer.json().get("message", "")


def soon(seconds: float) -> str:
    return stamp(datetime.now(UTC) + timedelta(seconds=seconds))


# What they look like


def test_a_slip_of_the_hand_is_no_key() -> None:
    key = mint()
    assert is_whole(key) and key.startswith(START) and len({mint() for _ in range(100)}) == 100
    for place in range(len(key)):
        assert not is_whole(key[:place] + ("x" if key[place] != "x" else "y") + key[place + 1 :])
    for wrong in (key[:-1], key[1:], key + "A", f" {key}", key.upper(), "", START, "ключ"):
        assert not is_whole(wrong)


async def test_a_key_is_kept_nowhere(world: World, home: Home) -> None:
    key_id, text = await world.key("read")
    async with world.client(text) as guest:
        assert (await guest.get("/units/device/info")).is_success
        assert (await guest.post("/units/key/list", json={})).status_code == 403
    listed = await world.gateway.call("key.list")
    assert text not in json.dumps(listed)
    [row] = [row for row in listed["keys"] if row["id"] == key_id]
    assert text.startswith(row["prefix"]) and len(row["prefix"]) < 10
    assert row["last_used_at"] and row["revoked_at"] is None and row["created_by"] == "owner"
    await world.gateway.services.store.submit(lambda db: None)
    seen = b"".join(path.read_bytes() for path in home.path.rglob("*") if path.is_file())
    assert text.encode() not in seen and text[5:-6].encode() not in seen, "not in the store, nor in any other file of the home"
    assert stat.S_IMODE(home.secret_path.stat().st_mode) == 0o600
    assert home.secret().hex().encode() not in (home.path / "aima.db").read_bytes()
    events = (await world.gateway.call("event.list", {"after": 0, "types": ["key.*"]}))["events"]
    assert [event["payload"] for event in events] == [{"key_id": key_id, "by": "owner"}]


# Who they let in


async def test_what_cannot_come_in_is_told_why(world: World) -> None:
    async with world.client(mint()) as stranger:
        answer = await stranger.get("/caller")
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    key_id, text = await world.key("read")
    brief, soon_over = await world.key("read", expires_at=soon(0.2))
    assert await refusal(world, mint()) == (401, "nobody has this key")
    assert await refusal(world, text[:-1]) == (401, "this is no whole key: its checksum does not fit")
    assert (await refusal(world, text))[0] == 200
    await agreed(world.gateway, "key.revoke", {"key_id": key_id})
    status, message = await refusal(world, text)
    assert status == 401 and message.startswith(f"the key {key_id} was revoked at 2")
    await until(lambda: [row["status"] for row in world.gateway.services.keys.list()[0]] == ["revoked", "expired"])
    status, message = await refusal(world, soon_over)
    assert status == 401 and message.startswith(f"the key {brief} expired at 2")
    assert [world.gateway.services.keys.list(status)[1] for status in ("active", "expired", "revoked", None)] == [0, 1, 1, 2]


async def test_a_key_is_taken_by_either_header_and_in_every_dialect(world: World) -> None:
    _, text = await world.key("inference")
    async with httpx.AsyncClient(base_url=world.url, trust_env=False) as client:
        said = (await client.get("/caller", headers={"x-api-key": text})).json()
        assert (said["scopes"], said["models"]) == (["inference"], None)
        assert (await client.get("/v1/models", headers={"x-api-key": text})).json()["data"] == []
        denied = await client.get("/metrics", headers={"x-api-key": text})
        assert denied.status_code == 403 and denied.json()["details"] == {"scope": "read"}
        stop = await client.post("/shutdown", headers={"x-api-key": text})
        assert stop.status_code == 403 and stop.json()["details"] == {"scope": "admin"}
        assert (await client.get("/events", headers={"x-api-key": text})).status_code == 403


async def test_keys_outlive_their_host(home: Home) -> None:
    async with host(home) as gateway:
        made = await agreed(gateway, "key.create", {"name": "guest", "scopes": ["read"]})
    async with host(home) as gateway:
        assert gateway.services.keys.caller(made["secret"]) == Caller("guest", frozenset({"read"}))
        await agreed(gateway, "key.revoke", {"key_id": "guest"})
    async with host(home) as gateway:
        with pytest.raises(Unauthenticated, match="guest was revoked"):
            gateway.services.keys.caller(made["secret"])
        assert (await agreed(gateway, "key.create", {"name": "guest", "scopes": ["read"]}))["key"]["id"] == "guest-2", (
            "an id means one key for ever"
        )


async def test_without_its_secret_a_store_opens_nothing(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    async with host(home) as gateway:
        made = await agreed(gateway, "key.create", {"name": "guest", "scopes": ["read"]})
    home.secret_path.unlink()
    async with host(home) as gateway:
        with pytest.raises(Unauthenticated, match="nobody"):
            gateway.services.keys.caller(made["secret"])
    assert "keys.secret is gone" in caplog.text


# How far


async def test_nobody_gives_what_they_do_not_have(world: World) -> None:
    store = world.gateway.services.store
    for name in ("one", "two"):
        await store.insert("model", {"id": name, "name": name, "type": "llm", "status": "ready", "files": []})
    until_then = soon(3600)
    _, text = await world.key("admin", models=["one"], expires_at=until_then)
    limited = world.gateway.services.keys.caller(text)
    refused: list[tuple[Mapping[str, Any], dict[str, Any]]] = [
        ({"scopes": ["read", "exec"], "models": ["one"], "expires_at": until_then}, {"scope": "exec"}),
        ({"scopes": ["read"], "expires_at": until_then}, {"models": ["one"]}),
        ({"scopes": ["read"], "models": ["one", "two"], "expires_at": until_then}, {"models": ["one"]}),
        ({"scopes": ["read"], "models": ["one"]}, {}),
        ({"scopes": ["read"], "models": ["one"], "expires_at": soon(7200)}, {}),
    ]
    before = world.gateway.services.keys.list()[1]
    for arguments, details in refused:
        with pytest.raises(PermissionDenied) as raised:
            await agreed(world.gateway, "key.create", {"name": "more", **arguments}, caller=limited)
        assert raised.value.details == details
    with pytest.raises(PermissionDenied, match=r"may not use key\.create"):
        await agreed(world.gateway, "key.create", {"name": "more", "scopes": ["read"]}, caller=Caller("writer", frozenset({"write"})))
    assert world.gateway.services.keys.list()[1] == before
    assert await world.key("read", by=limited, models=["one"], expires_at=until_then)
    with pytest.raises(NotFound) as missing:
        await world.key("read", models=["on"])
    assert missing.value.hint == "did you mean one?"
    for wrong in ("tomorrow", "2020-01-01T00:00:00Z", "2100-01-01T00:00:00", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"):
        with pytest.raises(InvalidArgument, match="expires_at"):
            await world.key("read", expires_at=wrong)


async def test_a_key_for_some_models_asks_no_other(world: World) -> None:
    gateway, store = world.gateway, world.gateway.services.store
    for name in ("one", "two"):
        await store.insert("model", {"id": name, "name": name, "type": "llm", "status": "ready", "files": [], "format": "gguf"})
        service = {"id": f"s-{name}", "name": f"called-{name}", "model_id": name, "instance_id": f"llamacpp-s-{name}", "engine": "llamacpp"}
        await store.insert("service", service | {"desired_replicas": 0, "error": None, "options": {}, "created_at": ""})
    _, by_model = await world.key("inference", "read", models=["one"])
    _, by_service = await world.key("inference", models=["s-two"])
    for text, good, bad in (
        (by_model, ("one", "s-one", "called-one"), ("two", "s-two", "called-two", "llamacpp-s-two", "nothing", None)),
        (by_service, ("s-two", "two", "called-two"), ("one", "s-one", "oen", None)),
    ):
        caller = gateway.services.keys.caller(text)
        for model in good:
            assert await gateway.call("thing.ask", {"model": model}, caller=caller) == {"model": model}
        for model in bad:
            with pytest.raises(PermissionDenied) as raised:
                await gateway.call("thing.ask", {} if model is None else {"model": model}, caller=caller)
            assert raised.value.details == {"models": sorted(caller.models or ())}
        assert await gateway.call("thing.voices", caller=caller) == {}, "what asks no model is not held to them"
        async with world.client(text) as guest:
            asked = await guest.post("/v1/chat/completions", json={"model": bad[0], "messages": []})
            assert asked.status_code == 403 and f"it may use: {sorted(caller.models or ())[0]}" in asked.json()["error"]["message"]
            known = await guest.post("/v1/chat/completions", json={"model": good[0], "messages": []})
            assert known.status_code == 503, "allowed, but it does not run"
    rows = (await gateway.call("inference.models", caller=gateway.services.keys.caller(by_model)))["models"]
    assert {row["model_id"] for row in rows} == {"one"}
    assert {row["model_id"] for row in (await gateway.call("inference.models"))["models"]} == {"one", "two"}
    # A model that two services serve is not asked by its own name, when only one of them is allowed: it might be the other that answers.
    await store.insert(
        "service", store.get("service", "s-two") | {"id": "s-three", "name": "called-three", "instance_id": "llamacpp-s-three"}
    )
    with pytest.raises(PermissionDenied):
        await gateway.call("thing.ask", {"model": "two"}, caller=gateway.services.keys.caller(by_service))


async def test_a_list_holds_what_its_caller_may_use(world: World) -> None:
    _, text = await world.key("inference", "logs")
    caller = world.gateway.services.keys.caller(text)
    may = {unit.name for unit in world.gateway.registry.of("command", "query") if caller.may(unit.definition["scope"])}
    assert {"inference.chat", "engine.logs"} <= may and not {"model.list", "model.pull", "key.create"} & may
    async with world.client(text) as guest:
        document = (await guest.get("/openapi.json")).json()
        assert {path.removeprefix("/units/").replace("/", ".") for path in document["paths"] if path.startswith("/units/")} == may
        assert "/shutdown" not in document["paths"] and "/v1/chat/completions" in document["paths"]
        resources = {unit.name for unit in world.gateway.registry.of("resource") if caller.may(unit.definition["scope"])}
        listed = {row["name"] for row in (await guest.get("/resources")).json()["resources"]}
        assert listed == resources and "blob.content" in listed and "model.registry" not in listed
        head = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/list", "Accept": "application/json, text/event-stream"}
        meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
        meta |= {"io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"}}
        ask = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}}
        tools = (await guest.post("/mcp", json=ask, headers=head)).json()["result"]
        assert {tool["name"] for tool in tools["tools"]} <= {name.replace(".", "_") for name in may} and tools["tools"]
        assert tools["cacheScope"] == "private"
    reader = Caller("reader", frozenset({"read"}))
    found = await world.gateway.call("unit.search", {"query": "delete create key model list", "limit": 100}, caller=reader)
    scopes = {world.gateway.registry[row["name"]].definition["scope"] for row in found["units"]}
    assert scopes == {"read"}
    with pytest.raises(PermissionDenied, match=r"key\.list"):
        await world.gateway.call("unit.call", {"name": "key.list"}, caller=reader)


async def test_a_caller_sees_its_own_runs_and_an_admin_all(world: World) -> None:
    gateway, scopes = world.gateway, ("read", "write")
    anna, boris = [gateway.services.keys.caller((await world.key(*scopes))[1]) for _ in range(2)]
    run = await gateway.start("thing.work", caller=anna, key="once")
    owned = await gateway.start("thing.work", key="once")
    for name in ("run.get", "run.wait", "run.cancel"):
        with pytest.raises(NotFound) as hidden:
            await gateway.call(name, {"run_id": run["id"]}, caller=boris)
        with pytest.raises(NotFound) as absent:
            await gateway.call(name, {"run_id": run["id"] + "x"}, caller=boris)
        assert hidden.value.as_dict() == {**absent.value.as_dict(), "message": str(hidden.value)}, "not there and not yours look alike"
    assert await gateway.call("run.list", caller=boris) == {"runs": [], "total": 0}
    assert [row["id"] for row in (await gateway.call("run.list", caller=anna))["runs"]] == [run["id"]]
    assert (await gateway.call("run.list"))["total"] == 2
    other = await gateway.start("thing.work", caller=boris, key="once")
    assert len({run["id"], owned["id"], other["id"]}) == 3, "the same idempotency key of another caller is another key"
    assert (await gateway.start("thing.work", caller=anna, key="once"))["id"] == run["id"]
    with pytest.raises(AlreadyExists, match="another caller"):
        await gateway.start("thing.work", key=run["id"].removeprefix("thing-work-"))
    assert (await gateway.call("run.cancel", {"run_id": run["id"]}, caller=anna))["run"]["status"] == "cancelled"
    assert (await gateway.call("run.cancel", {"run_id": other["id"]}))["run"]["status"] == "cancelled"
    world.inside.gate.set()


# Taking back


async def test_a_connection_that_is_known_is_judged_anew_when_its_key_is_taken_back(world: World) -> None:
    key_id, text = await world.key("read")
    async with world.client(text) as guest:
        assert [(await guest.get("/caller")).status_code for _ in range(3)] == [200] * 3
        assert (await guest.get("/caller", headers={"Authorization": "Bearer other"})).status_code == 401, "another head on the same line"
        assert (await guest.get("/caller", headers={"Host": "elsewhere"})).status_code == 421
        assert (await guest.get("/health")).status_code == 200
        await agreed(world.gateway, "key.revoke", {"key_id": key_id})
        assert (await guest.get("/caller")).status_code == 401


async def test_what_a_key_has_open_ends_with_it(world: World) -> None:
    key_id, text = await world.key("read", "write", "inference")
    _, kept = await world.key("read")
    opened, ended = set[str](), dict[str, float]()
    run = await world.gateway.start("thing.work", caller=world.gateway.services.keys.caller(text))

    async def follow(path: str, key: str, name: str, headers: Mapping[str, str] = SSE) -> None:
        async with world.client(key) as guest, guest.stream("GET", path, headers=headers) as response:
            assert response.status_code == 200
            async for _ in response.aiter_raw():
                opened.add(name)
        ended[name] = time.monotonic()

    async def wait() -> None:
        async with world.client(text) as guest:
            opened.add("call")
            answer = await guest.get("/units/thing/hang")
            assert answer.status_code == 401 and f"{key_id} was revoked" in answer.json()["message"]
        ended["call"] = time.monotonic()

    async with world.client(text) as guest:
        accept = {"Accept": "application/json, text/event-stream"}
        hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        answer = await guest.post("/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}, headers=accept)
        session = {"Mcp-Session-Id": answer.headers["mcp-session-id"], "MCP-Protocol-Version": "2025-11-25"}
        await guest.post("/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=accept | session)
    streams = ("/events?after=0", "/resources?uri=aima://things", "/units/thing/hang", f"/units/run/wait?run_id={run['id']}")
    async with anyio.create_task_group() as tasks:
        for path in streams:
            tasks.start_soon(follow, path, text, path)
        tasks.start_soon(follow, "/mcp", text, "mcp", SSE | session)
        tasks.start_soon(follow, "/events?after=0", kept, "kept")
        tasks.start_soon(wait)
        await until(lambda: len(world.gateway.services.keys._held[key_id]) >= 6 and opened >= {*streams, "kept", "call"})
        began = time.monotonic()
        await agreed(world.gateway, "key.revoke", {"key_id": key_id})
        assert (await refusal(world, text))[0] == 401, "at once"
        await until(lambda: set(ended) == {*streams, "mcp", "call"})
        assert max(ended.values()) - began < ENDS_WITHIN_SECONDS * PATIENCE
        assert "kept" not in ended
        tasks.cancel_scope.cancel()
    assert world.inside.log.count("ended") == 2
    await until(lambda: world.gateway.runs.get(run["id"])["status"] != "running")
    assert world.gateway.runs.get(run["id"])["error"]["code"] == "unauthenticated"
    again = await agreed(world.gateway, "key.revoke", {"key_id": key_id})
    assert again["key"]["status"] == "revoked"
    told = (await world.gateway.call("event.list", {"after": 0, "types": ["key.revoked"]}))["events"]
    assert len(told) == 1
    caller = Caller(key_id, frozenset({"read"}))
    for late in (world.gateway.call("thing.hang", caller=caller), world.gateway.read("aima://things", caller=caller)):
        with pytest.raises(Unauthenticated, match="revoked"):
            await late


async def test_an_open_stream_ends_when_its_key_expires(world: World) -> None:
    _, text = await world.key("read", expires_at=soon(0.6))
    async with world.client(text) as guest, guest.stream("GET", "/events?after=0", headers=SSE) as response:
        assert response.status_code == 200
        with anyio.fail_after(DEADLINE):
            assert b"device.detected" in b"".join([part async for part in response.aiter_raw()])
    assert "expired" in (await refusal(world, text))[1]


async def test_whoever_revokes_its_own_key_is_answered(world: World) -> None:
    key_id, text = await world.key("admin")
    async with world.client(text) as guest:
        plan = await guest.post("/units/key/revoke", json={"key_id": key_id}, headers={"Aima-Plan": "true"})
        answer = await guest.post("/units/key/revoke", json={"key_id": key_id}, headers={"Aima-Token": plan.json()["token"]})
        assert answer.json()["key"]["status"] == "revoked"
        assert (await guest.get("/caller")).status_code == 401


async def test_an_mcp_session_answers_to_the_key_that_opened_it(world: World) -> None:
    accept = {"Accept": "application/json, text/event-stream"}
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    (_, anna), (_, boris) = await world.key("read"), await world.key("read")
    async with world.client(anna) as guest:
        answer = await guest.post("/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}, headers=accept)
    session = {"Mcp-Session-Id": answer.headers["mcp-session-id"], "MCP-Protocol-Version": "2025-11-25"}
    for key, status in ((boris, 404), (anna, 200)):
        async with world.client(key) as guest:
            listed = await guest.post("/mcp", json={"jsonrpc": "2.0", "id": 2, "method": "tools/list"}, headers=accept | session)
            assert listed.status_code == status


async def test_a_run_goes_on_after_a_crash_unless_its_key_was_revoked(home: Home, tmp_path: Path) -> None:
    known, _ = registry(tmp_path, WORLD, HANDLERS)
    runs = {}
    async with host(home, registry=known) as gateway:
        for name in ("revoked", "expired"):
            made = await agreed(gateway, "key.create", {"name": name, "scopes": ["write"], "expires_at": soon(0.5)})
            runs[name] = (await gateway.start("thing.work", caller=gateway.services.keys.caller(made["secret"])))["id"]
    async with host(home, passing=True, registry=known) as gateway:  # takes nothing up, so the runs are still as a crash left them
        await agreed(gateway, "key.revoke", {"key_id": "revoked"})
        await until(lambda: gateway.services.keys.list("expired")[1] == 1)
    async with host(home, registry=known) as gateway:
        assert gateway.runs.get(runs["expired"])["attempts"] == 2
        closed = gateway.runs.get(runs["revoked"])
        assert (closed["status"], closed["error"]["code"]) == ("interrupted", "unauthenticated")
        assert "key revoked" in closed["error"]["message"]
        assert gateway.runs.get(runs["expired"])["status"] == "running"


# From afar


async def test_the_library_attaches_by_url_and_key(world: World, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    key_id, text = await world.key("read")
    async with AsyncAima(url=world.url, key=text) as aima:
        assert (await aima.system.info())["home"] == str(home.path)
        with pytest.raises(PermissionDenied, match=f"{key_id} may not use model.delete") as raised:
            await aima.model.delete(model_id="x")
        assert raised.value.details == {"scope": "delete"}
    async with AsyncAima(home.path, key=text) as aima:
        with pytest.raises(PermissionDenied):
            await aima.key.list()
    monkeypatch.setenv("AIMA_URL", world.url)
    monkeypatch.setenv("AIMA_KEY", text)
    async with AsyncAima() as aima:
        with pytest.raises(PermissionDenied):
            await aima.key.list()
    async with AsyncAima(home.path) as aima:
        assert (await aima.key.list())["total"] == 1, "who names a home is its owner, whatever the environment says"
    monkeypatch.delenv("AIMA_KEY")
    with pytest.raises(Unauthenticated, match="a key is needed"):
        async with AsyncAima():
            pass
    for url in ("nowhere", "ftp://host", "http://", "http://user@host", "http://host:port"):
        with pytest.raises(InvalidArgument, match="no URL"):
            async with AsyncAima(url=url, key=text):
                pass
    with pytest.raises(InvalidArgument, match="two places"):
        AsyncAima(home.path, url=world.url)
