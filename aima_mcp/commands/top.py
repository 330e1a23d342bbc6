"""`aima top`: what devices, services and runs do now, looked at again and again."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from aima_lib.door import Door
from aima_lib.errors import FailedPrecondition
from aima_lib.infra.clock import parse
from aima_lib.wording import plain, size
from aima_mcp.commands.base import home_of
from aima_mcp.faces.cli.output import Form, formed, show_data

if TYPE_CHECKING:
    from rich.console import RenderableType

    from aima_lib.infra.home import Home

MOST_RUNS, BAR = 20, 10
Row = Mapping[str, Any]


@click.command("top")
@click.option("--interval", type=click.FloatRange(min=0.2), default=2.0, show_default=True, metavar="SECONDS", help="Look again so often.")
@click.option("--once", is_flag=True, help="Look once, print it, end; so it does into a pipe, and as JSON or YAML.")
@formed
@click.pass_context
def command(ctx: click.Context, interval: float, once: bool, form: Form) -> None:
    """Show how busy, hot and full devices are, what services answer, and how far runs are. On a terminal until q or Ctrl-C.

    Changes nothing, and starts nothing: there must be a host.
    """
    from aima_mcp.faces.cli.render import out

    home = home_of(ctx)
    if form != "table":
        show_data(_look(home), form)
    elif once or not out().is_terminal:
        out().print(_drawn(_look(home)))
    else:
        _watch(home, interval)


def _look(home: Home) -> dict[str, Any]:
    """One look. Raises FailedPrecondition when nobody hosts."""
    from aima_mcp import background
    from aima_mcp.faces.cli.doorway import through

    if home.remote()[0] is None and background.living(home) is None:
        raise FailedPrecondition(f"no host runs for {home.path}", hint="aima start")
    return through(home, _seen, needs_host=False, plain=True)


async def _seen(door: Door) -> dict[str, Any]:
    host = await door.call("system.info")
    names = {device["id"]: device["name"] for device in (await door.call("device.info"))["devices"]}
    samples = (await door.call("device.metrics"))["devices"]
    services = (await door.call("service.list"))["services"]
    runs = await door.call("run.list", {"status": "running", "limit": MOST_RUNS})
    devices = [{"device_id": sample["device_id"], "name": names.get(sample["device_id"]), **sample["now"]} for sample in samples]
    return {"host": host, "devices": devices, "services": services, "runs": runs["runs"], "running_runs": runs["total"]}


def _watch(home: Home, interval: float) -> None:
    from rich.live import Live

    from aima_mcp.faces.cli.render import out

    seen = _drawn(_look(home))  # what cannot be had at all is said before the screen is taken
    with _keys() as ended, Live(seen, console=out(), screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        try:
            live.refresh()
            while not ended(interval):
                live.update(_drawn(_look(home)), refresh=True)
        except KeyboardInterrupt:
            return


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """A way to wait so many seconds that says whether q was typed meanwhile."""
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield _slept
        return
    import select
    import termios
    import tty

    def typed(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0]:
            if not (keys := os.read(terminal, 64)) or b"q" in keys.lower():
                return True
        return False

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    try:
        yield typed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _slept(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _drawn(seen: Row) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    host = seen["host"]
    frozen = Text(" FROZEN", style="bold red") if host["frozen"] else Text("")
    head = Text.assemble(
        ("AIMA", "bold"), f" {host['version']}  {datetime.now():%H:%M:%S}  {host['url']}  up {_span(host['uptime_seconds'])}"
    )
    hidden = seen["running_runs"] - len(seen["runs"])
    parts: list[RenderableType] = [
        head + frozen,
        *_part("devices", [_device(row) for row in seen["devices"]]),
        *_part("services", [_service(row) for row in seen["services"]]),
        *_part("runs", [_run(row) for row in seen["runs"]]),
    ]
    return Group(*parts, *([Text(f"and {hidden} more runs", style="dim")] if hidden > 0 else []))


def _part(title: str, rows: Sequence[Row]) -> list[RenderableType]:
    from rich.text import Text

    from aima_mcp.faces.cli.render import table

    return [Text(f"\n{title}", style="bold"), table(rows, list(rows[0])) if rows else Text("none", style="dim")]


def _device(row: Row) -> Row:
    busy, used, total = row["utilization"], row["memory_used_bytes"], row["memory_total_bytes"]
    heat, power = row["temperature_celsius"], row["power_watts"]
    full = None if used is None or not total else used / total
    return {
        "device": row["device_id"],
        "name": row["name"],
        "busy": _share(busy),
        "memory": _share(full),
        "used": None if used is None or total is None else f"{size(used)} of {size(total)}",
        "temperature": None if heat is None else f"{heat:.0f} °C",
        "power": None if power is None else f"{power:.0f} W",
    }


def _service(row: Row) -> Row:
    did = row["metrics"]
    wait, wrong = did["ttft_p50_ms"], did["error_rate"]
    return {
        "service": row["id"],
        "model": row["model_id"],
        "status": row["status"],
        "health": row["health"],
        "requests/s": did["requests_per_second"],
        "waiting": did["queue_depth"],
        "first token": None if wait is None else f"{wait:.0f} ms",
        "tokens/s": did["tokens_per_second"],
        "errors": None if wrong is None else f"{wrong:.0%}",
    }


def _run(row: Row) -> Row:
    progress = row["progress"] or {"phase": "begun", "message": ""}
    done, total = progress.get("completed"), progress.get("total")
    return {
        "run": row["id"],
        "unit": row["unit"],
        "for": _span((datetime.now(UTC) - parse(row["created_at"])).total_seconds()),
        "done": _share(done / total) if done is not None and total else None,
        "step": plain(f"{progress['phase']}: {progress['message']}" if progress["message"] else progress["phase"])[:80],
    }


def _share(value: float | None) -> str | None:
    """A share as a bar and a figure."""
    if value is None:
        return None
    filled = round(min(1.0, max(0.0, value)) * BAR)
    return f"{'█' * filled}{'░' * (BAR - filled)} {value:>4.0%}"


def _span(seconds: float) -> str:
    whole = max(0, int(seconds))
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
