"""`aima mcp`: the stdio server a desktop client starts, and how it gets into that client's configuration."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from aima_lib.door import Door
from aima_lib.errors import InvalidArgument
from aima_mcp.commands.base import home_of


@click.group("mcp", invoke_without_command=True)
@click.option(
    "--profile",
    metavar="NAME",
    help="Tools to list: agent, operator, inference, full, or one of config.toml's; else the key's own, or agent.",
)
@click.pass_context
def command(ctx: click.Context, profile: str | None) -> None:
    """Serve MCP over standard input and output. Starts a host in the background if none runs: what an agent begins goes on without it.

    A profile is what is listed, not what is allowed: unit_search, unit_describe and unit_call reach every unit from each.
    """
    if ctx.invoked_subcommand is not None:
        return
    from aima_lib import config
    from aima_lib.attached import Attached
    from aima_mcp.faces.cli.doorway import through
    from aima_mcp.faces.mcp import build
    from aima_mcp.faces.profiles import DEFAULT

    home = home_of(ctx)
    own = config.load(home.path)["mcp"]["profiles"]

    async def serve(door: Door) -> None:
        assert isinstance(door, Attached)  # there is a host: it was needed
        host = await door.about()
        listed = profile or host["profile"] or DEFAULT
        await build(door, caller=await door.caller(), profile=listed, own=own, kept_seconds=host["runs_kept_seconds"]).run_stdio()

    try:
        through(home, serve, needs_host=True, agent=True)
    except KeyboardInterrupt:
        return  # a client that ends its server by a signal is no error


@command.command("config")
@click.pass_context
def print_config(ctx: click.Context) -> None:
    """Print the JSON that Claude Desktop and other clients take, with the profile that was given before it."""
    profile = ctx.parent.params["profile"] if ctx.parent else None
    click.echo(json.dumps(client_config(ctx.find_root().params.get("home"), profile), indent=2))


@command.command("install")
@click.argument("client", type=click.Choice(["claude-desktop", "claude-code", "cursor", "vscode", "codex"]))
@click.option("--profile", metavar="NAME", help="Tools to list, as for `aima mcp`.")
@click.option("--yes", is_flag=True, help="Write without asking.")
@click.option("--print", "only_print", is_flag=True, help="Print what would be put in, and write nothing.")
@click.pass_context
def install(ctx: click.Context, client: str, profile: str | None, yes: bool, only_print: bool) -> None:
    """Put AIMA into a client's own configuration: shows what it would change and asks first. All else in the file stays as it is.

    The file that was there is kept beside it, as .bak.
    """
    from aima_mcp import clients

    profile = profile or (ctx.parent.params["profile"] if ctx.parent else None)
    if profile is not None:
        _refuse_unknown(ctx, profile)
    chosen, server = clients.CLIENTS[client], client_config(ctx.find_root().params.get("home"), profile)["mcpServers"]["aima"]
    if only_print:
        click.echo(clients.text_for(chosen, server), nl=False)
        return
    change = clients.planned(chosen, server)
    if not change.needed:
        click.echo(f"{chosen.title} has it already: {change.path}")
        return
    click.echo(f"{change.path}{'' if change.before is not None else ' (new)'}")
    for mark, text in (("-", change.removed), ("+", change.added)):
        click.echo("".join(f"{mark} {line}\n" for line in text.strip("\r\n").splitlines() if line.strip(" \t,")), nl=False)
    if not yes and not _agreed():
        click.echo("Nothing was written.")
        return
    kept = clients.write(change)
    click.echo(f"Done.{'' if kept is None else f' The file as it was: {kept}.'} {chosen.again}, and {chosen.title} can use AIMA.")


def _agreed() -> bool:
    try:
        return click.confirm("Write this?")
    except click.Abort:
        raise InvalidArgument("nobody answered; nothing was written", hint="--yes writes without asking, --print only prints") from None


def _refuse_unknown(ctx: click.Context, profile: str) -> None:
    """Refuse a profile that is none, before it stands in a file where nobody sees it fail."""
    from aima_lib import config
    from aima_lib.registry import Registry
    from aima_mcp.faces.profiles import choose, profiles

    choose(profiles(Registry.described(), config.load(home_of(ctx).path)["mcp"]["profiles"]), profile)


def client_config(home: str | None, profile: str | None = None) -> dict[str, Any]:
    """An entry for `mcpServers` that works whatever folder and PATH the client has."""
    folder = home or os.environ.get("AIMA_HOME")
    program = shutil.which("aima")
    own = Path(sys.argv[0]).resolve()
    if own.name == "aima" and own.exists():
        program = str(own)
    words = ["mcp", *([] if profile is None else ["--profile", profile])]
    server: dict[str, Any] = {"command": program, "args": words}
    if program is None:
        server = {"command": sys.executable, "args": ["-m", "aima_mcp.main", *words]}
    if folder:
        server["env"] = {"AIMA_HOME": str(Path(folder).expanduser().absolute())}
    return {"mcpServers": {"aima": server}}
