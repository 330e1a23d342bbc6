"""`aima approve`: a person's word on calls that wait for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from aima_lib.door import Door
from aima_lib.wording import plain
from aima_mcp.commands.base import home_of
from aima_mcp.faces.cli.complete import completing
from aima_mcp.faces.cli.output import Form, formed, show_data

WAITING = {"status": "open", "limit": 1000}


@click.command("approve")
@click.argument("approval_id", required=False, shell_complete=completing("approval_id"))
@click.option("--deny", is_flag=True, help="Refuse it for good.")
@click.option("--reason", metavar="TEXT", help="Why; who asked can read it.")
@formed
@click.pass_context
def command(ctx: click.Context, approval_id: str | None, deny: bool, reason: str | None, form: Form) -> None:
    """Let a call pass that waits for somebody else's approval, or deny it.

    Without an id: what waits; on a terminal, one question for each.
    """
    from aima_mcp.faces.cli.doorway import through

    async def waiting(door: Door) -> Sequence[Mapping[str, Any]]:
        found = (await door.call("approval.list", WAITING))["approvals"]
        return [plan for plan in found if plan["policy"] == "approve"]

    def decide(id: str, verb: str) -> Mapping[str, Any]:
        async def work(door: Door) -> Mapping[str, Any]:
            arguments = {"approval_id": id} | ({} if reason is None else {"reason": reason})
            decided: Mapping[str, Any] = (await door.call(f"approval.{verb}", arguments))["approval"]
            return decided

        return through(home_of(ctx), work, needs_host=False)

    if approval_id is not None:
        plan = decide(approval_id, "deny" if deny else "approve")
        if form == "table":
            click.echo(f"{plan['id']}: {plan['status']}")
        else:
            show_data(plan, form)
        return
    plans = through(home_of(ctx), waiting, needs_host=False)
    if form != "table":
        show_data(plans, form)
        return
    for plan in plans:
        _describe(plan)
        if sys.stdin.isatty():
            words = click.Choice(["approve", "deny", "skip"])
            chosen = click.prompt("approve, deny or skip", type=words, default="skip", show_choices=False)
            if chosen != "skip":
                click.echo(f"{plan['id']}: {decide(plan['id'], chosen)['status']}")
    if not plans:
        click.echo("nothing waits for an approval")


def _describe(plan: Mapping[str, Any]) -> None:
    click.echo(f"{plan['id']}: {plan['caller']} wants {plan['unit']} {json.dumps(plan['arguments'], ensure_ascii=True)}")
    click.echo(f"  it {plain(plan['summary'])}; asked at {plan['created_at']}, waits until {plan['expires_at']}")
