"""Arguments as some hosts and models send them: numbers, truths, lists and objects written as text. What a field's schema allows no text
for, and what reads as JSON of a kind that it does allow, is taken as that; all else stays as it came, for the gateway to judge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aima_lib.errors import InvalidArgument
from aima_mcp.faces import strict_json

KINDS: dict[str, type | tuple[type, ...]] = {"integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}


def repaired(schema: Mapping[str, Any], value: Any) -> Any:
    """`value` with what is text by mistake as what `schema` wants."""
    if isinstance(value, str):
        value = _read(schema, value)
    if isinstance(value, dict):
        known = schema.get("properties", {})
        return {key: repaired(known[key], given) if key in known else given for key, given in value.items()}
    if isinstance(value, list) and isinstance(items := schema.get("items"), dict):
        return [repaired(items, given) for given in value]
    return value


def _read(schema: Mapping[str, Any], text: str) -> Any:
    kinds = _kinds(schema)
    if not kinds or not kinds <= KINDS.keys():
        return text
    try:
        value = strict_json.read(text.encode())
    except (InvalidArgument, UnicodeEncodeError):
        return text
    for kind in kinds:
        if isinstance(value, KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool)):
            return value
    return text


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    """The kinds of value that a field may have; none where its schema does not say."""
    said = schema.get("type", [])
    return {said} if isinstance(said, str) else set(said) - {"null"}
