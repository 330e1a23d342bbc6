"""`aima events`: what happened, and what happens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from aima_lib.door import Door
from aima_lib.infra.clock import now
from aima_mcp.commands.base import home_of
from aima_mcp.faces.cli.complete import completing
from aima_mcp.faces.cli.output import Form, formed, show_data


@click.command("events")
@click.option("--follow", "-f", is_flag=True, help="Go on with each new event, until Ctrl-C.")
@click.option(
    "--types",
    metavar="NAME",
    multiple=True,
    shell_complete=completing("types"),
    help="Only these; model.* means a whole domain.  [repeatable, or with commas]",
)
@click.option("--after", type=click.IntRange(min=0), metavar="SEQ", help="Only events with a higher number; without it the newest.")
@formed
@click.pass_context
def command(ctx: click.Context, follow: bool, types: tuple[str, ...], after: int | None, form: Form) -> None:
    """Show the event log: number, time, name, what it is about, and what it carries. As JSON it is a line each, as YAML a document."""
    from aima_mcp.faces.cli.doorway import through

    names = [name for given in types for name in given.split(",") if name]
    chosen: dict[str, Any] = ({"types": names} if names else {}) | ({} if after is None else {"after": after})

    async def tell(door: Door, after: int | None = after) -> None:
        page = await door.call("event.list", chosen)
        if page["lagged"]:
            nobody = {"subject": None, "correlation_id": None, "causation_id": None}
            missing = {"after": after, "first": page["first"], "last": page["last"]}
            after = page["first"] - 1
            _print({"seq": after, "type": "lagged", "time": now(), **nobody, "payload": missing}, form)
        for event in page["events"]:
            _print(event, form)
        if follow:
            last = page["events"][-1]["seq"] if page["events"] else page["last"] if after is None else after
            async for event in door.follow(last, names):
                _print(event, form)

    try:
        through(home_of(ctx), tell, needs_host=follow, plain=True)
    except KeyboardInterrupt:
        return  # the way to end --follow


def _print(event: Mapping[str, Any], form: Form) -> None:
    if form != "table":
        show_data(event, form, many=True)
        return
    from aima_lib.wording import word

    click.echo(f"{event['seq']:>6}  {event['time']}  {event['type']:<26} {event['subject'] or '–'}  {word(event['payload'])}")
