"""Every prompt, through every transport and era that has prompts."""

from __future__ import annotations

from functools import partial

import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import ResourceTemplateReference

from tests.contract.conftest import Faces
from tests.contract.faces import REGISTRY, Mcp, refused
from tests.world import World

PROMPTS = REGISTRY.of("prompt")


@pytest.mark.parametrize("face", ["mcp_stdio", "mcp_http", "mcp_http_handshake"])
@pytest.mark.parametrize(
    ("name", "place"),
    [pytest.param(unit.name, place, id=f"{unit.name}-{place}") for unit in PROMPTS for place in range(len(unit.definition["examples"]))],
)
def test_an_example_is_true_on_this_face(faces: Faces, world: World, face: str, name: str, place: int) -> None:
    example, through = REGISTRY[name].definition["examples"][place], faces[face]
    assert isinstance(through, Mcp)
    try:
        found = through.portal.call(partial(through.client.get_prompt, REGISTRY[name].action, example["input"]))
    except MCPError as error:
        assert refused(error.error.data).code == example["error"]
    else:
        assert example["output"] in found.messages[0].content.text
    world.note({name: 1})


@pytest.mark.parametrize("face", ["mcp_stdio", "mcp_http", "mcp_http_handshake"])
def test_a_model_that_is_here_completes(faces: Faces, face: str) -> None:
    through = faces[face]
    assert isinstance(through, Mcp)
    ref = ResourceTemplateReference(uri="aima://model/{model_id}")
    found = through.portal.call(partial(through.client.complete, ref, {"name": "model_id", "value": "tin"}))
    assert "tiny" in found.completion.values
