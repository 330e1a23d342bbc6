"""Results that fit: a model pays for every byte of an answer, so a long one is cut where it can be gone on with, and says how."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aima_lib.registry import Unit

DEEPEST = 6
MARK = " … cut: {} characters in all"
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What is left of an output, what of it is not shown, and the call that shows more, where there is one."""

    output: Mapping[str, Any]
    note: str
    unit: str | None = None
    arguments: Mapping[str, Any] | None = None


def size(value: Any) -> int:
    """Bytes of a value as JSON."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))


def fit(unit: Unit, output: Mapping[str, Any], arguments: Mapping[str, Any], budget: int) -> Fitted | None:
    """The output in at most `budget` bytes of JSON, still true to its schema; None where that cannot be had."""
    path = _longest(output, unit.definition.get("primary"))
    if path is None:
        return _with_shorter_texts(unit, output, budget)
    items: list[Any] = _at(output, path)
    from_end = "tail" in unit.definition["inputSchema"]["properties"]
    room = budget - (size(output) - size(items))
    kept = _kept(items[::-1] if from_end else items, room)
    shown = (items[len(items) - kept :] if from_end else items[:kept]) if kept else []
    found = _replaced(output, path, shown)
    if not kept or unit.output.first_error(found) is not None:
        return _with_shorter_texts(unit, output, budget)
    what = f"{kept} of {len(items)} {path[-1]} are shown, {'the last' if from_end else 'the first'}"
    further = None if from_end else _further(unit, shown, arguments)
    reason = "" if further else "; for the rest ask for less at a time, or over HTTP, which gives all"
    return Fitted(found, what + reason, unit.name if further else None, further)


def _further(unit: Unit, shown: list[Any], arguments: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The arguments that go on after what is shown: by offset, or by the number of the last."""
    takes = unit.definition["inputSchema"]["properties"]
    if "offset" in takes:
        return {**arguments, "offset": arguments.get("offset", takes["offset"].get("default", 0)) + len(shown)}
    if "after" in takes and isinstance(shown[-1], Mapping) and "seq" in shown[-1]:
        return {**arguments, "after": shown[-1]["seq"]}
    return None


def _kept(items: list[Any], room: int) -> int:
    """How many of the items fit."""
    for count, item in enumerate(items):
        room -= size(item) + 1
        if room < 0:
            return count
    return len(items)


def _longest(output: Mapping[str, Any], primary: str | None) -> Path | None:
    """Where the list is that makes the output long: the main field if it is one, else the largest."""
    lists = dict(_lists(output))
    if primary is not None and (primary,) in lists and 2 * lists[primary,] > size(output):
        return (primary,)
    return max(lists, key=lambda path: lists[path], default=None)


def _lists(value: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, int]]:
    for key, item in value.items():
        if isinstance(item, list) and item:
            yield (*path, key), size(item)
        elif isinstance(item, Mapping) and len(path) < DEEPEST:
            yield from _lists(item, (*path, key))


def _at(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value


def _replaced(value: Mapping[str, Any], path: Path, by: Any) -> dict[str, Any]:
    first, *rest = path
    return {**value, first: _replaced(value[first], tuple(rest), by) if rest else by}


def _with_shorter_texts(unit: Unit, output: Mapping[str, Any], budget: int) -> Fitted | None:
    """The output with its longest texts cut."""
    longest = budget
    while longest > len(MARK) * 2:
        longest //= 2
        found = shorter(output, longest)
        if size(found) <= budget:
            if unit.output.first_error(found) is not None:
                return None
            return Fitted(found, "long texts are cut, each with its length; over HTTP they are whole")
    return None


def shorter(value: Any, longest: int) -> Any:
    """A JSON value whose texts have at most so many characters; those that had more say how many."""
    if isinstance(value, str) and len(value) > longest:
        mark = MARK.format(len(value))
        return value[: max(0, longest - len(mark))] + mark
    if isinstance(value, Mapping):
        return {key: shorter(item, longest) for key, item in value.items()}
    return [shorter(item, longest) for item in value] if isinstance(value, list) else value
