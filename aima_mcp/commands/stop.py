"""`aima stop`: end the host in the background."""

from __future__ import annotations

import click

from aima_mcp.commands.base import home_of
from aima_mcp.faces.cli.output import Form, formed, show_data


@click.command("stop")
@click.option("--keep-engines", is_flag=True, help="Leave the engines to their keepers, for a host that comes back in time.")
@formed
@click.pass_context
def command(ctx: click.Context, keep_engines: bool, form: Form) -> None:
    """End the host and its engines, and wait until it is gone. Nothing to do when none runs."""
    from aima_mcp import background
    from aima_mcp.faces.cli.render import out

    home = home_of(ctx)
    found = background.living(home)
    if found is not None:
        background.stop(home, found, not keep_engines)
    if form != "table":
        show_data({"stopped": found is not None, "pid": found.pid if found else None}, form)
    elif found is None:
        out().print(f"no host runs for {home.path}", soft_wrap=True)
    else:
        engines = "kept" if keep_engines else "stopped"
        out().print(f"AIMA stopped: process {found.pid} is gone, its engines are {engines}")
