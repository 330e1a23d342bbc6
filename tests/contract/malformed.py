"""Calls that a unit's own schema says are wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema

WRONG = [{"wrong": {}}, "no such value", [[[]]], 7.5, True, None]


def cases(definition: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each required key left out, each type wrong, one unknown key: (what is wrong, the arguments)."""
    schema, good = definition["inputSchema"], example_input(definition)
    for key in schema.get("required", []):
        yield f"without {key}", {name: value for name, value in good.items() if name != key}
    for key, spec in schema["properties"].items():
        judge = jsonschema.Draft202012Validator(spec)
        wrong = next((value for value in WRONG if not judge.is_valid(value)), ...)
        if wrong is not ...:
            yield f"{key} of a wrong type", good | {key: wrong}
    yield "an unknown key", good | {"no_such_key": 1}


def example_input(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The input of an example that succeeds, if there is one: all that is wrong with a case is what was made wrong."""
    best = sorted(definition["examples"], key=lambda example: "output" not in example)
    return dict(best[0]["input"])


def twice(definition: Mapping[str, Any]) -> str:
    """The input as JSON text in which one key stands twice, with the same value: nothing else is wrong with it."""
    good = example_input(definition)
    if not good:
        properties = definition["inputSchema"]["properties"]
        key = next(iter(properties), "no_such_key")
        good = {key: filler(properties.get(key, {}))}
    key = next(iter(good))
    pair = f"{json.dumps(key)}: {json.dumps(good[key])}"
    return json.dumps(good)[:-1] + f", {pair}}}"


def filler(spec: Mapping[str, Any]) -> Any:
    """A value that the property takes."""
    if "enum" in spec:
        return spec["enum"][0]
    kind = spec.get("type", "integer")
    kind = kind[0] if isinstance(kind, list) else kind
    return {
        "string": "x",
        "integer": spec.get("minimum", 1),
        "number": spec.get("minimum", 1),
        "boolean": False,
        "array": [],
        "object": {},
    }[kind]
