"""`aima stop`: end the host in the background."""

from __future__ import annotations

import click

from aima_mcp.commands.base import as_json, home_of


@click.command("stop")
@click.option("--keep-engines", is_flag=True, help="Leave the engines to their keepers, for a host that comes back in time.")
@as_json
@click.pass_context
def command(ctx: click.Context, keep_engines: bool, as_json: bool) -> None:
    """End the host and its engines, and wait until it is gone. Nothing to do when none runs."""
    from aima_mcp import background
    from aima_mcp.faces.cli.render import out, show_json

    home = home_of(ctx)
    found = background.living(home)
    if found is not None:
        background.stop(home, found, not keep_engines)
    if as_json:
        show_json({"stopped": found is not None, "pid": found.pid if found else None})
    elif found is None:
        out().print(f"no host runs for {home.path}", soft_wrap=True)
    else:
        engines = "kept" if keep_engines else "stopped"
        out().print(f"AIMA stopped: process {found.pid} is gone, its engines are {engines}")
