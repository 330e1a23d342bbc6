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
from aima_lib.flows.check import check
from aima_lib.flows.diagram import mermaid
from aima_lib.flows.document import Pipeline, as_document, read
from aima_lib.flows.inputs import input_schema
from aima_lib.flows.reference import references
from aima_lib.registry import PACKAGE, SCHEMAS, Registry
from tests.flows import OVERVIEW, closed, registry
from tests.workshop import unit, write_schemas

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
