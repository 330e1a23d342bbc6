"""Profiles: what a connection lists, in how many tokens; what it may call is not their business."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx2
import pytest
from click.testing import CliRunner
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from aima_lib import AsyncAima, config
from aima_lib.errors import InvalidArgument, NotFound
from aima_lib.gateway import Gateway
from aima_lib.infra.home import Home
from aima_lib.registry import SCHEMAS, Registry
from aima_lib.runtime import host
from aima_mcp.app import App
from aima_mcp.faces.cli import build as build_cli
from aima_mcp.faces.mcp import build
from aima_mcp.faces.mcp.results import tool
from aima_mcp.faces.profiles import ALWAYS, choose, profiles
from tests.mcp_world import ERAS, text_of
from tests.world import ROOT, HostProcess, environment

pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
REGISTRY = Registry.described()
CALLABLE = {unit.name for unit in REGISTRY.of("command", "query")}
KNOWN = json.loads((SCHEMAS / "profiles.json").read_text(encoding="utf-8"))
AGENT_TOOLS, AGENT_TOKENS = 25, 6_000


def tokens(listed: list[dict[str, object]]) -> float:
    """A rule of thumb that needs no tokenizer: JSON of English takes four bytes a token."""
    return len(json.dumps({"tools": listed}, ensure_ascii=False, separators=(",", ":")).encode()) / 4


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ERAS)
async def test_the_default_list_is_short(hosted: Gateway, mode: str) -> None:
    async with Client(build(hosted).server, mode=mode) as client:
        listed = [found.model_dump(by_alias=True, exclude_unset=True, mode="json") for found in (await client.list_tools()).tools]
    assert len(listed) <= AGENT_TOOLS
    assert tokens(listed) <= AGENT_TOKENS, f"{tokens(listed)} tokens"
    for found in listed:
        assert "outputSchema" not in found
        unit = hosted.registry[str(found["name"]).replace("_", ".", 1)]
        assert {key: found[key] for key in ("title", "description", "annotations")} == {
            key: unit.definition[key] for key in ("title", "description", "annotations")
        }
        assert found["inputSchema"] == unit.listed


@pytest.mark.anyio
async def test_options_are_open_in_the_short_list_and_judged_all_the_same(hosted: Gateway) -> None:
    async with Client(build(hosted).server) as client, Client(build(hosted, profile="full").server) as program:
        listed = {found.name: found.input_schema["properties"] for found in (await client.list_tools()).tools}
        whole = {found.name: found.input_schema["properties"] for found in (await program.list_tools()).tools}
        assert "properties" not in listed["service_create"]["options"]
        described = await client.call_tool("engine_features", {"name": "llamacpp"})
        assert described.structured_content is not None
        schemas = described.structured_content["features"]["option_schemas"]
        assert schemas and schemas.items() <= whole["service_create"]["options"]["properties"].items()
        for sent, said in (
            ({"context_length": 1}, "options.context_length: 1 is less than the minimum of 64"),
            ({"contxt_length": 512}, "did you mean context_length?"),
            ({"seed": "three"}, "engine.features says what options may hold"),
        ):
            refused = await client.call_tool("service_create", {"model_id": "x", "engine": "llamacpp", "options": sent})
            text = text_of(refused)
            assert refused.is_error and said in text and '{"name":"engine.features","arguments":{"name":"llamacpp"}}' in text


@pytest.mark.parametrize("name", KNOWN)
def test_a_profile_of_ours_is_described_and_reaches_all(name: str) -> None:
    found = profiles(REGISTRY, {})[name]
    assert KNOWN[name]["description"].endswith(".")
    assert set(ALWAYS) <= found.units <= CALLABLE
    assert KNOWN[name]["units"] == sorted(KNOWN[name]["units"])


def test_full_lists_everything_with_its_output() -> None:
    found = profiles(REGISTRY, {})["full"]
    assert found.units == CALLABLE and found.outputs
    assert "outputSchema" in tool(REGISTRY["model.pull"], found.outputs)
    assert "outputSchema" not in tool(REGISTRY["model.pull"], False)


def test_own_profiles_take_units_and_patterns() -> None:
    found = profiles(REGISTRY, {"mine": ["model.*", "inference.chat"], "bare": []})
    assert found["mine"].units == {name for name in CALLABLE if name.startswith("model.")} | {"inference.chat", *ALWAYS}
    assert found["bare"].units == set(ALWAYS)
    with pytest.raises(NotFound) as raised:
        choose(found, "min")
    assert "mine" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("own", "message", "hint"),
    [
        ({"mine": ["model.lst"]}, "mcp.profiles.mine: no unit is called 'model.lst'", "model.list"),
        ({"mine": ["modle.*"]}, "no unit is called 'modle", "model.*"),
        ({"mine": ["model_list"]}, "no unit is called 'model_list'", "model.list"),
        ({"mine": ["!"]}, "no unit is called '!'", "model.list"),
        ({"full": ["model.*"]}, "full is one of AIMA's own", "another name"),
        ({"a/b": []}, "no fit name", "part of a URL"),
    ],
)
def test_a_profile_that_names_nothing_is_refused(own: dict[str, list[str]], message: str, hint: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        profiles(REGISTRY, own)
    assert message in str(raised.value) and hint in str(raised.value.hint)


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ERAS)
async def test_what_is_not_listed_can_be_called_and_is_told_how(hosted: Gateway, mode: str) -> None:
    async with Client(build(hosted, profile="inference").server, mode=mode) as client:
        names = {found.name for found in (await client.list_tools()).tools}
        direct = await client.call_tool("model_list", {})
        through = await client.call_tool("unit_call", {"name": "model.list"})
        failed = await client.call_tool("model_get", {"model_id": 7})
    assert "model_list" not in names and {"unit_search", "unit_describe", "unit_call"} <= names
    assert direct.structured_content == {"models": [], "total": 0} and through.structured_content is not None
    assert through.structured_content["result"] == direct.structured_content
    assert 'next: call unit_describe with {"name":"model.get"}' in text_of(failed), "listed: by its own tool"
    async with Client(build(hosted, profile="inference").server, mode=mode) as client:
        missing = await client.call_tool("run_get", {"run_id": "nothing"})
    assert 'next: call unit_call with {"name":"run.list"' in text_of(missing), "not listed: through unit_call"


def test_config_is_where_own_profiles_stand(home: Home) -> None:
    (home.path / "config.toml").write_text('[mcp.profiles]\nmine = ["model.*"]\n', encoding="utf-8")
    assert config.load(home.path)["mcp"] == {"profiles": {"mine": ["model.*"]}}
    (home.path / "config.toml").write_text('[mcp.profiles]\nmine = "model.*"\n', encoding="utf-8")
    with pytest.raises(InvalidArgument, match=r"mcp\.profiles\.mine"):
        config.load(home.path)


@asynccontextmanager
async def served(home: Home) -> AsyncIterator[Callable[[str], httpx2.AsyncClient]]:
    """The whole application in this process, and clients of it that hold the key."""
    async with host(home) as gateway:
        app = App(gateway, "127.0.0.1", lambda _: None)
        headers = {"Authorization": f"Bearer {home.key()}"}
        async with app.lifespan():
            yield lambda base: httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=base, headers=headers)


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ("legacy", "auto"))
async def test_the_path_chooses_and_a_session_stays_with_its_list(home: Home, mode: str) -> None:
    (home.path / "config.toml").write_text('[mcp.profiles]\nmine = ["model.*"]\n', encoding="utf-8")
    base = "http://localhost:8484"
    async with served(home) as http:
        counts = {}
        for path in ("/mcp", "/mcp/", "/mcp/agent", "/mcp/operator", "/mcp/mine", "/mcp/full"):
            async with http(base) as client, Client(streamable_http_client(base + path, http_client=client), mode=mode) as connected:
                counts[path] = len((await connected.list_tools()).tools)
        async with http(base) as client:
            missing = await client.post("/mcp/operate", json={})
    assert counts["/mcp"] == counts["/mcp/"] == counts["/mcp/agent"] <= AGENT_TOOLS < counts["/mcp/operator"] < counts["/mcp/full"]
    assert counts["/mcp/mine"] == len(ALWAYS) + len([name for name in CALLABLE if name.startswith("model.")])
    assert missing.status_code == 404 and "operator" in missing.json()["hint"]


@pytest.mark.anyio
async def test_a_session_of_one_profile_is_unknown_at_another(home: Home) -> None:
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    accept = {"accept": "application/json, text/event-stream"}
    async with served(home) as http, http("http://localhost:8484") as client:
        opened = await client.post(
            "/mcp/operator", json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}, headers=accept
        )
        session = accept | {"mcp-session-id": opened.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}
        body = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
        here = await client.post("/mcp/operator", json=body, headers=session)
        there = await client.post("/mcp/full", json=body, headers=session)
    assert here.status_code == 200 and there.status_code == 404


@pytest.mark.anyio
async def test_a_host_refuses_a_profile_of_nothing(home: Home) -> None:
    (home.path / "config.toml").write_text('[mcp.profiles]\nmine = ["modle.list"]\n', encoding="utf-8")
    async with host(home) as gateway:
        with pytest.raises(InvalidArgument) as raised:
            App(gateway, "127.0.0.1", lambda _: None)
    assert "model.list" in str(raised.value.hint)


def test_the_client_configuration_keeps_the_profile(tmp_path: Path) -> None:
    printed = CliRunner().invoke(build_cli(), ["--home", str(tmp_path), "mcp", "--profile", "operator", "config"]).output
    assert json.loads(printed)["mcpServers"]["aima"]["args"][-3:] == ["mcp", "--profile", "operator"]


@pytest.mark.anyio
async def test_a_key_has_a_profile_of_its_own_unless_path_or_flag_say_another(home: Home) -> None:
    (home.path / "config.toml").write_text('[mcp.profiles]\nmine = ["model.*"]\n', encoding="utf-8")
    process = await anyio.to_thread.run_sync(HostProcess(Path(sys.executable), home.path, ROOT).start)
    mine, base = len(ALWAYS) + len([name for name in CALLABLE if name.startswith("model.")]), process.url
    try:
        async with AsyncAima(url=base, key=home.key()) as owner:
            texts = {}
            for name, more in (("own", {"profile": "mine"}), ("plain", {})):
                plan = await owner.plan("key.create", {"name": name, "scopes": ["admin"], **more})
                made = await owner.apply(plan)
                assert made["key"]["profile"] == more.get("profile")
                texts[name] = made["secret"]
            with pytest.raises(NotFound, match="mien") as refused:
                await owner.call("key.create", {"name": "x", "scopes": ["read"], "profile": "mien"})
            assert "mine" in str(refused.value.hint)
        counts: dict[tuple[str, ...], int] = {}
        for name, text in texts.items():
            async with httpx2.AsyncClient(base_url=base, headers={"Authorization": f"Bearer {text}"}, trust_env=False) as http:
                assert (await http.get("/caller")).json()["profile"] == ("mine" if name == "own" else None)
            for mode, path in (("legacy", "/mcp"), ("auto", "/mcp"), ("auto", "/mcp/agent")):
                headers = {"Authorization": f"Bearer {text}"}
                async with (
                    httpx2.AsyncClient(headers=headers, trust_env=False) as http,
                    Client(streamable_http_client(base + path, http_client=http), mode=mode) as client,
                ):
                    counts[name, mode, path] = len((await client.list_tools()).tools)
            for flag in ([], ["--profile", "agent"]):
                around = environment(home.path) | {"AIMA_KEY": text, "PYTHONPATH": str(ROOT)}
                command = StdioServerParameters(command=sys.executable, args=["-m", "aima_mcp.main", "mcp", *flag], env=around)
                async with Client(stdio_client(command), mode="auto") as client:
                    counts[name, "stdio", *flag] = len((await client.list_tools()).tools)
    finally:
        await anyio.to_thread.run_sync(process.stop)
    assert counts == {
        ("own", "legacy", "/mcp"): mine,
        ("own", "auto", "/mcp"): mine,
        ("own", "auto", "/mcp/agent"): counts["plain", "auto", "/mcp"],
        ("own", "stdio"): mine,
        ("own", "stdio", "--profile", "agent"): counts["plain", "stdio"],
        ("plain", "legacy", "/mcp"): counts["plain", "auto", "/mcp"],
        ("plain", "auto", "/mcp"): counts["plain", "auto", "/mcp"],
        ("plain", "auto", "/mcp/agent"): counts["plain", "auto", "/mcp"],
        ("plain", "stdio"): counts["plain", "auto", "/mcp"],
        ("plain", "stdio", "--profile", "agent"): counts["plain", "auto", "/mcp"],
    }
    assert mine != counts["plain", "stdio"]
