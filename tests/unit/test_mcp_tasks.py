"""The tasks extension: who gets a task, what it tells while and after its run, who sees it, and how it is ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import httpx2
import mcp_types as types
import pytest
from mcp import Client
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim, advertise
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from pydantic import TypeAdapter

from aima_lib.infra.home import Home
from aima_mcp.app import App
from aima_mcp.faces.mcp import build
from aima_mcp.faces.mcp.tasks import EXTENSION, LATER_POLL_MS, POLL_MS, shown
from tests.mcp_world import World, client_of, opened, text_of, until
from tests.workshop import agreed

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")]
WHOLE = TypeAdapter(dict[str, Any])
BASE = "http://localhost:8484"
DAY_MS = 86_400_000


class Asked(types.Request[dict[str, Any], str]):
    """tasks/get, tasks/update or tasks/cancel."""

    name_param = "taskId"
    method: str
    params: dict[str, Any]


class Created(types.Result):
    """A task as tools/call answers with it."""

    result_type: Literal["task"]
    task_id: str


class Polls(ClientExtension):
    """What a client does with a task by itself: come back until it has ended."""

    identifier = EXTENSION

    def claims(self) -> list[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=Created, resolve=self.resolve)]

    async def resolve(self, created: Created, ctx: ClaimContext) -> types.CallToolResult:
        while True:
            task = await ctx.session.send_request(Asked(method="tasks/get", params={"taskId": created.task_id}), WHOLE)
            if task["status"] != "working":
                return types.CallToolResult.model_validate(task["result"])


class Holds(Polls):
    """A client that looks at tasks itself."""

    async def resolve(self, created: Created, ctx: ClaimContext) -> types.CallToolResult:
        raise AssertionError("not asked to")


@pytest.fixture
async def world(home: Home, tmp_path: Path, anyio_backend: str) -> AsyncIterator[World]:
    async with opened(home, tmp_path) as found:
        yield found


@asynccontextmanager
async def client(world: World, *extensions: ClientExtension, kept_seconds: float | None = 86_400) -> AsyncIterator[Client]:
    face = build(world.gateway, profile="full", wait_seconds=0.2, kept_seconds=kept_seconds)
    async with Client(face.server, mode="auto", extensions=extensions) as found:
        yield found


async def begin(found: Client, arguments: dict[str, Any] | None = None, **more: Any) -> Mapping[str, Any]:
    created = await found.session.call_tool("thing_fetch", arguments or {}, allow_claimed=True, **more)
    return created.model_dump(by_alias=True)


async def ask(found: Client, method: str, task_id: str, **more: Any) -> dict[str, Any]:
    answer = await found.session.send_request(Asked(method=f"tasks/{method}", params={"taskId": task_id, **more}), WHOLE)
    answer.pop("_meta", None)
    return answer


async def test_a_client_that_knows_tasks_gets_one_at_once_and_the_result_from_it(world: World) -> None:
    async with client(world, Holds()) as found:
        assert found.server_capabilities.extensions == {EXTENSION: {}}
        created = await begin(found)
        id = created["taskId"]
        assert world.gateway.runs.get(id)["unit"] == "thing.fetch", "the task is the run"
        await until(lambda: world.gateway.runs.get(id)["progress"] is not None)
        working = await ask(found, "get", id)
        world.inside.gate.set()
        await until(lambda: world.gateway.runs.get(id)["status"] == "succeeded")
        done = await ask(found, "get", id)
    run = world.gateway.runs.get(id)
    assert working == {
        "resultType": "complete",
        "taskId": id,
        "status": "working",
        "statusMessage": "fetching: half",
        "createdAt": run["created_at"],
        "lastUpdatedAt": working["lastUpdatedAt"],
        "ttlMs": DAY_MS,
        "pollIntervalMs": POLL_MS,
    }
    assert run["created_at"] <= working["lastUpdatedAt"] <= run["finished_at"] == done["lastUpdatedAt"]
    assert done["status"] == "completed" and done["result"]["structuredContent"] == {"answer": 42}
    assert done["result"]["content"][0]["text"] == "42" and done["result"]["isError"] is False


async def test_the_sdks_client_needs_no_more_than_a_claim(world: World) -> None:
    world.inside.gate.set()
    async with client(world, Polls()) as found:
        done = await found.call_tool("thing_fetch", {})
        failed = await found.call_tool("thing_fetch", {"thing_id": "none"})
        quick = await found.call_tool("unit_search", {"query": "run"})
        refused = await found.call_tool("thing_fetch", {"wrong": 1})
    assert done.structured_content == {"answer": 42} and not quick.is_error
    assert failed.is_error and "next: call thing_name with {}" in text_of(failed), "what a unit refuses is its result, as without tasks"
    assert refused.is_error and "wrong" in text_of(refused), "refused before there was a run"


async def test_a_key_that_was_used_gives_the_task_again_and_then_what_came_of_it(world: World) -> None:
    key: Any = {"io.aima/idempotencyKey": "once"}
    async with client(world, Holds()) as found:
        first, again = [(await begin(found, meta=key))["taskId"] for _ in range(2)]
        world.inside.gate.set()
        await until(lambda: world.gateway.runs.get(first)["status"] == "succeeded")
        third = await begin(found, meta=key)
    assert first == again and third["structuredContent"] == {"answer": 42} and "taskId" not in third


async def test_a_task_is_cancelled_and_says_so(world: World) -> None:
    async with client(world, Holds()) as found:
        id = (await begin(found))["taskId"]
        assert await ask(found, "cancel", id) == {"resultType": "complete"}
        ended = await ask(found, "get", id)
        assert await ask(found, "cancel", id) == {"resultType": "complete"}, "a second time nothing happens"
    assert ended["status"] == "cancelled" and "result" not in ended and "error" not in ended
    assert world.gateway.runs.get(id)["status"] == "cancelled"


async def test_answers_that_nobody_asked_for_change_nothing(world: World) -> None:
    async with client(world, Holds()) as found:
        id = (await begin(found))["taskId"]
        assert await ask(found, "update", id, inputResponses={"a": {"action": "accept"}}) == {"resultType": "complete"}
        assert (await ask(found, "get", id))["status"] == "working"
        with pytest.raises(MCPError) as refused:
            await ask(found, "update", id)
    assert refused.value.code == types.INVALID_PARAMS


@pytest.mark.parametrize("method", ("get", "update", "cancel"))
async def test_who_did_not_declare_them_has_none(world: World, method: str) -> None:
    async with client(world, advertise("com.example/other")) as found:
        answered = await found.call_tool("thing_fetch", {})
        assert answered.structured_content is not None and answered.structured_content["run"]["status"] == "running"
        with pytest.raises(MCPError) as refused:
            await ask(found, method, answered.structured_content["run"]["id"], inputResponses={})
    assert refused.value.code == types.MISSING_REQUIRED_CLIENT_CAPABILITY
    assert refused.value.data == {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
    async with client(world, Holds()) as found:
        with pytest.raises(MCPError) as unknown:
            await ask(found, method, "nothing-1", inputResponses={})
    assert unknown.value.code == types.INVALID_PARAMS and "nothing-1" in unknown.value.message


async def test_the_handshake_era_has_none(world: World) -> None:
    async with client_of(world.face, "legacy") as found:
        assert found.server_capabilities.extensions is None
        answered = await found.call_tool("thing_fetch", {})
        assert answered.structured_content is not None and "run" in answered.structured_content
        with pytest.raises(MCPError) as refused:
            await ask(found, "get", answered.structured_content["run"]["id"])
    assert refused.value.code == types.METHOD_NOT_FOUND


async def test_a_task_is_its_callers_and_an_admins(world: World) -> None:
    app = App(world.gateway, "127.0.0.1", lambda _: None)
    keys = {}
    for name, scopes in (("ann", ["read"]), ("bob", ["read", "write"]), ("root", ["admin"])):
        keys[name] = (await agreed(world.gateway, "key.create", {"name": name, "scopes": scopes}))["secret"]

    @asynccontextmanager
    async def of(name: str) -> AsyncIterator[Client]:
        headers = {"Authorization": f"Bearer {keys[name]}"}
        async with (
            httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=BASE, headers=headers) as http,
            Client(streamable_http_client(f"{BASE}/mcp", http_client=http), mode="2026-07-28", extensions=[Holds()]) as found,
        ):
            yield found

    async with app.lifespan(), of("ann") as ann, of("bob") as bob, of("root") as root:
        id = (await begin(ann))["taskId"]
        assert (await ask(ann, "get", id))["status"] == (await ask(root, "get", id))["status"] == "working"
        assert (await ask(ann, "get", id))["ttlMs"] == world.gateway.services.config["events"]["retention_days"] * DAY_MS
        for method in ("get", "update", "cancel"):
            with pytest.raises(MCPError) as foreign:
                await ask(bob, method, id, inputResponses={})
            with pytest.raises(MCPError) as absent:
                await ask(bob, method, "nothing-1", inputResponses={})
            assert foreign.value.code == absent.value.code == types.INVALID_PARAMS
            assert foreign.value.message.replace(id, "") == absent.value.message.replace("nothing-1", ""), "it reads as if there were none"
        assert world.gateway.runs.get(id)["status"] == "running"
        assert await ask(root, "cancel", id) == {"resultType": "complete"}
        assert (await ask(ann, "get", id))["status"] == "cancelled"


@pytest.mark.parametrize("named", (None, "another-1"))
async def test_over_http_the_header_names_the_task_of_the_body(world: World, home: Home, named: str | None) -> None:
    app = App(world.gateway, "127.0.0.1", lambda _: None)
    run = await world.gateway.start("thing.fetch")
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {"extensions": {EXTENSION: {}}},
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": "tasks/get", "params": {"taskId": run["id"], "_meta": meta}}
    headers = {
        "authorization": f"Bearer {home.key()}",
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": "2026-07-28",
        "mcp-method": "tasks/get",
    }
    async with app.lifespan(), httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=BASE, headers=headers) as http:
        right = await http.post("/mcp", json=body, headers={"mcp-name": run["id"]})
        wrong = await http.post("/mcp", json=body, headers={} if named is None else {"mcp-name": named})
    assert right.status_code == 200 and right.json()["result"]["status"] == "working"
    assert wrong.status_code == 400 and wrong.json()["error"]["code"] == types.HEADER_MISMATCH


def test_what_takes_long_is_asked_about_less_often() -> None:
    assert shown("r", "working", "2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00.000Z", None)["pollIntervalMs"] == LATER_POLL_MS
