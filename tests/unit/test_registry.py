"""Unit files and handlers: bound when they agree, refused by file name when they do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aima_lib.registry import Judge, Registry, SchemaError
from tests.workshop import OPEN, unit, write_handlers, write_schemas

PULL_INPUT = {
    "type": "object",
    "required": ["repo"],
    "additionalProperties": False,
    "properties": {"repo": {"type": "string"}, "source": {"type": "string"}, "limit": {"type": "integer", "default": 5}},
}
PULL = unit("command", "thing.pull", inputSchema=PULL_INPUT)
GOOD = "@handles('thing.pull')\nasync def pull(ctx, repo, source=None, limit=5):\n    return {}\n"
Load = Callable[..., Registry]


@pytest.fixture
def load(tmp_path: Path, request: pytest.FixtureRequest) -> Load:
    def loaded(source: str, *units: dict[str, Any]) -> Registry:
        name = "handlers_" + "".join(letter for letter in request.node.name if letter.isalnum())
        return Registry.load(write_handlers(tmp_path, name, source), write_schemas(tmp_path / "schemas", *units))

    return loaded


def test_an_agreeing_pair_is_bound(load: Load) -> None:
    registry = load(GOOD, PULL, unit("event", "thing.pulled"))
    assert registry["thing.pull"].handler is not None
    assert registry["thing.pulled"].handler is None
    assert [each.name for each in registry.of("command", "event")] == ["thing.pull", "thing.pulled"]
    assert (registry["thing.pull"].domain, registry["thing.pull"].action) == ("thing", "pull")


@pytest.mark.parametrize(
    "signature",
    ["ctx, repo, source=None", "ctx, repo, source=None, limit=6", "ctx, repo=None, source=None, limit=5", "ctx, repo, sauce=None, limit=5", "ctx, repo, source, limit=5",
     "ctx, repo, source=None, limit=5, extra=None"],
)  # fmt: skip
def test_a_signature_that_differs_is_refused_by_file_name(load: Load, signature: str) -> None:
    source = f"@handles('thing.pull')\nasync def pull({signature}):\n    return {{}}\n"
    with pytest.raises(SchemaError, match=r"schemas/thing/pull\.json says repo, source=None, limit=5; .*\.pull takes"):
        load(source, PULL)


def test_a_file_without_a_handler_is_refused(load: Load) -> None:
    with pytest.raises(SchemaError, match=r"schemas/thing/push\.json has no handler"):
        load(GOOD, PULL, unit("query", "thing.push"))


def test_a_handler_without_a_file_is_refused(load: Load) -> None:
    with pytest.raises(SchemaError, match=r"handlers without a schema file: thing\.pull"):
        load(GOOD)


def test_two_handlers_of_one_unit_are_refused(load: Load) -> None:
    with pytest.raises(SchemaError, match=r"thing\.pull has two handlers or planners"):
        load(GOOD + GOOD.replace("def pull", "def pull_again"), PULL)


def test_a_file_named_otherwise_than_its_unit_is_refused(load: Load, tmp_path: Path) -> None:
    folder = write_schemas(tmp_path / "schemas", PULL)
    (folder / "thing" / "pull.json").rename(folder / "thing" / "fetch.json")
    with pytest.raises(SchemaError, match=r"fetch\.json is named 'thing\.pull'"):
        load(GOOD)


def test_an_event_that_nobody_defines_is_refused(load: Load) -> None:
    with pytest.raises(SchemaError, match=r"schemas/thing/pull\.json: emits names 'thing\.pulled', which is no event"):
        load(GOOD, PULL | {"emits": ["thing.pulled"]})


def test_a_reference_is_inlined_and_a_broken_one_named(load: Load, tmp_path: Path) -> None:
    types = tmp_path / "schemas" / "types"
    types.mkdir(parents=True)
    (types / "inner.json").write_text(json.dumps({"type": "string", "description": "inner"}), encoding="utf-8")
    outer = {"type": "object", "properties": {"name": {"$ref": "../types/inner.json"}}}
    (types / "outer.json").write_text(json.dumps(outer), encoding="utf-8")
    registry = load(
        GOOD, PULL | {"outputSchema": {"type": "object", "properties": {"thing": {"$ref": "../types/outer.json", "description": "mine"}}}}
    )
    thing = registry["thing.pull"].definition["outputSchema"]["properties"]["thing"]
    assert thing == {**outer, "properties": {"name": {"type": "string", "description": "inner"}}, "description": "mine"}
    (types / "outer.json").unlink()
    with pytest.raises(SchemaError, match=r"pull\.json refers to \.\./types/outer\.json, which cannot be read"):
        Registry.described(tmp_path / "schemas")


def test_a_resource_takes_its_templates_variables(load: Load) -> None:
    resource = unit(
        "resource",
        "thing.one",
        uriTemplate="aima://thing/{thing_id}",
        mimeType="application/json",
        scope="read",
        outputSchema=OPEN,
        updatedBy=[],
    )
    registry = load("@handles('thing.one')\nasync def one(ctx, thing_id):\n    return {}\n", resource)
    found = registry.resource("aima://thing/tiny.v1")
    assert found is not None
    assert found[1] == {"thing_id": "tiny.v1"}
    assert registry.resource("aima://thing/a/b") is None
    assert registry.resource("aima://thing/") is None
    assert registry.resource("aima://thingXtiny") is None


def test_a_resource_whose_handler_takes_something_else_is_refused(load: Load) -> None:
    resource = unit(
        "resource",
        "thing.one",
        uriTemplate="aima://thing/{thing_id}",
        mimeType="application/json",
        scope="read",
        outputSchema=OPEN,
        updatedBy=[],
    )
    with pytest.raises(SchemaError, match=r"schemas/thing/one\.json says thing_id; .* takes id"):
        load("@handles('thing.one')\nasync def one(ctx, id):\n    return {}\n", resource)


def test_a_judge_says_where_and_refuses_what_json_cannot_carry() -> None:
    judge = Judge({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "number"}}}})
    assert judge.first_error({"a": [1, 2.5]}) is None
    assert str(judge.first_error({"a": [1, "x"]})).startswith("a.1: ")
    assert judge.first_error({"a": [float("nan")]}) is not None
    assert judge.first_error({"a": [object()]}) is not None
    assert judge.first_error({1: 2}) is not None
