"""`aima events`: what happened, and what happens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from aima_lib.door import Door
from aima_mcp.commands.base import home_of


@click.command("events")
@click.option("--follow", "-f", is_flag=True, help="Go on with each new event, until Ctrl-C.")
@click.option("--types", metavar="NAME", multiple=True, help="Only these; model.* means a whole domain.  [repeatable, or with commas]")
@click.option("--after", type=click.IntRange(min=0), metavar="SEQ", help="Only events with a higher number; without it the newest.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each event.")
@click.pass_context
def command(ctx: click.Context, follow: bool, types: tuple[str, ...], after: int | None, as_json: bool) -> None:
    """Show the event log: number, time, name, what it is about, and what it carries."""
    from aima_mcp.faces.cli.doorway import through

    names = [name for given in types for name in given.split(",") if name]
    chosen: dict[str, Any] = ({"types": names} if names else {}) | ({} if after is None else {"after": after})

    async def tell(door: Door) -> None:
        page = await door.call("event.list", chosen)
        for event in page["events"]:
            _print(event, as_json)
        if follow:
            last = page["events"][-1]["seq"] if page["events"] else page["last"] if after is None else after
            async for event in door.follow(last, names):
                _print(event, as_json)

    try:
        through(home_of(ctx), tell, needs_host=follow)
    except KeyboardInterrupt:
        return  # the way to end --follow


def _print(event: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(event, ensure_ascii=False))
        return
    from aima_mcp.faces.cli.render import word

    click.echo(f"{event['seq']:>6}  {event['time']}  {event['type']:<26} {event['subject'] or '–'}  {word(event['payload'])}")
