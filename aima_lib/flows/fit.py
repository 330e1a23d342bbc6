"""A written value against the schema of what takes it, with references inside: what must be wrong before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from aima_lib.flows import shape
from aima_lib.flows.judge import Judge, Nearest, missing, unknown
from aima_lib.flows.reference import Literal, Reference, Slot, pieces_of, slots, whole_of
from aima_lib.flows.shape import Fit, Schema
from aima_lib.flows.source import Issue, Path, Places, spelled

Known = Callable[[Reference], Schema]  # what a reference leads to; ANY where that is not known
TEXT: Schema = {"type": "string"}


class Checker:
    """Judges the values of one document. Schemas are compiled once, and looked at for a bounded time in all."""

    def __init__(self, places: Places, near: Nearest) -> None:
        self._places, self._near = places, near
        self._judges: dict[int, tuple[Schema, Judge]] = {}
        self._fit = Fit()

    def issues(self, value: Any, schema: Schema, path: Path, known: Known) -> Iterator[Issue]:
        """What cannot be right in the value that stands at `path`, if it is to obey the schema."""
        dynamic = {(*path, *at)[:length] for at, _, _ in slots(value) for length in range(len(path), len(path) + len(at) + 1)}
        yield from self._any(value, schema, path, known, dynamic)

    def _any(self, value: Any, schema: Schema, path: Path, known: Known, dynamic: set[Path]) -> Iterator[Issue]:
        if path not in dynamic:
            yield from self._judge(schema).issues(_plain(value), path, self._places)
            return
        if isinstance(value, str):
            yield from self._text(value, schema, path, known)
            return
        key = next((key for key in shape.BRANCHES if key in schema), None)
        if key is not None:
            branches = [[*self._any(value, shape.as_schema(branch), path, known, dynamic)] for branch in schema[key]]
            here = spelled(path)  # what is wrong deep inside tells more than that it is of another kind
            yield from min(branches, key=lambda found: (any(issue.path == here for issue in found), len(found)), default=[])
            schema = {name: part for name, part in schema.items() if name != key}
        if isinstance(value, Mapping):
            yield from self._object(value, schema, path, known, dynamic)
        else:
            yield from self._list(value, schema, path, known, dynamic)

    def _text(self, value: str, schema: Schema, path: Path, known: Known) -> Iterator[Issue]:
        whole = whole_of(pieces_of(value))
        if whole is None:
            if reason := self._fit.clash(TEXT, schema):
                yield self._places.issue(path, f"this is a text with references: {reason}")
            return
        for choice in whole.choices:
            if isinstance(choice, Literal):
                yield from self._judge(schema).issues(choice.value, path, self._places)
            elif reason := self._refused(choice, schema, path, known):
                yield self._places.issue(path, f"{Slot((choice,))} does not fit: {reason}", _wanted(schema))

    def _refused(self, reference: Reference, schema: Schema, path: Path, known: Known) -> str | None:
        given = known(reference)
        if "const" in given:
            wrong = next(self._judge(schema).issues(given["const"], path, self._places), None)
            return wrong.message if wrong else None
        return self._fit.clash(given, schema)

    def _object(self, value: Mapping[str, Any], schema: Schema, path: Path, known: Known, dynamic: set[Path]) -> Iterator[Issue]:
        if "object" not in shape.types(schema):
            yield self._places.issue(path, f"this is an object, and {shape.spoken(schema)} is wanted", _wanted(schema))
            return
        properties = schema.get("properties", {})
        for key in schema.get("required", ()):
            if key not in value:
                yield missing(path, key, properties, self._places)
        for key, item in value.items():
            inside = shape.own_field(schema, key)
            if inside is None:
                yield unknown(path, key, self._near(key, properties), self._places)
            else:
                yield from self._any(item, inside, (*path, key), known, dynamic)

    def _list(self, value: Any, schema: Schema, path: Path, known: Known, dynamic: set[Path]) -> Iterator[Issue]:
        if "array" not in shape.types(schema):
            yield self._places.issue(path, f"this is a list, and {shape.spoken(schema)} is wanted", _wanted(schema))
            return
        least, most = schema.get("minItems", 0), schema.get("maxItems", len(value))
        if not least <= len(value) <= most:
            yield self._places.issue(path, f"a list of {len(value)} is {'shorter' if len(value) < least else 'longer'} than it may be")
        for place, item in enumerate(value):
            inside = shape.own_items(schema, place)
            if inside is not None:
                yield from self._any(item, inside, (*path, place), known, dynamic)

    def _judge(self, schema: Schema) -> Judge:
        if (found := self._judges.get(id(schema))) is None:
            found = self._judges[id(schema)] = (schema, Judge(schema, self._near))  # the schema is kept, so that its id is not given again
        return found[1]


def _plain(value: Any) -> Any:
    """A value without references as it will be: `$${` is `${`."""
    if isinstance(value, str):
        return "".join(map(str, pieces_of(value)))
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _wanted(schema: Schema) -> str | None:
    if "enum" in schema:
        return f"one of {', '.join(json.dumps(value) for value in schema['enum'])}"
    text = schema.get("description")
    return str(text).partition(". ")[0].rstrip(".") if text else None
