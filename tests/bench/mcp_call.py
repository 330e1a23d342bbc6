"""MCP tools/call against the SDK's bare low-level server, in memory and over stdio: `python tests/bench/mcp_call.py`. About 50 s.

The bare server answers the same bytes for the same tool and does nothing else: no validation, no scopes, no record.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from mcp import types
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from measure import ROOT, compare, say

from aima_lib.infra.home import Home
from aima_lib.runtime import host
from aima_mcp.faces.mcp import build

SECONDS, ROUNDS = 10.0, 5
TOOL, ARGUMENTS = "run_list", {"limit": 5}
ANSWER: dict[str, Any] = {"runs": [], "total": 0}


def bare() -> Server[Any]:
    """The SDK alone."""

    async def list_tools(ctx: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[types.Tool(name=TOOL, input_schema={"type": "object"})])

    async def call_tool(ctx: Any, params: Any) -> types.CallToolResult:
        return types.CallToolResult(content=[types.TextContent(type="text", text='[]\n{"total":0}')], structured_content=ANSWER)

    return Server("bare", on_list_tools=list_tools, on_call_tool=call_tool, get_tool_input_schema=lambda name: None)


async def serve_bare() -> None:
    server = bare()
    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())


@asynccontextmanager
async def connected(ours: Any, other: Any, mode: str) -> AsyncIterator[list[Callable[[], Any]]]:
    """A call of the tool on each."""
    async with Client(ours, mode=mode, cache=None) as mine, Client(other, mode=mode, cache=None) as theirs:
        yield [partial(client.call_tool, TOOL, ARGUMENTS) for client in (mine, theirs)]


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with host(Home(folder)) as gateway:
            for mode in ("legacy", "2026-07-28"):
                async with connected(build(gateway).server, bare(), mode) as (ours, theirs):
                    say(f"in memory, {mode}", *await compare(ours, theirs, SECONDS, ROUNDS), "bare SDK server")
        home = Path(folder) / "served"
        environment = {**os.environ, "AIMA_HOME": str(home), "PYTHONPATH": str(ROOT)}
        program = [sys.executable, "-m", "aima_mcp.main"]
        subprocess.run([*program, "start", "--port", "0"], env=environment, check=True, capture_output=True)
        try:
            mine = stdio_client(StdioServerParameters(command=program[0], args=[*program[1:], "mcp"], env=environment))
            other = stdio_client(StdioServerParameters(command=sys.executable, args=[__file__, "bare"], env=environment))
            async with connected(mine, other, "legacy") as (ours, theirs):
                say("over stdio (and loopback HTTP to the host)", *await compare(ours, theirs, SECONDS, ROUNDS), "bare SDK server")
        finally:
            subprocess.run([*program, "stop"], env=environment, check=True, capture_output=True)


if __name__ == "__main__":
    logging.disable()
    anyio.run(serve_bare if sys.argv[1:] == ["bare"] else main)
