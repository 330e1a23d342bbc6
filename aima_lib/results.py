"""What the library's calls return: a dict as the unit's schema says, which a notebook shows as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from aima_lib.wording import columns_of, is_rows, label, word

MOST_ROWS, LONGEST = 100, 500


class Result(dict[str, Any]):
    """A unit's output. A dict in every way; Jupyter shows its HTML, in which all text is escaped, and long text and lists are cut."""

    def _repr_html_(self) -> str:
        tables = {key: value for key, value in self.items() if is_rows(value) and value}
        lines = {key: value for key, value in self.items() if key not in tables}
        [*_, only] = [None, *lines.values()]
        whole = only if len(lines) == 1 and not tables and isinstance(only, Mapping) else lines  # {"model": {...}} is a model
        parts = [_fields(whole)] if whole else []
        return "".join([*(_table(key, rows) for key, rows in tables.items()), *parts])


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    columns = columns_of(rows)
    head = "".join(f"<th>{escape(label(key))}</th>" for key in columns)
    body = "".join(f"<tr>{''.join(_cell(key, row.get(key)) for key in columns)}</tr>" for row in rows[:MOST_ROWS])
    more = f"<tfoot><tr><td colspan={len(columns)}>and {len(rows) - MOST_ROWS} more</td></tr></tfoot>" if len(rows) > MOST_ROWS else ""
    return f"<table><caption>{escape(label(title))}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{more}</table>"


def _fields(values: Mapping[str, Any]) -> str:
    return f"<table>{''.join(f'<tr><th>{escape(label(key))}</th>{_cell(key, value)}</tr>' for key, value in values.items())}</table>"


def _cell(key: str, value: Any) -> str:
    text = word(value, key)
    return f"<td>{escape(text if len(text) <= LONGEST else text[: LONGEST - 1] + '…')}</td>"
