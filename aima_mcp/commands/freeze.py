"""`aima freeze`: the emergency brake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from aima_lib.door import Door
from aima_mcp.commands.base import home_of


@click.command("freeze")
@click.argument("reason", required=False)
@click.pass_context
def command(ctx: click.Context, reason: str | None) -> None:
    """Stop every change within a second, by whomever: commands under way end, runs wait, new ones are refused.

    What is served goes on answering. REASON is told to whoever is refused.
    """
    from aima_mcp.faces.cli.doorway import through

    async def freeze(door: Door) -> Mapping[str, Any]:
        return await door.call("system.freeze", {} if reason is None else {"reason": reason})

    frozen = through(home_of(ctx), freeze, needs_host=False)["frozen"]
    click.echo(f"frozen since {frozen['at']} by {frozen['by']}; `aima thaw` lets things be changed again")
