"""`aima thaw`: after a freeze."""

from __future__ import annotations

import click

from aima_lib.door import Door
from aima_lib.errors import ApprovalRequired
from aima_mcp.commands.base import home_of


@click.command("thaw")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Let things be changed again. Runs that waited go on."""
    from aima_mcp.faces.cli.doorway import through

    async def thaw(door: Door) -> None:
        plan = await door.plan("system.thaw")
        if plan["policy"] == "approve":  # not the owner's key: somebody else must agree
            hint = f"then: aima system thaw --token {plan['token']}"
            raise ApprovalRequired(f"somebody else must agree: aima approve {plan['id']}", hint=hint)
        await door.call("system.thaw", token=plan["token"])

    through(home_of(ctx), thaw, needs_host=False)
    click.echo("things can be changed again")
