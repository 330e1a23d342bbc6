"""One schema as a judge of documents: what does not obey it, as issues with a place and a suggestion."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from aima_lib.flows.source import TOLD, Issue, Path, Places
from aima_lib.names import did_you_mean, slug
from aima_lib.redact import keeps_private, known_key

BREAKS = {"minimum": "is less than", "maximum": "is more than", "exclusiveMinimum": "is not more than"}
BREAKS |= {"minItems": "is shorter than", "maxItems": "is longer than", "minLength": "is shorter than", "maxLength": "is longer than"}
FEW = 24
LONGEST_WORD = 64  # that is compared with the known ones


class Nearest:
    """Suggestions for words that nobody knows: those that look like them. Comparing takes time, so only so many are compared in all."""

    def __init__(self, comparisons: int = 2_000) -> None:
        self._left = comparisons

    def __call__(self, word: str, known: Collection[str]) -> str | None:
        """A hint that names the nearest, or all where there are few."""
        self._left -= len(known)
        near = did_you_mean(word[:LONGEST_WORD], known) if self._left >= 0 else None
        return near or (f"there are: {', '.join(sorted(known))}" if 0 < len(known) <= FEW else None)


class Judge:
    """A schema, compiled. Where it marks anything as private, no value is repeated."""

    def __init__(self, schema: Mapping[str, Any], near: Nearest | None = None) -> None:
        import jsonschema_rs

        self._schema = schema
        self._near = near or Nearest()
        self._private = keeps_private(schema)
        self._validator = jsonschema_rs.Draft202012Validator(dict(schema))

    def issues(self, value: Any, path: Path, places: Places) -> Iterator[Issue]:
        """What is wrong with the value that stands at `path` of a document."""
        if self._validator.is_valid(value):
            return
        for error in islice(self._validator.iter_errors(value), TOLD):
            yield from self._told(error, (*path, *error.instance_path), places)

    def _told(self, error: Any, path: Path, places: Places) -> Iterator[Issue]:
        around = self._at(list(error.schema_path)[:-1])
        match error.kind.name:
            case "additionalProperties":
                known = around.get("properties", {})
                for key in error.kind.unexpected:
                    yield unknown(path, known_key(key) if self._private else key, self._near(key, known), places)
            case "required":
                yield missing(path, error.kind.property, around.get("properties", {}), places)
            case name:
                suggestion = f"call it {slug(str(error.instance)[:200])}" if name == "pattern" and path == ("name",) else _about(around)
                yield places.issue(path, f"{_shown(error.instance, self._private)} {_says(error.kind)}", suggestion)

    def _at(self, path: Iterable[str | int]) -> Mapping[str, Any]:
        """The part of the schema at a path, through references inside it."""
        node: Any = self._schema
        for part in path:
            node = node[part]
            if isinstance(node, dict) and str(node.get("$ref", "")).startswith("#/"):
                node = {**self._at(node["$ref"].removeprefix("#/").split("/")), **node}
        return node if isinstance(node, Mapping) else {}


def unknown(path: Path, key: str, suggestion: str | None, places: Places) -> Issue:
    """The issue of a key that nobody knows."""
    return places.issue((*path, key), f"{key[:LONGEST_WORD]!r} means nothing here", suggestion, key=True)


def missing(path: Path, key: str, known: Mapping[str, Any], places: Places) -> Issue:
    """The issue of a key that must be there."""
    return places.issue(path, f"{key} is missing", _about(known.get(key)))


def _about(spec: Any) -> str | None:
    """The first sentence of a description."""
    text = spec.get("description") if isinstance(spec, Mapping) else None
    return str(text).partition(". ")[0].rstrip(".") if text else None


def _says(kind: Any) -> str:
    match kind.name:
        case "type":
            return f"is not {' or '.join(kind.types if isinstance(kind.types, list) else [str(kind.types)])}"
        case "enum":
            return f"is not one of {', '.join(map(str, kind.options))}"
        case "pattern":
            return f"does not match {kind.pattern}"
        case "uniqueItems":
            return "has a value twice"
        case "anyOf" | "oneOf" | "oneOfNotValid":
            return "is none of what may stand here"
        case name:
            return f"{BREAKS.get(name, f'breaks {name}')} {getattr(kind, 'limit', '')}".rstrip()


def _shown(value: Any, private: bool) -> str:
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if private:
        return "this"
    return json.dumps(value[:60] + "…" if isinstance(value, str) and len(value) > 60 else value, ensure_ascii=False)
