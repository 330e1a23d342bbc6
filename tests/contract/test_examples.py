"""Every example of every unit file, through every face: the same output, or the same error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from aima_lib.errors import AlreadyExists
from tests.contract.conftest import Faces, needs_docker
from tests.contract.faces import REGISTRY, Face, carried_out

ANY_UNIT = ("library", "async_library", "embedded", "http", "mcp_stdio", "mcp_http", "mcp_http_handshake", "cli")
CALLABLE = REGISTRY.of("command", "query")
CASES = [
    pytest.param(face, unit.name, place, id=f"{face}-{unit.name}-{place}")
    for face in (*ANY_UNIT, "http_get")
    for unit in CALLABLE
    if face != "http_get" or unit.kind == "query"
    for place in range(len(unit.definition["examples"]))
]


@pytest.mark.parametrize(("face", "name", "place"), CASES)
def test_an_example_is_true_on_this_face(faces: Faces, dockerd: str | None, face: str, name: str, place: int) -> None:
    example, through = REGISTRY[name].definition["examples"][place], faces[face]
    if dockerd and needs_docker(name, example):
        pytest.skip(dockerd)
    owner = through if face == "embedded" else faces["library"]
    prepare(owner, example)
    outcome = carried_out(through, owner, name, example["input"])
    for call in example.get("then", []):
        assert carried_out(owner, owner, call["unit"], call["arguments"]).code == "ok"
    if "error" in example:
        assert outcome.code == example["error"], outcome.body
    else:
        assert outcome.code == "ok", outcome.body
        missing = differences(example["output"], outcome.body)
        assert not missing, f"{missing}\nin {outcome.body}"
        assert REGISTRY[name].output.first_error(dict(outcome.body)) is None


def prepare(face: Face, example: Mapping[str, Any]) -> None:
    """What the example says is there before it: it may be there already."""
    for call in example.get("given", []):
        outcome = carried_out(face, face, call["unit"], call["arguments"], call.get("idempotency_key"))
        assert outcome.code in ("ok", AlreadyExists.code), outcome.body


def differences(expected: Any, actual: Any, path: str = "") -> list[str]:
    """Where `actual` does not hold what is expected. Objects may hold more; a list's expected items are among its items, in their order."""
    if isinstance(expected, dict):
        if not isinstance(actual, Mapping):
            return [f"{path}: {actual!r} is no object"]
        return [text for key, value in expected.items() for text in differences(value, actual.get(key, ...), f"{path}.{key}")]
    if isinstance(expected, list):
        if not isinstance(actual, list) or (not expected and actual):
            return [f"{path}: {actual!r} is not {expected!r}"]
        rest = iter(actual)
        return [f"{path}: no item like {item!r}" for item in expected if not any(not differences(item, other) for other in rest)]
    return [] if expected == actual else [f"{path}: {actual!r} is not {expected!r}"]
