"""`aima doctor`: what works, what does not, and why."""

from __future__ import annotations

import sys
from collections import Counter

import click

from aima_lib.door import Door
from aima_mcp.commands.base import home_of
from aima_mcp.faces.cli.output import Form, formed, show_data


@click.command("doctor")
@formed
@click.pass_context
def command(ctx: click.Context, form: Form) -> None:
    """Check the machine, and call every unit in a way that changes nothing. Ends with 1 when something is broken."""
    from aima_mcp.faces.cli.doorway import through
    from aima_mcp.faces.cli.render import out, table

    async def check(door: Door) -> dict[str, object]:
        return dict(await door.call("system.doctor"))

    report: dict[str, object] = through(home_of(ctx), check, needs_host=False, plain=True)
    checks, units = report["checks"], report["units"]
    assert isinstance(checks, list) and isinstance(units, list)
    if form != "table":
        show_data(report, form)
    else:
        out().print(table(checks, ("name", "status", "message")))
        counts = Counter(unit["status"] for unit in units)
        out().print(f"\n{len(units)} units: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
        if odd := [unit for unit in units if unit["status"] != "exercised"]:
            out().print(table(odd, ("name", "status", "code", "reason")))
    if not report["healthy"]:
        sys.exit(1)
