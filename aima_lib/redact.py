"""What may be told of arguments: nothing that their schema marks `writeOnly`.

Two kinds of property bear the mark. A secret has `"format": "password"` as well: it is never written on a command line. What is said to a
model (a prompt, a conversation) has the mark alone: it may be typed anywhere, and is repeated nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

HIDDEN = "***"
# A key that no schema knows is repeated only where it looks like one: a secret may have been put in the wrong place.
KEY = re.compile(r"[a-z][a-z_]{0,39}")
BRANCHES = ("anyOf", "oneOf", "allOf")


def redacted(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with `"***"` for every value that may not be told, however deep.

    Where the schema marks anything, what it does not know is hidden too, and so is what is not of the type it asks for.
    """
    if not isinstance(arguments, Mapping):
        return {}
    shown = _shown(schema, arguments) if keeps_private(schema) else arguments
    return dict(shown)


def keeps_private(schema: Any) -> bool:
    """Whether anything inside is marked."""
    return isinstance(schema, Mapping) and (schema.get("writeOnly") is True or any(map(keeps_private, _inside(schema))))


def secrets_in(schema: Mapping[str, Any]) -> list[str]:
    """The properties that are secrets."""
    return [key for key, spec in schema.get("properties", {}).items() if is_secret(spec)]


def is_secret(spec: Mapping[str, Any]) -> bool:
    """Whether this is one of those values that are never written on a command line."""
    return spec.get("writeOnly") is True and spec.get("format") == "password"


def known_key(key: str) -> str:
    """The key, if it may be repeated."""
    return key if KEY.fullmatch(key) else HIDDEN


def _inside(schema: Mapping[str, Any]) -> Iterator[Any]:
    yield from schema.get("properties", {}).values()
    yield from (schema[key] for key in ("items", "additionalProperties") if key in schema)
    for branch in BRANCHES:
        yield from schema.get(branch, ())


def _shown(schema: Mapping[str, Any], value: Any) -> Any:
    if schema.get("writeOnly") is True:
        return HIDDEN
    for branch in (each for name in BRANCHES for each in schema.get(name, ()) if keeps_private(each)):
        value = _shown(branch, value)
    if "properties" in schema or isinstance(schema.get("additionalProperties"), Mapping):
        return _shown_object(schema, value) if isinstance(value, Mapping) else _shown_other(schema, value)
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        return [_shown(schema["items"], item) for item in value]
    return _shown_other(schema, value)


def _shown_object(schema: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    known, rest = schema.get("properties", {}), schema.get("additionalProperties")
    shown: dict[str, Any] = {}
    for key, item in value.items():
        if key in known:
            shown[key] = _shown(known[key], item)
        elif isinstance(rest, Mapping):
            shown[key] = _shown(rest, item)
        else:
            shown[known_key(str(key))] = HIDDEN
    return shown


def _shown_other(schema: Mapping[str, Any], value: Any) -> Any:
    """A value that has no parts the schema knows: hidden when it stands where something private should be."""
    own = {key: part for key, part in schema.items() if key not in BRANCHES}
    return HIDDEN if keeps_private(own) else value


WORD = re.compile(r"\w{4,}")


def unsaid(message: str, arguments: Any) -> str:
    """A message with "…" for each longer word that stands in a text of the arguments."""
    said = {word for text in _texts(arguments) for word in WORD.findall(text)}

    def shown(found: re.Match[str]) -> str:
        return "…" if any(found[0] in word or word in found[0] for word in said) else found[0]

    return WORD.sub(shown, message)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
