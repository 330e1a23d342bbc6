"""How values read to people: each in a line, a list of objects as the columns that say most. For terminals and notebooks alike."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS, LONGEST_CELL = 7, 60
_SEQUENCES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
SHOWN_FIRST = ("id", "name", "title", "status")


def plain(text: str) -> str:
    """A text that a terminal shows and does not obey: logs, model files and what a model says could else set it up to lie to its reader."""
    return _CONTROL.sub("", _SEQUENCES.sub("", text))


def word(value: Any, key: str = "") -> str:
    """One value in one line."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and key.endswith("_bytes"):
        return size(value)
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{label(inner)} {word(held, inner)}" for inner, held in value.items() if held is not None) or "–"
    if isinstance(value, list):
        return ", ".join(word(item) for item in value) or "–"
    return plain(str(value))


def size(count: float) -> str:
    """Bytes as people read them: 491.4 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def label(key: str) -> str:
    """What a field is called over its column."""
    return key.removesuffix("_bytes").replace("_", " ")


def is_rows(value: Any) -> bool:
    """Whether it is a list of objects, which reads best as a table."""
    return isinstance(value, list) and all(isinstance(item, Mapping) for item in value)


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that fit: names first, then short values in their order, and none that is empty throughout."""
    keys = dict.fromkeys(key for row in rows for key in row)
    used = [key for key in keys if any(row.get(key) not in (None, [], {}) for row in rows)]
    short = [key for key in used if all(_is_short(row.get(key), key) for row in rows)]
    first = [key for key in SHOWN_FIRST if key in used]
    return (first + [key for key in short if key not in first])[:COLUMNS] or list(keys)[:COLUMNS]


def _is_short(value: Any, key: str) -> bool:
    return not isinstance(value, Mapping) and not (value and is_rows(value)) and len(word(value, key)) <= LONGEST_CELL
