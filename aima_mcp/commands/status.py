"""`aima status`: what runs."""

from __future__ import annotations

from typing import Any

import click

from aima_lib.door import Door
from aima_mcp.commands.base import home_of
from aima_mcp.faces.cli.output import Form, formed, show_data

PARTS = {"services": "service.list", "models": "model.list", "devices": "device.info"}
COLUMNS = {
    "services": ("id", "model_id", "engine", "status", "health", "ready_replicas", "desired_replicas"),
    "models": ("id", "type", "format", "status", "size_bytes", "quantization"),
    "devices": ("id", "name", "type", "memory", "capabilities"),
}


@click.command("status")
@formed
@click.pass_context
def command(ctx: click.Context, form: Form) -> None:
    """Show the host, services, models and devices. Starts nothing: without a host it says so."""
    from aima_mcp import background
    from aima_mcp.faces.cli.doorway import through
    from aima_mcp.faces.cli.render import out

    home = home_of(ctx)
    elsewhere, _ = home.remote()
    found = elsewhere is not None or background.living(home) is not None
    state = through(home, _collect, needs_host=False, plain=True) if found else {"host": None}
    if form != "table":
        show_data({"home": None, "url": elsewhere, **state} if elsewhere else {"home": str(home.path), **state}, form)
    elif not found:
        out().print(f"no host runs for {home.path}; start one with: aima start", soft_wrap=True)
    else:
        _show(state)


async def _collect(door: Door) -> dict[str, Any]:
    state: dict[str, Any] = {"host": await door.call("system.info")}
    for part, unit in PARTS.items():
        state[part] = (await door.call(unit))[part]
    return state


def _show(state: dict[str, Any]) -> None:
    from rich.text import Text

    from aima_mcp.faces.cli.render import out, table

    host = state["host"]
    up = f"up {host['uptime_seconds']:.0f} s"
    out().print(f"AIMA {host['version']}, process {host['pid']}, {host['url']}, {up}, home {host['home']}", soft_wrap=True)
    for part in PARTS:
        out().print(Text(f"\n{part}", style="bold"))
        out().print(table(_short(part, state[part]), COLUMNS[part]) if state[part] else Text("none", style="dim"))


def _short(part: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A device's memory as one figure and its kind, and no more than a few of its capabilities."""
    from aima_lib.wording import size

    if part != "devices":
        return rows
    shown = []
    for row in rows:
        total = row["memory"]["total_bytes"]
        memory = f"{'unknown' if total is None else size(total)} {row['memory']['kind']}"
        shown.append({**row, "memory": memory, "capabilities": row["capabilities"][:6]})
    return shown
