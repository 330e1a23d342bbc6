"""`aima serve --conformance`: fixtures only with the flag, no key only at /mcp, and never beyond loopback."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest
from click.testing import CliRunner
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from aima_lib.infra.home import Home
from aima_lib.runtime import host
from aima_mcp.app import App
from aima_mcp.faces.cli import build as build_cli
from aima_mcp.main import run

pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
BASE = "http://localhost:8484"


@asynccontextmanager
async def served(home: Home, conformance: bool) -> AsyncIterator[httpx2.AsyncClient]:
    """The application in this process, and a client of it that has no key."""
    async with host(home) as gateway:
        app = App(gateway, "127.0.0.1", lambda _: None, conformance=conformance)
        async with app.lifespan(), httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=BASE) as client:
            yield client


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ("legacy", "auto"))
async def test_fixtures_stand_beside_the_real_units(home: Home, mode: str) -> None:
    async with served(home, True) as http, Client(streamable_http_client(f"{BASE}/mcp", http_client=http), mode=mode) as client:
        names = [found.name for found in (await client.list_tools()).tools]
        assert {"system_info", "test_simple_text"} <= set(names) and len(names) == len(set(names))
        real = await client.call_tool("system_info", {})
        assert real.structured_content is not None and real.structured_content["home"] == str(home.path)
        assert "test_image_content" in names and (await client.call_tool("test_image_content", {})).content[0].type == "image"
        assert "deploy_model" in {found.name for found in (await client.list_prompts()).prompts}
        assert (await client.read_resource("aima://devices")).contents
        assert (await client.read_resource("test://template/7/data")).contents


@pytest.mark.anyio
async def test_only_that_one_path_goes_without_a_key(home: Home) -> None:
    async with served(home, True) as http:
        answers = {
            path: (await http.get(path)).status_code for path in ("/mcp/full", "/mcp/", "/units/system/info", "/events", "/v1/models")
        }
    assert set(answers.values()) == {401}, answers


@pytest.mark.anyio
async def test_without_the_flag_there_are_no_fixtures_and_a_key_is_needed(home: Home) -> None:
    loaded = {name for name in sys.modules if name.startswith("aima_mcp.conformance")}
    for name in loaded:
        del sys.modules[name]
    async with served(home, False) as http:
        assert (await http.post("/mcp", json={})).status_code == 401
        http.headers["authorization"] = f"Bearer {home.key()}"
        async with Client(streamable_http_client(f"{BASE}/mcp", http_client=http)) as client:
            assert not [found.name for found in (await client.list_tools()).tools if found.name.startswith("test_")]
    assert not [name for name in sys.modules if name.startswith("aima_mcp.conformance")], "nothing of it is imported without the flag"


def test_it_is_refused_beyond_loopback_and_shown_to_nobody(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--home", str(home.path), "serve", "--conformance", "--host", "0.0.0.0"]) == 2
    assert "asks for no key" in capsys.readouterr().err
    assert "conformance" not in CliRunner().invoke(build_cli(), ["serve", "--help"]).output
