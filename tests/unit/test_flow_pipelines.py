"""The pipelines that come with AIMA: each is right, for the units that there are and for those that are to be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from aima_lib.door import OWNER
from aima_lib.errors import FailedPrecondition, InvalidArgument
from aima_lib.flows.check import check
from aima_lib.flows.diagram import mermaid
from aima_lib.flows.document import Pipeline, as_document, read
from aima_lib.flows.inputs import input_schema
from aima_lib.flows.reference import references
from aima_lib.gateway import Gateway
from aima_lib.infra.home import Home
from aima_lib.registry import PACKAGE, SCHEMAS, Registry
from aima_lib.runtime import host
from tests.flows import OVERVIEW, closed, registry
from tests.workshop import agreed, unit, write_schemas

FILES = sorted((PACKAGE / "flows" / "pipelines").glob("*.yaml"))
NAMES = ["batch_inference", "content_gen", "detect_describe", "rag", "vision_chat", "voice_assistant"]
TEXT, TEXTS = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
IMAGES, RANKS = {"type": "array", "items": closed("image", image=TEXT)}, {"type": "array", "items": closed("index score", index={"type": "integer"}, score={"type": "number"})}  # fmt: skip
LATER = [
    unit("command", "inference.generate_image", inputSchema=closed("model prompt", model=TEXT, prompt=TEXT, size=TEXT, seed={"type": "integer"}), outputSchema=closed("images", images=IMAGES), primary="images"),
    unit("command", "inference.rerank", inputSchema=closed("model query documents", model=TEXT, query=TEXT, documents=TEXTS, top_n={"type": "integer"}), outputSchema=closed("results", results=RANKS), primary="results"),
    unit("command", "inference.detect", inputSchema=closed("model image", model=TEXT, image=TEXT, threshold={"type": "number"}, labels=TEXTS), outputSchema=closed("detections width height", detections={"type": "array", "items": closed("label", label=TEXT)}, width={"type": "integer"}, height={"type": "integer"}), primary="detections"),
    unit("command", "inference.synthesize", inputSchema=closed("model text", model=TEXT, text=TEXT, voice=TEXT), outputSchema=closed("audio", audio=TEXT), primary="audio"),
]  # fmt: skip


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """AIMA's own units, and stand-ins for those of engines that are not here yet."""
    folder = tmp_path_factory.mktemp("schemas")
    later = Registry.described(write_schemas(folder / "later", *LATER))
    return Registry({**registry(folder / "rest"), **later, **Registry.described()})


def of(name: str) -> Pipeline:
    return read((PACKAGE / "flows" / "pipelines" / f"{name}.yaml").read_text(encoding="utf-8"))


def test_they_are_all_there() -> None:
    assert [path.stem for path in FILES] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_is_right_and_says_what_it_takes(units: Registry, name: str) -> None:
    pipeline = of(name)
    assert pipeline.name == name
    assert check(pipeline, units, OWNER, lambda id: None) == []
    assert len(pipeline.description) > 20
    schema = input_schema(pipeline, units)
    jsonschema.Draft202012Validator.check_schema(schema)
    for key, spec in schema["properties"].items():
        assert spec["description"], f"{key} says nothing"
        if "default" in spec:
            jsonschema.Draft202012Validator(spec).validate(spec["default"])
    assert pipeline.output
    assert read(as_document(pipeline)) == pipeline
    assert mermaid(pipeline).startswith("flowchart TD\n")


def test_the_overviews_is_the_first_of_them_in_short(units: Registry) -> None:
    short, whole = read(OVERVIEW), of("voice_assistant")
    assert short.name == whole.name
    assert [(step.id, step.type, step.needs) for step in short.steps] == [(step.id, step.type, step.needs) for step in whole.steps]
    assert check(short, units, OWNER, lambda id: None) == []


def test_editors_know_every_key() -> None:
    """Everything in the schema is described, and both judges take the documents by it."""
    schema = json.loads((SCHEMAS / "pipeline.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)

    def undescribed(node: Any, path: str) -> Iterator[str]:
        if not isinstance(node, dict):
            return
        for key, spec in node.get("properties", {}).items():
            if not spec.get("description"):
                yield f"{path}.{key}"
            yield from undescribed(spec, f"{path}.{key}")
        for key in ("items", "additionalProperties"):
            yield from undescribed(node.get(key), f"{path}[]")
        for key, spec in node.get("$defs", {}).items():
            yield from undescribed(spec, f"#{key}")

    assert [*undescribed(schema, "")] == []
    judge = jsonschema.Draft202012Validator(schema)
    for document in [*map(of, NAMES), read(OVERVIEW)]:
        judge.validate(as_document(document))


def blocks(language: str) -> list[str]:
    text = (Path(__file__).parents[2] / "docs" / "pipelines.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_what_the_page_shows_is_right(units: Registry) -> None:
    (document,) = blocks("yaml")
    pipeline = read(document)
    assert check(pipeline, units, OWNER, lambda id: None) == []
    (program,) = blocks("python")
    names: dict[str, Any] = {}
    exec(program, names)
    assert check(names["flow"].pipeline, units, OWNER, lambda id: None) == []


def test_the_page_names_every_key_of_a_step() -> None:
    text = (Path(__file__).parents[2] / "docs" / "pipelines.md").read_text(encoding="utf-8")
    schema = json.loads((SCHEMAS / "pipeline.schema.json").read_text(encoding="utf-8"))
    table = text.partition("## Steps")[2].partition("## References")[0]
    assert [key for key in schema["$defs"]["step"]["properties"] if f"`{key}`" not in table] == []
    for reference in re.findall(r"`(\$\{.*?\})`", text.partition("## References")[2].partition("A value that")[0]):
        assert references(reference)


@pytest.mark.anyio
async def test_one_that_was_made_here_stands_in_the_place_of_one_that_comes_with_aima(hosted: Gateway) -> None:
    document = {"name": "batch_inference", "steps": [{"id": "found", "type": "model.list"}], "output": "${steps.found.total}"}

    async def listed(**given: str) -> list[tuple[str, bool]]:
        rows = (await hosted.call("pipeline.list", given))["pipelines"]
        return [(row["source"], row["shadows_builtin"]) for row in rows if row["id"] == "batch_inference"]

    with pytest.raises(FailedPrecondition, match="comes with AIMA and stays"):
        await agreed(hosted, "pipeline.delete", {"pipeline_id": "batch_inference"})
    with pytest.raises(InvalidArgument):  # the one that comes with AIMA is on record by this run
        await hosted.call("pipeline.run", {"pipeline_id": "batch_inference"})
    made = (await hosted.call("pipeline.create", document))["pipeline"]
    assert (made["source"], made["shadows_builtin"], made["version"]) == ("user", True, 2)
    assert (await hosted.call("pipeline.run", {"pipeline_id": "batch_inference"}))["output"] == 0
    assert await listed() == await listed(source="user") == [("user", True)]
    assert await listed(source="builtin") == [("builtin", False)]
    first = (await hosted.call("pipeline.get", {"pipeline_id": "batch_inference", "version": 1}))["pipeline"]
    assert (first["source"], first["steps"]) == ("builtin", ["ask"])
    await agreed(hosted, "pipeline.delete", {"pipeline_id": "batch_inference"})
    assert await listed() == [("builtin", False)]
    assert (await hosted.call("pipeline.get", {"pipeline_id": "batch_inference"}))["document"]["steps"][0]["id"] == "ask"
    assert {row["id"] for row in (await hosted.call("pipeline.list"))["pipelines"]} == set(NAMES)


@pytest.mark.anyio
async def test_what_no_model_here_can_answer_is_said(home: Home) -> None:
    (home.path / "config.toml").write_text('[models.aliases]\n"llama3.2" = "talker"\n"tts-1" = "nobody"\n', encoding="utf-8")
    async with host(home) as gateway:

        async def reasons() -> dict[str, str | None]:
            rows = (await gateway.call("pipeline.list"))["pipelines"]
            assert all(row["runnable"] == (not str(row["reason"]).startswith("not here")) for row in rows)
            return {row["id"]: row["reason"] for row in rows}

        assert (await reasons())["voice_assistant"] == "not here: a model that hears, a model that chats, a model that speaks"
        assert (await reasons())["vision_chat"] == "not here: a model that sees and chats"
        for id, kind, abilities in (("talker", "llm", ["chat"]), ("ears", "asr", []), ("voice", "tts", []), ("eyes", "vlm", ["vision"])):
            await gateway.services.store.insert("model", {"id": id, "type": kind, "capabilities": abilities, "files": []})
        found = await reasons()
        assert found["batch_inference"] is None
        assert found["voice_assistant"] == (
            "must be named: input.transcribe_model (its own, whisper, is not), input.speech_model (its own, tts-1, is not)"
        )
        assert found["vision_chat"] == "must be named: input.model (its own, llava, is not)"
        assert found["detect_describe"] == "not here: a model that finds things in images"
        step = {"id": "ask", "type": "inference.chat", "input": {"model": "gone", "messages": [{"role": "user", "content": "x"}]}}
        made = (await gateway.call("pipeline.create", {"name": "own", "steps": [step]}))["pipeline"]
        assert (made["runnable"], made["reason"]) == (False, "not here: gone, which the step ask asks")
