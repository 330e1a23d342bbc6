"""Arguments in a URL: text, read as the input schema says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from aima_lib.errors import InvalidArgument
from aima_mcp.faces import strict_json

NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
INTEGER = re.compile(r"-?(0|[1-9]\d*)")


def arguments(schema: Mapping[str, Any], pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Query parameters as arguments: an array by repetition, an object as JSON. Unknown names pass: the gateway refuses them.

    Raises:
        InvalidArgument: a value is not of its type, or something that is no array stands twice.
    """
    found: dict[str, Any] = {}
    for key, text in pairs:
        if "\0" in key or "\0" in text:
            raise InvalidArgument("the query holds the character NUL")
        spec = schema["properties"].get(key, {})
        if _type(spec) == "array":
            found.setdefault(key, []).append(_read(key, text, spec.get("items", {})))
        elif key in found:
            raise InvalidArgument(f"{key} stands twice")
        else:
            found[key] = _read(key, text, spec)
    return found


def _read(key: str, text: str, spec: Mapping[str, Any]) -> Any:
    kind = _type(spec)
    if kind == "integer" and INTEGER.fullmatch(text) and len(text) < 300:
        return int(text)
    if kind == "number" and NUMBER.fullmatch(text) and len(text) < 300:
        return strict_json.read(text.encode())
    if kind == "boolean" and text in ("true", "false"):
        return text == "true"
    if kind in ("object", "array") and ("string" not in spec.get("type", ()) or text.lstrip()[:1] in ("{", "[")):
        return _json(key, text)
    if kind in ("object", "array"):
        return text
    if kind in ("integer", "number", "boolean"):
        raise InvalidArgument(f"{key}: {text[:80]!r} is not a{'n' if kind[0] == 'i' else ''} {kind}")
    return text


def _json(key: str, text: str) -> Any:
    try:
        return strict_json.read(text.encode("utf-8", "surrogatepass"))
    except InvalidArgument as error:
        raise InvalidArgument(f"{key}: {error}".replace("the body", "the value"), hint="write it as JSON") from error


def _type(spec: Mapping[str, Any]) -> str:
    kind = spec.get("type", "string")
    return str(kind if isinstance(kind, str) else next(one for one in kind if one != "null"))
