"""`aima key`: the units of the domain key, and `show`, which prints the owner's own."""

from __future__ import annotations

import click

from aima_mcp.commands.base import home_of
from aima_mcp.faces.cli import Domain
from aima_mcp.faces.cli.output import Form, formed, show_data


class Keys(Domain):
    """The domain's units and one command that is none: the owner's key is a file of the home, and no face gives it away."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["show", *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return show if cmd_name == "show" else super().get_command(ctx, cmd_name)


command = Keys("key")


@click.command("show")
@formed
@click.pass_context
def show(ctx: click.Context, form: Form) -> None:
    """Print the owner's key: the bearer token of HTTP, MCP over HTTP and OpenAI clients. Who has it may do everything here."""
    home = home_of(ctx)
    home.make()
    if form != "table":
        show_data({"key": home.key(), "path": str(home.path / "key")}, form)
    else:
        click.echo(home.key())
