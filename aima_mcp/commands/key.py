"""`aima key`: the owner's key."""

from __future__ import annotations

import click

from aima_mcp.commands.base import as_json, home_of


@click.command("key")
@as_json
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Print the owner's key: the bearer token of HTTP, MCP over HTTP and OpenAI clients. Who has it may do everything here."""
    home = home_of(ctx)
    home.make()
    if as_json:
        from aima_mcp.faces.cli.render import show_json

        show_json({"key": home.key(), "path": str(home.path / "key")})
    else:
        click.echo(home.key())
