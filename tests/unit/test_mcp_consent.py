"""Elicitation in both eras: a person behind the client is asked before something is destroyed, and their word is what counts."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import pytest
from mcp import Client

from aima_lib.infra.home import Home
from aima_mcp.faces.mcp.stdio import over
from tests.mcp_world import ERAS, World, opened, serve
from tests.tiny import write_tiny_gguf

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")]


class Person:
    """Who is asked."""

    def __init__(self, answer: str) -> None:
        self.answer, self.asked = answer, list[str]()

    async def __call__(self, context: Any, params: Any) -> types.ElicitResult:
        self.asked.append(params.message)
        if self.answer == "away":
            await anyio.sleep_forever()
        return types.ElicitResult.model_validate({"action": self.answer, "content": {} if self.answer == "accept" else None})


@pytest.fixture
async def world(home: Home, tmp_path: Path, anyio_backend: str) -> AsyncIterator[World]:
    async with opened(home, tmp_path) as found:
        weights = write_tiny_gguf(tmp_path / "tiny.gguf")
        await found.gateway.call("model.create", {"name": "doomed", "type": "llm", "path": str(weights)})
        yield found


@asynccontextmanager
async def client_with(world: World, person: Person | None, mode: str) -> AsyncIterator[Client]:
    theirs, ours = socket.socketpair()
    with theirs:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve, world.face, ours)
            async with Client(over(theirs.fileno(), theirs.fileno()), mode=mode, elicitation_callback=person) as client:
                yield client
            theirs.shutdown(socket.SHUT_WR)


def is_there(world: World) -> bool:
    return world.gateway.services.store.peek("model", "doomed") is not None


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.parametrize("way", ["model_delete", "unit_call"])
async def test_what_a_person_agrees_to_is_done(world: World, mode: str, way: str) -> None:
    person = Person("accept")
    arguments: dict[str, Any] = {"model_id": "doomed"}
    if way == "unit_call":
        arguments = {"name": "model.delete", "arguments": arguments}
    async with client_with(world, person, mode) as client:
        result = await client.call_tool(way, arguments)
    assert not result.is_error, result
    assert person.asked == ["model.delete: it deletes model doomed. Go on?"]
    assert not is_there(world)


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.parametrize("answer", ["decline", "cancel"])
async def test_what_a_person_does_not_agree_to_is_not_done_and_no_token_gets_out(world: World, mode: str, answer: str) -> None:
    async with client_with(world, Person(answer), mode) as client:
        result = await client.call_tool("model_delete", {"model_id": "doomed"})
    assert result.is_error and result.structured_content is not None
    assert result.structured_content["code"] == "cancelled"
    assert "plan-" not in str(result)
    assert is_there(world)


async def test_a_person_who_is_away_keeps_nobody_waiting(world: World) -> None:
    async with client_with(world, Person("away"), "legacy") as client:
        with anyio.fail_after(10):
            result = await client.call_tool("model_delete", {"model_id": "doomed"})
    assert result.is_error and result.structured_content is not None
    assert "nobody answered" in result.structured_content["message"]
    assert is_there(world)


@pytest.mark.parametrize("mode", ERAS)
async def test_a_client_that_cannot_ask_gets_the_token(world: World, mode: str) -> None:
    async with client_with(world, None, mode) as client:
        result = await client.call_tool("model_delete", {"model_id": "doomed"})
        assert result.structured_content is not None
        assert result.structured_content["code"] == "approval_required"
        [call] = result.structured_content["next"]
        assert is_there(world)
        done = await client.call_tool("unit_call", call["arguments"])
    assert not done.is_error and not is_there(world)


@pytest.mark.parametrize("mode", ERAS)
async def test_what_takes_somebody_elses_word_is_not_asked_of_the_clients_person(world: World, mode: str) -> None:
    """The way back in a repeated call is closed too: a state that is nobody's token opens nothing."""
    world.gateway.policy._units = {"model.delete": "approve"}
    world.face._caller = world.face._caller.__class__("mcp", world.face._caller.scopes)
    person = Person("accept")
    async with client_with(world, person, mode) as client:
        result = await client.call_tool("model_delete", {"model_id": "doomed"})
    assert result.structured_content is not None
    assert result.structured_content["code"] == "approval_required"
    assert person.asked == [] and is_there(world)
