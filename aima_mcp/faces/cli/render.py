"""What a unit's output looks like to a person: a table, a list of fields, or a text."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from aima_lib.errors import AimaError
from aima_lib.wording import columns_of, is_rows, label, plain, word

WIDE = 160
GOOD = {"ready", "running", "succeeded", "ok", "healthy", "exercised", "available"}
BAD = {"failed", "critical", "broken", "interrupted", "unhealthy"}


@cache
def out() -> Console:
    """Standard output. Into a pipe it is plain and wide, so that a table's lines stay whole."""
    return _console(sys.stdout.isatty(), False)


@cache
def err() -> Console:
    """Standard error: errors and progress, so that standard output holds results alone."""
    return _console(sys.stderr.isatty(), True)


def _console(terminal: bool, stderr: bool) -> Console:
    """A console without markup. NO_COLOR takes bold and dim away too: who sets it wants plain text."""
    colours: Any = None if os.environ.get("NO_COLOR") else "auto"
    width = None if terminal else WIDE
    return Console(stderr=stderr, highlight=False, soft_wrap=False, width=width, markup=False, emoji=False, color_system=colours)


def show(output: Mapping[str, Any], primary: str | None) -> None:
    """Print a unit's output: its main field, then what else it says."""
    main = output.get(primary) if primary else None
    rest = {key: value for key, value in output.items() if key != primary}
    if isinstance(main, str):
        out().print(plain(main), soft_wrap=True)
        return
    if is_rows(main):
        out().print(table(main) if main else Text(f"no {primary}".replace("_", " "), style="dim"))
    elif isinstance(main, Mapping):
        out().print(fields(main))
    elif isinstance(main, list):
        out().print("\n".join(map(word, main)) or f"no {primary}", soft_wrap=True)
    else:
        rest = dict(output)
    for key, value in list(rest.items()):
        if is_rows(value) and value:
            out().print(Text(key.replace("_", " "), style="bold"), table(rest.pop(key)), sep="\n")
    if rest:
        out().print(fields(rest))


def show_error(error: AimaError, calls: Sequence[str] = ()) -> None:
    """Say what went wrong, what to do, and which commands may mend it."""
    err().print(Text.assemble((f"{plain(error.code)}: ", "bold red"), plain(str(error))), soft_wrap=True)
    if error.hint:
        err().print(Text.assemble(("hint: ", "bold"), plain(error.hint)), soft_wrap=True)
    for call in calls:
        err().print(Text.assemble(("try:  ", "bold"), plain(call)), soft_wrap=True)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> Table:
    """A table of objects, by the columns given or those that say most."""
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    columns = columns or columns_of(rows)
    for key in columns:
        right = all(isinstance(row.get(key), int | float | None) and not isinstance(row.get(key), bool) for row in rows)
        shown.add_column(label(key), justify="right" if right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(_cell(key, row.get(key)) for key in columns))
    return shown


def fields(value: Mapping[str, Any]) -> Table:
    """One object, a line a field. Objects inside it are given in one line each."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for key, held in value.items():
        if is_rows(held) and held:
            grid.add_row(label(key), _block(held))
        else:
            grid.add_row(label(key), _cell(key, held))
    return grid


def _block(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    return Text("\n".join(word(row) for row in rows)) if len(rows) == 1 else table(rows)


def _cell(key: str, value: Any) -> Text:
    state = value if key in ("status", "health") and isinstance(value, str) else ""
    return Text(word(value, key), style="green" if state in GOOD else "red" if state in BAD else "")
