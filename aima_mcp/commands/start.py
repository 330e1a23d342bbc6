"""`aima start`: host a home in the background."""

from __future__ import annotations

import click

from aima_mcp.commands.base import home_of
from aima_mcp.faces.cli.output import Form, formed, show_data


@click.command("start")
@click.option("--host", metavar="ADDRESS", help="Address to bind; config.toml's, or 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to bind, 0 for any; without it config.toml's, or any if that is taken.")
@click.option("--behind-proxy", is_flag=True, help="A proxy in front speaks TLS: an address beyond loopback may be bound.")
@formed
@click.pass_context
def command(ctx: click.Context, host: str | None, port: int | None, behind_proxy: bool, form: Form) -> None:
    """Host AIMA in the background. If a host runs already, say where."""
    from aima_mcp import background
    from aima_mcp.faces.cli.render import out

    home = home_of(ctx)
    running = background.living(home)
    found = running or background.start(home, host, port, behind_proxy)
    if form != "table":
        show_data({"pid": found.pid, "url": found.url, "home": str(home.path), "started": running is None}, form)
        return
    done = "AIMA runs already" if running else "AIMA started"
    out().print(f"{done}: process {found.pid}, {found.url}, MCP at {found.url}/mcp", soft_wrap=True)
