"""What schemas say of each other: never "it cannot be" of what can, judged by a validator that is not ours."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as some

from aima_lib.flows.reference import Each
from aima_lib.flows.shape import Fit, Nowhere, Schema, lead, types

NAMES = some.sampled_from(["a", "b", "c"])
VALUES = some.recursive(
    some.none() | some.booleans() | some.integers(-3, 3) | some.sampled_from([0.5, 2.0, "", "a", "b", "abc"]),
    lambda below: some.lists(below, max_size=3) | some.dictionaries(NAMES, below, max_size=3),
    max_leaves=6,
)
TYPES = ["null", "boolean", "integer", "number", "string", "array", "object"]


def nodes(below: some.SearchStrategy[Schema]) -> some.SearchStrategy[Schema]:
    keys: dict[str, Any] = {
        "type": some.sampled_from(TYPES) | some.lists(some.sampled_from(TYPES), min_size=1, max_size=3, unique=True),
        "enum": some.lists(VALUES, min_size=1, max_size=3),
        "const": VALUES,
        "minimum": some.integers(-2, 2), "maximum": some.integers(-2, 2), "minLength": some.integers(0, 3), "maxLength": some.integers(0, 3),
        "minItems": some.integers(0, 3), "maxItems": some.integers(0, 3), "minProperties": some.integers(0, 2), "maxProperties": some.integers(0, 2),
        "items": below, "prefixItems": some.lists(below, min_size=1, max_size=2),
        "properties": some.dictionaries(NAMES, below | some.booleans(), max_size=3),
        "required": some.lists(NAMES, max_size=2, unique=True),
        "additionalProperties": some.booleans() | below,
        "anyOf": some.lists(below, min_size=1, max_size=3), "oneOf": some.lists(below, min_size=1, max_size=2), "allOf": some.lists(below, min_size=1, max_size=2),
        "not": below,
    }  # fmt: skip
    return some.lists(some.sampled_from(sorted(keys)), max_size=4, unique=True).flatmap(
        lambda chosen: some.fixed_dictionaries({key: keys[key] for key in chosen})
    )


SCHEMAS: some.SearchStrategy[Schema] = some.recursive(
    some.just({}) | some.builds(lambda kind: {"type": kind}, some.sampled_from(TYPES)), nodes, max_leaves=5
)


def obeys(value: Any, schema: Schema) -> bool:
    return bool(jsonschema.Draft202012Validator(dict(schema)).is_valid(value))


def hollow(value: Any) -> bool:
    """Whether there is an empty list inside: those are the exception."""
    return value == [] or any(map(hollow, value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()))


@settings(max_examples=300)
@given(SCHEMAS, SCHEMAS, VALUES)
def test_what_obeys_both_is_never_said_to_be_impossible(mine: Schema, theirs: Schema, value: Any) -> None:
    assume(not hollow(value) and obeys(value, mine) and obeys(value, theirs))
    assert Fit().clash(mine, theirs) is None


@settings(max_examples=200)
@given(SCHEMAS, VALUES, some.data())
def test_a_path_that_a_value_has_leads_somewhere(schema: Schema, value: Any, data: some.DataObject) -> None:
    assume(obeys(value, schema))
    path: list[Any] = []
    here = value
    while isinstance(here, dict | list) and here:
        part = data.draw(some.sampled_from(sorted(here) if isinstance(here, dict) else list(range(len(here)))))
        here, path = here[part], [*path, part]
    if "allOf" not in str(schema) and "not" not in str(schema):  # what holds inside those is not looked at
        assert obeys(here, lead(schema, path)) or "oneOf" in str(schema)
    each = [Each() if isinstance(part, int) else part for part in path]
    lead(schema, each)


@pytest.mark.parametrize(
    ("mine", "theirs", "says"),
    [
        ({"type": "string"}, {"type": "integer"}, "it is a text, and a whole number is wanted"),
        ({"type": ["string", "null"]}, {"type": "integer"}, "it is a text or null, and a whole number is wanted"),
        ({"enum": ["a", "b"]}, {"enum": ["c"]}, "one of a, b"),
        ({"enum": ["a", "b"]}, {"type": "integer"}, "it is a text"),
        ({"type": "integer", "minimum": 5}, {"type": "number", "maximum": 4}, "its minimum is 5"),
        ({"type": "string", "maxLength": 2}, {"type": "string", "minLength": 3}, "its maxLength is 2"),
        ({"type": "array", "items": {"type": "string"}}, {"type": "array", "items": {"type": "object"}}, "of each of its items"),
        ({"type": "object", "additionalProperties": False, "properties": {}}, {"type": "object", "required": ["a"]}, "never has the field 'a'"),
        ({"type": "object", "required": ["a"]}, {"type": "object", "additionalProperties": False}, "has the field 'a', which is not taken"),
        ({"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}}, {"type": "object", "properties": {"a": {"type": "null"}}}, "of its field 'a'"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"anyOf": [{"type": "integer"}, {"type": "array"}]}, "wanted"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_and_why(mine: Schema, theirs: Schema, says: str) -> None:
    assert says in str(Fit().clash(mine, theirs))


def test_a_path_that_cannot_be_is_said() -> None:
    schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {"a": {"type": "array", "maxItems": 2, "items": {"type": "string"}}},
    }
    assert lead(schema, ["a", Each()]) == {"type": "array", "items": {"type": "string"}}
    for path, says in [
        (["b"], "no field 'b'"),
        (["a", "b"], "is a list"),
        (["a", 2], "never is so long"),
        (["a", 0, 0], "is a text, and no list"),
    ]:
        with pytest.raises(Nowhere, match=says):
            lead(schema, path, "x")


def test_a_number_may_be_whole() -> None:
    assert types({"type": "number"}) == {"number", "integer"}
    assert Fit().clash({"type": "number"}, {"type": "integer"}) is None
    assert Fit().clash({"const": 1.5}, {"type": "integer"}) is not None
