"""Inference by its units, over a served model."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

import anyio
import pytest

from aima_lib.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from tests.engines.conftest import Hosted

pytestmark = [pytest.mark.anyio, pytest.mark.engine]
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def served(hosted: Hosted) -> Hosted:
    await hosted.call("service.create", model_id=await hosted.tiny(), options={"context_length": 512})
    return hosted


async def test_the_stream_is_the_answer(served: Hosted) -> None:
    bits = list[str]()

    async def send(item: Mapping[str, Any]) -> None:
        bits.append(item["delta"].get("content", ""))

    arguments = {"model": "tiny", "messages": HELLO, "max_tokens": 9, "seed": 1}
    answer = await served.gateway.call("inference.chat", arguments, send=send)
    assert len(bits) == 9
    assert "".join(bits) == answer["content"]
    assert answer["finish_reason"] == "length"
    assert answer["timings"]["ttft_ms"] <= answer["timings"]["total_ms"]
    assert answer["placement"] == {"device": "cpu", "fallback": None}
    assert (await served.gateway.call("inference.chat", arguments))["content"] == answer["content"]


async def test_messages_may_be_parts_and_answers_may_obey_a_schema(served: Hosted) -> None:
    schema = {"type": "object", "required": ["ok"], "properties": {"ok": {"type": "boolean"}}, "additionalProperties": False}
    messages = [{"role": "system", "content": "short"}, {"role": "user", "content": [{"type": "text", "text": "is it?"}]}]
    answer = await served.call(
        "inference.chat",
        model="tiny",
        messages=messages,
        response_format={"type": "json_schema", "json_schema": {"schema": schema}},
        max_tokens=60,
    )
    assert isinstance(json.loads(answer["content"])["ok"], bool)


async def test_tools_that_the_model_would_never_see_are_refused(served: Hosted) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    with pytest.raises(FailedPrecondition, match="has no place for tools") as caught:
        await served.call("inference.chat", model="tiny", messages=HELLO, tools=[tool])
    assert caught.value.next[0]["arguments"]["options"]["chat_template"] == "qwen-tools"


async def test_a_caller_who_leaves_frees_the_slot(served: Hosted) -> None:
    heard = anyio.Event()

    async def send(item: Mapping[str, Any]) -> None:
        heard.set()
        await anyio.sleep(0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: served.gateway.call("inference.chat", {"model": "tiny", "messages": HELLO}, send=send))
        await heard.wait()
        tasks.cancel_scope.cancel()
    with anyio.fail_after(20):  # one slot: this waits for it
        await served.call("inference.chat", model="tiny", messages=HELLO, max_tokens=1)
    [left] = await served.until(lambda: served.events("inference.request_failed"))
    assert left["payload"]["code"] == "cancelled"


async def test_events_never_hold_the_prompt(served: Hosted) -> None:
    await served.call("inference.chat", model="tiny", messages=[{"role": "user", "content": "xylophone"}], max_tokens=2)
    await served.until(lambda: served.events("inference.request_completed"))
    assert "xylophone" not in json.dumps(served.events())
    assert "xylophone" not in "\n".join((await served.call("service.logs", service_id="tiny"))["lines"])


async def test_what_cannot_be_is_said_with_what_can(served: Hosted) -> None:
    with pytest.raises(InvalidArgument, match=r"tokens and llamacpp-tiny holds 512") as caught:
        await served.call("inference.chat", model="tiny", messages=[{"role": "user", "content": "word " * 900}])
    assert caught.value.details["context_length"] == 512
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]
    with pytest.raises(InvalidArgument, match="reads text only"):
        await served.call("inference.chat", model="tiny", messages=image)
    with pytest.raises(NotFound, match="no model or service called 'tinny'") as missing:
        await served.call("inference.chat", model="tinny", messages=HELLO)
    assert missing.value.hint == "did you mean tiny?"
    await served.tiny("idle")
    with pytest.raises(FailedPrecondition, match="nothing serves it") as idle:
        await served.call("inference.embed", model="idle", input="one")
    assert idle.value.next == [{"unit": "service.create", "arguments": {"model_id": "idle", "options": {"embedding": True}}}]


async def test_embedding_wants_a_model_served_for_it(served: Hosted) -> None:
    with pytest.raises(FailedPrecondition, match=r"without options\.embedding") as caught:
        await served.call("inference.embed", model="tiny", input="one")
    [call] = caught.value.next
    await served.gateway.call(call["unit"], call["arguments"])
    answer = await served.call("inference.embed", model="tiny-embed", input=["one two", "one two", "three"], dimensions=16)
    first, same, _ = answer["embeddings"]
    assert first == same
    assert sum(number * number for number in first) == pytest.approx(1)
    with pytest.raises(InvalidArgument, match="vectors of 64 numbers"):
        await served.call("inference.embed", model="tiny-embed", input="one", dimensions=65)


async def test_an_engine_that_dies_in_the_middle_is_unavailable_and_may_be_asked_again(served: Hosted) -> None:
    instance = served.gateway.services.engines.instance("llamacpp-tiny")

    async def send(item: Mapping[str, Any]) -> None:
        with contextlib.suppress(ProcessLookupError):  # several pieces may have come before it was gone
            os.kill(instance["pid"], 9)

    with pytest.raises(Unavailable) as caught:
        await served.gateway.call("inference.chat", {"model": "tiny", "messages": HELLO}, send=send)
    assert caught.value.retryable
    assert caught.value.next == [{"unit": "service.status", "arguments": {"service_id": "tiny"}}]


async def test_models_says_what_is_ready_and_what_is_not(served: Hosted) -> None:
    await served.tiny("idle")
    rows = {row["id"]: row for row in (await served.call("inference.models"))["models"]}
    assert (rows["tiny"]["status"], rows["idle"]["status"]) == ("ready", "loadable")
    assert "llamacpp" in rows["idle"]["reason"]
    assert [row["id"] for row in (await served.call("inference.models", type="chat"))["models"]] == ["tiny"]


async def test_what_the_publisher_set_is_what_a_request_gets_that_says_nothing(hosted: Hosted) -> None:
    model_id = await hosted.tiny("set")
    defaults = {"parameters": {"max_tokens": 7, "temperature": 0.0, "context_length": 256}}
    await hosted.gateway.services.store.update("model", model_id, defaults=defaults)
    await hosted.call("service.create", model_id=model_id)
    answers = [await hosted.call("inference.chat", model="set", messages=HELLO) for _ in range(2)]
    assert answers[0]["usage"]["completion_tokens"] == 7 and answers[0]["content"] == answers[1]["content"]
    longer = await hosted.call("inference.chat", model="set", messages=HELLO, max_tokens=9)
    assert longer["usage"]["completion_tokens"] == 9
