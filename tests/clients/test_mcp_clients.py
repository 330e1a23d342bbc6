"""MCP clients that others wrote, over stdio and over HTTP: they see the same tools, results, errors, progress, prompts and completions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastmcp import Client
from fastmcp.client.transports import StdioTransport, StreamableHttpTransport

from aima_lib import __version__
from tests.conformance.test_suite import PLACE, node
from tests.world import ROOT, HostProcess, environment

pytestmark = pytest.mark.engine
HERE = Path(__file__).parent
INSPECTOR = PLACE / "@modelcontextprotocol" / "inspector" / "clients" / "launcher" / "build" / "index.js"
PACKAGES = {1: "sdk", 2: "client"}
PROMPTS = ["build_pipeline", "deploy_model", "diagnose", "free_memory"]
AIMA = ["-m", "aima_mcp.main", "mcp"]


def around(host: HostProcess) -> dict[str, str]:
    return environment(host.home.path) | {"PYTHONPATH": str(ROOT)}


def installed(place: Path) -> str:
    """The Node to run it with, or the reason why not."""
    found = node()
    if found is None or not place.exists():
        pytest.skip(f"{place.name} is not installed: CONTRIBUTING.md says how")
    return found


def looks_right(seen: dict[str, Any]) -> None:
    assert len(seen["tools"]) == 24 and "service_create" in seen["tools"]
    assert "aima://models/registry" in seen["resources"]
    assert sorted(seen["prompts"]) == PROMPTS
    assert seen["version"] == __version__
    assert seen["isError"] is True and seen["refused"]["code"] == "not_found" and "tiny" in seen["refused"]["hint"]
    assert seen["verified"]["result"]["valid"] is True
    assert seen["service"]["service"]["status"] == "running"
    assert seen["progress"] == sorted(seen["progress"]) and len(seen["progress"]) > 1
    assert seen["tokens"]["completion_tokens"] == 3
    assert (seen["prompt"], seen["read"], seen["offered"]) == (1, 1, ["tiny"])


@pytest.mark.conformance
@pytest.mark.parametrize("generation", PACKAGES)
@pytest.mark.parametrize("over", ["stdio", "http"])
def test_the_typescript_sdk(host: HostProcess, generation: int, over: str) -> None:
    program = installed(PLACE / "@modelcontextprotocol" / PACKAGES[generation])
    order: dict[str, Any] = {"modules": str(PLACE.parent), "generation": generation}
    if over == "http":
        order |= {"url": f"{host.url}/mcp", "key": host.home.key()}
    else:
        order |= {"command": sys.executable, "args": AIMA, "env": around(host)}
    command = [program, str(HERE / "typescript.mjs"), json.dumps(order)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    looks_right(json.loads(done.stdout))


@pytest.mark.conformance
@pytest.mark.parametrize("over", ["stdio", "http"])
def test_the_inspector(host: HostProcess, over: str) -> None:
    program = installed(INSPECTOR)

    def inspect(*words: str) -> tuple[int, dict[str, Any]]:
        target = [f"{host.url}/mcp", "--transport", "http", "--header", f"Authorization: Bearer {host.home.key()}"]
        if over == "stdio":
            # It hands nothing on but what it is told to: without these `aima mcp` would open the home of whoever runs the suite.
            given = [word for name in ("AIMA_HOME", "PYTHONPATH") for word in ("-e", f"{name}={around(host)[name]}")]
            target = [*given, sys.executable, *AIMA]
        command = [program, str(INSPECTOR), "--cli", *target, "--method", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=around(host), check=False)
        assert done.stdout.startswith("{"), (done.stdout, done.stderr)
        return done.returncode, json.loads(done.stdout)

    assert len(inspect("tools/list")[1]["tools"]) == 24
    assert inspect("tools/call", "--tool-name", "system_info")[1]["structuredContent"]["version"] == __version__
    _, refused = inspect("tools/call", "--tool-name", "run_wait", "--tool-arg", "run_id=none")
    assert refused["isError"] is True and refused["structuredContent"]["code"] == "not_found"
    assert sorted(prompt["name"] for prompt in inspect("prompts/list")[1]["prompts"]) == PROMPTS
    assert inspect("resources/list")[1]["resources"]
    held = inspect("resources/read", "--uri", "aima://models/registry")[1]["contents"][0]["text"]
    assert [model["id"] for model in json.loads(held)["models"]] == ["tiny"], "it is this host's"


@pytest.mark.parametrize("over", ["stdio", "http"])
def test_fastmcps_client(host: HostProcess, over: str) -> None:
    async def look() -> dict[str, Any]:
        transport: Any = StdioTransport(sys.executable, AIMA, env=around(host))
        if over == "http":
            transport = StreamableHttpTransport(f"{host.url}/mcp", headers=host.headers)
        heard: list[float] = []

        async def hear(progress: float, total: float | None, message: str | None) -> None:
            heard.append(progress)

        async with Client(transport) as client:
            refused = await client.call_tool("unit_call", {"name": "model.get", "arguments": {"model_id": "tiyn"}}, raise_on_error=False)
            verified = await client.call_tool("unit_call", {"name": "model.verify", "arguments": {"model_id": "tiny"}})
            served = await client.call_tool("service_create", {"model_id": "tiny", "name": "tiny"}, progress_handler=hear)
            asked = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
            said = await client.call_tool("inference_chat", asked)
            read: Any = (await client.read_resource("aima://models/registry"))[0]
            return {
                "tools": [tool.name for tool in await client.list_tools()],
                "resources": [str(resource.uri) for resource in await client.list_resources()],
                "prompts": [prompt.name for prompt in await client.list_prompts()],
                "version": (await client.call_tool("system_info", {})).structured_content["version"],
                "refused": refused.structured_content,
                "isError": refused.is_error,
                "verified": verified.structured_content,
                "service": served.structured_content,
                "progress": heard,
                "tokens": said.structured_content["usage"],
                "prompt": len((await client.get_prompt("diagnose", {})).messages),
                "read": json.loads(read.text)["total"],
                "offered": ["tiny"],
            }

    looks_right(anyio.run(look))
