"""`aima mcp`: the stdio server a desktop client starts, and what to paste into that client."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from aima_lib.door import Door
from aima_mcp.commands.base import home_of


@click.group("mcp", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Serve MCP over standard input and output. Starts a host in the background if none runs: what an agent begins goes on without it."""
    if ctx.invoked_subcommand is not None:
        return
    from aima_lib.attached import Attached
    from aima_mcp.faces.cli.doorway import through
    from aima_mcp.faces.mcp import build

    async def serve(door: Door) -> None:
        assert isinstance(door, Attached)  # there is a host: it was needed
        await build(door, caller=await door.caller()).run_stdio()

    try:
        through(home_of(ctx), serve, needs_host=True)
    except KeyboardInterrupt:
        return  # a client that ends its server by a signal is no error


@command.command("config")
@click.pass_context
def config(ctx: click.Context) -> None:
    """Print the JSON that Claude Desktop and other clients take."""
    click.echo(json.dumps(client_config(ctx.find_root().params.get("home")), indent=2))


def client_config(home: str | None) -> dict[str, Any]:
    """An entry for `mcpServers` that works whatever folder and PATH the client has."""
    folder = home or os.environ.get("AIMA_HOME")
    program = shutil.which("aima")
    own = Path(sys.argv[0]).resolve()
    if own.name == "aima" and own.exists():
        program = str(own)
    server: dict[str, Any] = {"command": program, "args": ["mcp"]}
    if program is None:
        server = {"command": sys.executable, "args": ["-m", "aima_mcp.main", "mcp"]}
    if folder:
        server["env"] = {"AIMA_HOME": str(Path(folder).expanduser().absolute())}
    return {"mcpServers": {"aima": server}}
