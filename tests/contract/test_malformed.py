"""Calls that a schema says are wrong: invalid_argument on every face, and nothing changed."""

from __future__ import annotations

import json

import pytest

from tests.contract.conftest import Faces
from tests.contract.faces import REGISTRY
from tests.contract.malformed import cases, twice
from tests.world import World, contents

CALLABLE = [unit.name for unit in REGISTRY.of("command", "query")]
QUERIES = [unit.name for unit in REGISTRY.of("query")]
ANY_UNIT = ("library", "async_library", "http", "mcp_stdio", "mcp_http", "mcp_http_handshake", "cli_fork")
RAW = ("http", "raw_mcp_http", "raw_mcp_http_handshake", "raw_mcp_stdio", "cli_fork")


@pytest.mark.parametrize("name", CALLABLE)
@pytest.mark.parametrize("face", ANY_UNIT)
def test_what_the_schema_refuses_is_refused_and_changes_nothing(faces: Faces, world: World, face: str, name: str) -> None:
    before, through = contents(world.home), faces[face]
    for what, arguments in cases(REGISTRY[name].definition):
        outcome = through.call(name, arguments)
        assert outcome.code == "invalid_argument", f"{what}: {outcome}"
    assert contents(world.home) == before


@pytest.mark.parametrize("name", CALLABLE)
@pytest.mark.parametrize("face", RAW)
def test_a_key_that_stands_twice_is_refused_and_changes_nothing(faces: Faces, world: World, face: str, name: str) -> None:
    before = contents(world.home)
    text = twice(REGISTRY[name].definition)
    outcome = faces[face].call_text(name, text)  # type: ignore[attr-defined]
    assert outcome.code == "invalid_argument", f"{text}: {outcome}"
    assert contents(world.home) == before


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_in_a_url_is_held_to_its_schema(faces: Faces, world: World, name: str) -> None:
    before, client = contents(world.home), world.http
    schema = REGISTRY[name].definition["inputSchema"]
    path = f"/units/{name.replace('.', '/')}"
    wrong = [{"no_such_key": "1"}]
    if required := schema.get("required"):
        wrong.append(
            {key: "x" for key in schema["properties"] if key not in required and schema["properties"][key].get("type") == "string"}
        )
    wrong += [
        {key: "no such value"}
        for key, spec in schema["properties"].items()
        if spec.get("type") in ("integer", "number", "boolean", "object")
    ]
    for parameters in wrong:
        response = client.get(path, params=parameters)
        assert (response.status_code, response.json()["code"]) == (400, "invalid_argument"), (parameters, response.text)
    single = next((key for key, spec in schema["properties"].items() if spec.get("type") == "string"), None)
    if single:
        response = client.get(path, params=[(single, "tiny"), (single, "tiny")])
        assert (response.status_code, response.json()["code"]) == (400, "invalid_argument"), response.text
    assert contents(world.home) == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        "5",
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": "\\ud800"}',
        "{" * 200,
        '{"name": "tiny"} trailing',
        "\ufeff{}",
    ],
    ids=lambda text: json.dumps(text)[:20],
)
@pytest.mark.parametrize("face", ["http", "cli_fork"])
def test_what_is_no_json_object_is_refused(faces: Faces, face: str, text: str) -> None:
    outcome = faces[face].call_text("unit.describe", text)  # type: ignore[attr-defined]
    assert outcome.code == "invalid_argument", outcome
