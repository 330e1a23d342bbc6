"""Progress of work that consists of parts: each part a line that changes as it goes on. Knows no unit by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aima_mcp.faces.cli.render import err

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

SIGNS = {"pending": "·", "running": "▸", "retrying": "↻", "waiting": "‖", "succeeded": "✓", "undone": "↩", "skipped": "–"}
STYLES = {"succeeded": "green", "failed": "red", "unknown": "red", "running": "bold", "retrying": "yellow", "waiting": "yellow"}
QUIET = ("pending", "skipped")


class Tree:
    """All parts, drawn anew with each change."""

    def __init__(self) -> None:
        from rich.live import Live

        self._live: Live = Live(console=err(), refresh_per_second=10, transient=False)
        self._live.start()

    def show(self, item: Mapping[str, Any]) -> None:
        """Draw this state."""
        self._live.update(_drawn(item))

    def close(self) -> None:
        """Leave the last state on the screen."""
        self._live.stop()


class PartLines:
    """A line for each part that has gone on."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def show(self, item: Mapping[str, Any]) -> None:
        """Print what is new."""
        for part in item["parts"]:
            if self._known.get(part["id"], "pending") != part["status"]:
                self._known[part["id"]] = part["status"]
                if part["status"] not in QUIET:
                    err().print(f"{part['id']}: {_words(part)}", soft_wrap=True)


def _drawn(item: Mapping[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    for part in item["parts"]:
        style = STYLES.get(part["status"], "dim")
        grid.add_row(Text(SIGNS.get(part["status"], "✗"), style=style), Text(part["id"]), Text(_words(part), style=style))
    if item["phase"] != "running":
        grid.add_row("", "", Text(f"{item['phase']}: {item['message']}", style="yellow"))
    return grid


def _words(part: Mapping[str, Any]) -> str:
    said: Sequence[str] = [part["status"]]
    if part.get("total"):
        said = [*said, f"{part['completed'] or 0:g} of {part['total']:g}"]
    if part.get("message"):
        said = [*said, str(part["message"])]
    return ", ".join(said)
