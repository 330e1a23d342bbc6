"""Unit files: what every MCP host can swallow, judged by a second validator."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import jsonschema_rs
import pytest

import aima_lib
from aima_lib import errors
from aima_lib.registry import SCHEMAS, Registry, definitions

META = json.loads((SCHEMAS / "unit.schema.json").read_text(encoding="utf-8"))
RAW = {f"{path.parent.name}/{path.name}": json.loads(path.read_text(encoding="utf-8")) for path in sorted(SCHEMAS.glob("*/*.json"))}
UNITS = {name: raw for name, raw in RAW.items() if not name.startswith("types/")}
INLINED = {unit["name"]: unit for unit in definitions()}
CALLABLE = {name: unit for name, unit in INLINED.items() if unit["kind"] in ("command", "query")}
REFUSED_IN_INPUTS = {"const", "exclusiveMinimum", "exclusiveMaximum", "patternProperties", "$ref", "if", "not"}


def nodes(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema inside a schema, with its path."""
    if not isinstance(schema, dict):
        return
    yield path, schema
    for key, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{key}")
    for key in ("items", "additionalProperties"):
        yield from nodes(schema.get(key), f"{path}.{key}")
    for key in ("anyOf", "oneOf", "allOf"):
        for place, child in enumerate(schema.get(key, [])):
            yield from nodes(child, f"{path}.{key}.{place}")


def schemas_of(unit: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((key, unit[key]) for key in ("inputSchema", "outputSchema", "streamSchema", "payloadSchema") if key in unit)


def test_the_meta_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(META)
    assert jsonschema_rs.meta.is_valid(META)


@pytest.mark.parametrize("file", UNITS)
def test_a_unit_file_obeys_the_meta_schema_for_both_judges(file: str) -> None:
    jsonschema.Draft202012Validator(META).validate(UNITS[file])
    assert jsonschema_rs.Draft202012Validator(META).is_valid(UNITS[file])
    assert UNITS[file]["name"] == file.replace("/", ".").removesuffix(".json")


@pytest.mark.parametrize("name", INLINED)
def test_its_schemas_are_schemas_and_suit_every_host(name: str) -> None:
    unit = INLINED[name]
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,48}", name.replace(".", "_"))
    for key, schema in schemas_of(unit):
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["type"] == "object"
        for path, node in nodes(schema, key):
            for property, child in node.get("properties", {}).items():
                assert child.get("description"), f"{name} {path}.{property} has no description"
            assert "array" not in _types(node) or "items" in node, f"{name} {path} is an array without items"
            assert all(isinstance(choice, str) for choice in node.get("enum", [])), f"{name} {path} has an enum of other than strings"
            if key == "inputSchema":
                assert not REFUSED_IN_INPUTS & set(node), f"{name} {path} uses {REFUSED_IN_INPUTS & set(node)}"


@pytest.mark.parametrize("name", CALLABLE)
def test_an_input_is_closed_and_its_defaults_obey_it(name: str) -> None:
    schema = CALLABLE[name]["inputSchema"]
    assert schema["additionalProperties"] is False
    assert set(schema.get("required", [])) <= set(schema["properties"])
    for key, spec in schema["properties"].items():
        if "default" in spec:
            jsonschema.Draft202012Validator(spec).validate(spec["default"])
            assert key not in schema.get("required", []), f"{name}.{key} is required and has a default"


@pytest.mark.parametrize("name", [name for name, unit in CALLABLE.items() if "primary" in unit])
def test_the_primary_field_is_one_of_the_output(name: str) -> None:
    unit = CALLABLE[name]
    assert unit["primary"] in unit["outputSchema"]["properties"]
    assert unit["primary"] in unit["outputSchema"]["required"]


@pytest.mark.parametrize("name", CALLABLE)
def test_examples_obey_their_schemas_for_both_judges(name: str) -> None:
    unit = CALLABLE[name]
    judge, fast = jsonschema.Draft202012Validator(unit["inputSchema"]), jsonschema_rs.Draft202012Validator(unit["inputSchema"])
    for example in unit["examples"]:
        assert "input" in example
        verdict = judge.is_valid(example["input"])
        assert fast.is_valid(example["input"]) == verdict
        assert verdict or example.get("error") == "invalid_argument", f"{name}: {example['title']}"
        for call in example.get("given", []):
            jsonschema.Draft202012Validator(CALLABLE[call["unit"]]["inputSchema"]).validate(call["arguments"])
        if "error" in example:
            assert example["error"] in errors.BY_CODE
            assert example["error"] in unit["errors"], f"{name} does not say that it may answer {example['error']}"


@pytest.mark.parametrize("name", CALLABLE)
def test_a_unit_that_can_fail_shows_how(name: str) -> None:
    unit = CALLABLE[name]
    if unit["errors"]:
        assert any("error" in example for example in unit["examples"]), f"{name} lists errors and no example of one"
    # What is decided on is made anew each time: tests/contract/test_approvals.py does what no fixed example can.
    assert any("output" in example for example in unit["examples"]) or name in ("approval.approve", "approval.deny")


def test_every_event_is_somebodys() -> None:
    named = {event for unit in INLINED.values() for key in ("emits", "updatedBy") for event in unit.get(key, [])}
    orphans = [name for name, unit in INLINED.items() if unit["kind"] == "event" and name not in named]
    assert not orphans, f"no unit emits and no resource is updated by: {orphans}"


@pytest.mark.parametrize("name", [name for name, unit in INLINED.items() if unit["kind"] == "resource"])
def test_a_resources_examples_have_its_uri(name: str) -> None:
    registry = Registry.described()
    for example in INLINED[name]["examples"]:
        found = registry.resource(example["uri"])
        assert found is not None, f"no resource answers {example['uri']}"
        assert found[0].name == name, f"{example['uri']} is answered by {found[0].name}"


@pytest.mark.parametrize("file", [file for file in RAW if file.startswith("types/")])
def test_a_shared_noun_is_used_and_described(file: str) -> None:
    reference = f'"../{file}"'
    users = [path for path in SCHEMAS.glob("*/*.json") if reference in path.read_text(encoding="utf-8")]
    assert users or file in ("types/error.json", "types/progress.json"), f"nobody refers to {file}"
    assert RAW[file].get("description")


def _types(node: dict[str, Any]) -> list[str]:
    kind = node.get("type", [])
    return kind if isinstance(kind, list) else [kind]


PUBLISHED = re.compile(r"""(?:publish|_publish)\(\s*f?["']([a-z]+\.[a-z_{}]+)["']""")


def test_every_event_that_is_named_is_typed_and_every_typed_one_is_published() -> None:
    events = {name for name, unit in INLINED.items() if unit["kind"] == "event"}
    named = {
        (name, event) for name, unit in INLINED.items() for key in ("emits", "updatedBy") for event in unit.get(key, []) if event != "*"
    }
    assert not [f"{name} names {event}" for name, event in named if event not in events]
    for name in events:
        payload = INLINED[name]["payloadSchema"]
        assert payload["type"] == "object" and payload["additionalProperties"] is False, f"{name} may carry anything"
    said = {type for path in Path(aima_lib.__file__).parent.rglob("*.py") for type in PUBLISHED.findall(path.read_text(encoding="utf-8"))}
    patterns = [re.compile(re.sub(r"\{[a-z]+\}", "[a-z_]+", type)) for type in said]
    assert not [type for type in said if "{" not in type and type not in events]
    assert not [name for name in events if not any(pattern.fullmatch(name) for pattern in patterns)], "typed, and published by nobody"
