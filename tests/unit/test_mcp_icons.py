"""Icons: small, harmless, where a list can bear them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from mcp import Client

from aima_lib.gateway import Gateway
from aima_lib.registry import SCHEMAS, Registry
from aima_mcp.faces.mcp import build
from aima_mcp.faces.mcp.icons import OTHER, OURS, icons

pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
FILES = sorted((SCHEMAS / "icons").glob("*"))
LARGEST = 300
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_icon_is_a_small_drawing_and_nothing_else(path: Path) -> None:
    assert path.suffix == ".svg" and path.stat().st_size <= LARGEST
    drawn = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    assert drawn.tag == f"{SVG}svg" and drawn.get("viewBox") == "0 0 24 24" and {child.tag for child in drawn} == {f"{SVG}path"}
    for node in drawn.iter():
        assert set(node.attrib) <= {"viewBox", "fill", "stroke", "stroke-width", "d"}, "no script, no reference to another place"
    domains = {unit.domain for unit in Registry.described().values()}
    assert path.stem in {*domains, OURS}, "an icon of a domain that there is"
    src = str(icons(path.stem)[0]["src"])
    assert src.isascii() and '"' not in src and " " not in src
    assert ElementTree.canonicalize(unquote(src.partition(",")[2])) == ElementTree.canonicalize(path.read_text(encoding="utf-8").strip())


def test_a_domain_without_a_drawing_has_that_of_units() -> None:
    assert icons("nothing") == icons(OTHER)


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ("legacy", "auto"))
async def test_every_list_has_them_but_those_that_a_model_pays_for(hosted: Gateway, mode: str) -> None:
    for profile in ("agent", "operator", "inference", "full"):
        async with Client(build(hosted, profile=profile).server, mode=mode) as client:
            tools = (await client.list_tools()).tools
            assert {found.name for found in tools if found.icons} == ({found.name for found in tools} if profile == "full" else set())
            assert client.server_info is not None and client.server_info.icons is not None
            assert client.server_info.icons[0].src == icons(OURS)[0]["src"]
            others = [
                *(await client.list_resources()).resources,
                *(await client.list_resource_templates()).resource_templates,
                *(await client.list_prompts()).prompts,
            ]
            assert others and all(found.icons for found in others)
    assert next(found for found in tools if found.name == "model_list").icons[0].src == icons("model")[0]["src"]  # type: ignore[index]
