"""An engine's stream, cut anywhere, put together again; what an engine's refusals become; backoff."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream

from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument, Unavailable
from aima_lib.services.answer import Answer
from aima_lib.services.meter import Meter
from aima_lib.services.restarts import Restarts
from aima_lib.services.wire import Address, Wire, translated

pytestmark = pytest.mark.anyio
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def chunk(**delta: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": delta}]}).encode()


async def streamed(*pieces: bytes) -> list[dict[str, Any]]:
    """What a client hears from a server that sends exactly these pieces."""

    async def serve(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            for piece in (HEAD, *pieces):
                await stream.send(piece)

    wire, heard, refused = Wire(), list[dict[str, Any]](), list[AimaError]()
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        try:
            async for item in wire.stream(Address("engine", f"http://127.0.0.1:{port}", "key"), "/v1/chat/completions", {}):
                heard.append(item)
        except AimaError as error:
            refused.append(error)
        await wire.close()
        tasks.cancel_scope.cancel()
    for error in refused:
        raise error
    return heard


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
async def test_a_stream_may_be_cut_anywhere(size: int, end: bytes) -> None:
    text = (
        b": a comment"
        + end
        + end.join([chunk(content="grün"), b"", b"event: x", chunk(content="!").replace(b"data: ", b"data:"), b"", b""])
    )
    text += b"data: [DONE]" + end + end
    heard = await streamed(*(text[i : i + size] for i in range(0, len(text), size)))
    assert [item["choices"][0]["delta"]["content"] for item in heard] == ["grün", "!"]


async def test_a_stream_that_breaks_off_is_not_an_answer() -> None:
    with pytest.raises(Unavailable, match="in the middle"):
        await streamed(chunk(content="half") + b"\n\n")


async def test_an_error_inside_a_stream_is_raised() -> None:
    error = (
        b'data: {"error": {"code": 400, "message": "too long", "type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 8}}\n\n'
    )
    with pytest.raises(InvalidArgument, match="9 tokens and engine holds 8"):
        await streamed(chunk(content="a") + b"\n\n", error)


async def test_an_iterator_that_is_closed_closes_the_connection() -> None:
    closed = anyio.Event()

    async def serve(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(HEAD)
            try:
                while True:
                    await stream.send(chunk(content="on") + b"\n\n")
                    await anyio.sleep(0.01)
            except (anyio.BrokenResourceError, OSError):
                closed.set()

    wire = Wire()
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        items: AsyncIterator[Any] = wire.stream(Address("engine", f"http://127.0.0.1:{port}", "key"), "/x", {})
        await anext(items)
        await items.aclose()  # type: ignore[attr-defined]
        with anyio.fail_after(20):
            await closed.wait()
        await wire.close()
        tasks.cancel_scope.cancel()


async def test_nobody_there_is_unavailable() -> None:
    wire = Wire()
    with pytest.raises(Unavailable, match="engine cannot be reached"):
        await wire.get(Address("engine", "http://127.0.0.1:9", "key"), "/", timeout=2)
    await wire.close()


def test_tool_calls_come_in_pieces() -> None:
    answer = Answer("chat-1")
    pieces = [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "look", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"at": '}},
        {"index": 1, "function": {"name": "stop", "arguments": "{}"}},
        {"index": 0, "function": {"arguments": '"sea"}'}},
    ]
    for piece in pieces:
        answer.take({"choices": [{"delta": {"tool_calls": [piece]}}]})
    answer.take({"choices": [{"delta": {}, "finish_reason": "tool_calls"}], "timings": {"prompt_ms": 0.0, "predicted_per_second": 12.345}})
    result = answer.result("m", {"device": "cpu", "fallback": None})
    assert [call["function"] for call in result["tool_calls"]] == [
        {"name": "look", "arguments": '{"at": "sea"}'},
        {"name": "stop", "arguments": "{}"},
    ]
    assert [call["id"] for call in result["tool_calls"]] == ["a", "call-chat-1-1"]
    assert result["timings"]["tokens_per_second"] == 12.35
    assert result["usage"] is None, "what the engine did not count is not invented"


def test_an_answer_without_a_reason_to_stop_may_be_half() -> None:
    answer = Answer("chat-1")
    answer.take({"choices": [{"delta": {"content": "half"}}]})
    with pytest.raises(Unavailable):
        answer.result("m", {"device": None, "fallback": None})


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"message": "bad grammar"}}, InvalidArgument),
        (501, {"error": {"message": "no embeddings", "type": "not_supported_error"}}, FailedPrecondition),
        (503, {"error": {"message": "Loading model"}}, Unavailable),
        (500, {"error": "a word"}, Unavailable),
        (502, ["what"], Unavailable),
    ],
)
def test_refusals_become_ours(status: int, body: Any, kind: type[AimaError]) -> None:
    assert type(translated(Address("engine", "", ""), status, body)) is kind


def test_a_service_backs_off_and_is_spent() -> None:
    restarts = Restarts(3, 60)
    assert restarts.is_due("s")
    restarts.note("s", "start-1")
    restarts.note("s", "start-1")
    assert (restarts.deaths("s"), restarts.is_due("s"), restarts.is_spent("s")) == (1, False, False)
    assert restarts.attempt("s") == {"attempt": 1, "delay_seconds": 1.0}
    restarts.note("s", None)
    assert restarts.attempt("s") == {"attempt": 2, "delay_seconds": 2.0}
    restarts.note("s", "start-2")
    assert (restarts.is_spent("s"), restarts.is_due("s")) == (True, True), "to be said to have failed"
    restarts.forget("s")
    assert restarts.deaths("s") == 0


def test_a_meter_invents_nothing() -> None:
    meter = Meter()
    empty = meter.read()
    assert (empty["requests_per_second"], empty["ttft_p50_ms"], empty["error_rate"]) == (0, None, None)
    for i in range(100):
        meter.record(float(i), 10.0, i >= 90)
    full = meter.read()
    assert (full["ttft_p50_ms"], full["ttft_p99_ms"], full["error_rate"], full["tokens_per_second"]) == (50, 99, 0.1, 10)


def test_more_requests_than_are_kept_are_not_told_as_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("aima_lib.services.meter.time.monotonic", lambda: clock[0])
    meter = Meter()
    for _ in range(40_000):  # a thousand a second
        clock[0] += 0.001
        meter.record(None, None, False)
    assert meter.read()["requests_per_second"] == pytest.approx(1000, rel=0.01)
