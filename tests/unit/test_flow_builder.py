"""Pipelines built from calls, and their drawings."""

from __future__ import annotations

import pytest

from aima_lib import Aima, AsyncAima
from aima_lib.errors import AlreadyExists, InvalidArgument
from aima_lib.flows.diagram import mermaid
from aima_lib.flows.document import as_document, read
from tests.flows import OVERVIEW


def test_calls_give_the_document_that_yaml_gives() -> None:
    flow = Aima.flow("voice_assistant")
    heard = flow.step("inference.transcribe", {"model": "whisper", "audio": flow.input.audio})
    said = flow.inference.chat(model="llama3.2", messages=[{"role": "user", "content": heard.text}])
    flow.step("inference.synthesize", {"model": "tts-1", "text": said.response})
    assert flow.document == as_document(read(OVERVIEW))


def test_every_part_of_a_document_can_be_built() -> None:
    flow = AsyncAima.flow(
        "whole", description="All.", input={"properties": {"files": {"type": "array"}}}, max_parallel=2, constants={"model": "tiny"}
    )
    seen = flow.step(
        "any.thing", {"x": flow.item.path, "m": flow.config.model}, id="seen", for_each=flow.input.files, max_parallel=3, if_="input.files"
    )
    flow.step(
        "any.thing",
        {"all": seen[:].label, "one": seen[0]["a key"], "deep": [f"in {flow.run.id}: {seen[-1].from_}"]},
        retry=2,
        on_error="seen2",
    )
    flow.step("any.thing", id="seen2", compensate={"type": "any.thing", "input": {"x": seen}})
    flow.output(labels=seen.response)
    assert flow.document == {
        "name": "whole",
        "description": "All.",
        "input": {"properties": {"files": {"type": "array"}}},
        "steps": [
            {"id": "seen", "type": "any.thing", "input": {"x": "${item.path}", "m": "${config.model}"}, "if": "input.files", "for_each": {"items": "${input.files}", "max_parallel": 3}},
            {"id": "thing", "type": "any.thing", "input": {"all": "${steps.seen[*].label}", "one": '${steps.seen[0]["a key"]}', "deep": ["in ${run.id}: ${steps.seen[-1].from}"]}, "retry": {"attempts": 2, "backoff_seconds": 1.0}, "on_error": "seen2"},
            {"id": "seen2", "type": "any.thing", "compensate": {"type": "any.thing", "input": {"x": "${steps.seen}"}}},
        ],
        "output": {"labels": "${steps.seen.response}"},
        "config": {"max_parallel": 2, "constants": {"model": "tiny"}},
    }  # fmt: skip
    assert read(flow.document) == flow.pipeline


def test_a_step_without_an_id_is_called_by_its_unit() -> None:
    flow = Aima.flow("twice")
    first, second = flow.system.info(), flow.system.info()
    assert [str(first.version), str(second.version)] == ["${steps.info.version}", "${steps.info-2.version}"]
    with pytest.raises(AlreadyExists):
        flow.system.info(id="info")


def test_what_does_not_exist_is_refused_where_it_is_written() -> None:
    flow = Aima.flow("wrong")
    with pytest.raises(InvalidArgument, match="takes no 'modle'") as error:
        flow.inference.chat(modle="x")
    assert error.value.hint == "did you mean model?"
    with pytest.raises(InvalidArgument, match="has no 'on_eror'"):
        flow.step("any.thing", on_eror="continue")
    with pytest.raises(AttributeError, match="no domain called 'inferense'"):
        flow.inferense
    with pytest.raises(TypeError, match="for_each"):
        list(flow.input.files)
    with pytest.raises(InvalidArgument):
        flow.document  # it has no step


def test_a_drawing_shows_what_goes_where() -> None:
    flow = Aima.flow("drawn")
    seen = flow.step("inference.detect", {"image": flow.item}, id="seen", for_each=flow.input.images)
    spare = flow.step("any.thing", id="spare")
    text = flow.step(
        "inference.chat", {"model": flow.input.model, "messages": seen.detections}, id="text", on_error="spare", depends_on=["seen"]
    )
    flow.step(
        "model.delete", {"model_id": text.response}, id="end", approval=True, depends_on=["seen"], if_=f"{text.usage.total_tokens} > 3"
    )
    flow.output(said=spare.x, reply=text.response)
    assert mermaid(flow.pipeline) == (
        "flowchart TD\n"
        '  s0[["seen<br/>inference.detect<br/>for each"]]\n'
        '  s1["spare<br/>any.thing"]\n'
        '  s2["text<br/>inference.chat"]\n'
        '  s3{{"end<br/>model.delete<br/>if $#123;steps.text.usage.total_tokens#125; #62; 3<br/>waits for approval"}}\n'
        '  input(["input: images, model"])\n'
        '  input -->|"images"| s0\n'
        '  input -->|"model"| s2\n'
        '  s0 -->|"detections"| s2\n'
        "  s2 -.->|on error| s1\n"
        '  s2 -->|"response, usage"| s3\n'
        "  s0 -.-> s3\n"
        '  output(["output"])\n'
        '  s1 -->|"x"| output\n'
        '  s2 -->|"response"| output\n'
    )
