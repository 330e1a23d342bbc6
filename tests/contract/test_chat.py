"""One question through every door: at temperature 0 the same text, and on each face that streams the same text in pieces."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import anyio
import openai
import pytest

from aima_lib import AsyncAima
from tests.contract.conftest import Faces
from tests.contract.faces import Mcp
from tests.contract.watching import sse
from tests.world import World, environment

QUESTION: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "say something"}],
    "temperature": 0,
    "max_tokens": 24,
}


@pytest.fixture(scope="module")
def answer(world: World) -> str:
    """What `tiny` says."""
    text = world.call("inference.chat", **QUESTION)["content"]
    assert len(text.split()) > 5
    return str(text)


@pytest.fixture
def client(world: World) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{world.host.url}/v1", api_key=world.home.key(), max_retries=0) as opened:
        yield opened


@pytest.mark.parametrize("face", ["library", "async_library", "embedded", "http", "mcp_stdio", "mcp_http", "mcp_http_handshake", "cli"])
def test_every_door_gives_the_same_text(faces: Faces, answer: str, face: str) -> None:
    outcome = faces[face].call("inference.chat", QUESTION)
    assert outcome.code == "ok", outcome.body
    assert outcome.body["content"] == answer
    assert outcome.body["usage"]["completion_tokens"] == 24


def test_openai_gives_the_same_text(client: openai.OpenAI, answer: str) -> None:
    done = client.chat.completions.create(**QUESTION)
    assert done.choices[0].message.content == answer
    assert done.usage is not None
    assert done.usage.completion_tokens == 24


def test_openai_streams_it(client: openai.OpenAI, answer: str) -> None:
    pieces = [chunk.choices[0].delta.content for chunk in client.chat.completions.create(stream=True, **QUESTION) if chunk.choices]
    told = [piece for piece in pieces if piece]
    assert "".join(told) == answer
    assert len(told) > 5


def test_openai_lists_it_and_names_what_is_near(client: openai.OpenAI) -> None:
    assert "tiny" in [model.id for model in client.models.list()]
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.chat.completions.create(**QUESTION | {"model": "tiyn"})


def test_http_streams_it(world: World, answer: str) -> None:
    request: dict[str, Any] = {"json": QUESTION, "headers": {"Accept": "text/event-stream"}}
    with world.http.stream("POST", "/units/inference/chat", **request) as response:
        events = list(sse(response))
    *items, (last, result) = events
    assert {kind for kind, _ in items} == {"item"}
    assert last == "result"
    assert result["content"] == answer
    assert joined(data for _, data in items) == answer
    assert len(items) > 5


@pytest.mark.parametrize("face", ["mcp_stdio", "mcp_http", "mcp_http_handshake"])
def test_mcp_streams_it_as_progress(faces: Faces, answer: str, face: str) -> None:
    through = faces[face]
    assert isinstance(through, Mcp)
    told: list[tuple[float, str]] = []

    async def heard(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message or ""))

    result = through.portal.call(partial(through.client.call_tool, "inference_chat", QUESTION, progress_callback=heard))
    assert result.structured_content["content"] == answer
    assert "".join(message for _, message in told) == answer
    assert len(told) > 5
    assert [progress for progress, _ in told] == sorted({progress for progress, _ in told})


def test_the_library_streams_it(world: World, answer: str) -> None:
    stream = world.aima.stream("inference.chat", **QUESTION)
    items = list(stream)
    assert joined(items) == answer
    assert stream.result is not None
    assert stream.result["content"] == answer


def test_the_awaited_library_streams_it(world: World, answer: str) -> None:
    async def main() -> tuple[str, Mapping[str, Any] | None]:
        async with AsyncAima(world.home.path) as aima:
            stream = aima.stream("inference.chat", **QUESTION)
            items = [item async for item in stream]
            return joined(items), stream.result

    text, result = anyio.run(main)
    assert text == answer
    assert result is not None
    assert result["content"] == answer


def test_the_command_line_streams_it(world: World, answer: str) -> None:
    command = [str(world.host.python), "-m", "aima_mcp.main", "inference", "chat", "tiny", "--temperature", "0", "--max-tokens", "24"]
    command += ["--messages", '[{"role": "user", "content": "say something"}]']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(world.home.path))
    assert process.stdout is not None
    first = process.stdout.read1(65536)  # type: ignore[attr-defined]
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert (first + rest).decode().rstrip("\n") == answer


def test_a_stream_that_its_reader_leaves_ends_in_the_engine(world: World) -> None:
    """A reply that would run to the end of the context: leaving it frees the engine for the next."""
    long = QUESTION | {"max_tokens": 900}
    with world.http.stream("POST", "/units/inference/chat", json=long, headers={"Accept": "text/event-stream"}) as response:
        next(sse(response))
    with openai.OpenAI(base_url=f"{world.host.url}/v1", api_key=world.home.key(), max_retries=0, timeout=60) as client:
        assert client.chat.completions.create(**QUESTION).choices[0].message.content


def joined(items: Any) -> str:
    """The text that a stream's items add up to."""
    return "".join(item["delta"].get("content", "") for item in items)
