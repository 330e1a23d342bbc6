"""JSON as RFC 8259 says and no looser: what two readers may understand differently is refused."""

from __future__ import annotations

import json
import math
from typing import Any

from aima_lib.errors import InvalidArgument

DEEPEST = 64


def read(body: bytes) -> Any:
    """The value in `body`.

    Raises:
        InvalidArgument: not UTF-8, not JSON, a key twice, NaN or Infinity, half a surrogate pair, NUL, or nested deeper than 64.
    """
    try:
        value = READS.decode(body.decode("utf-8"))
        if body.count(b"[") + body.count(b"{") > DEEPEST:
            _refuse_depth(value)
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
            if b"\\u0000" in body and _holds_nul(value):
                raise InvalidArgument("the body holds the character NUL, which ends a text in some places and not in others")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"the body is not UTF-8: byte {error.start} begins no character") from error
    except UnicodeEncodeError as error:
        raise InvalidArgument("the body holds half a surrogate pair, which is no character") from error
    except RecursionError as error:
        raise InvalidArgument(f"the body is nested deeper than {DEEPEST}") from error
    except ValueError as error:
        if "integer string conversion" in str(error):
            raise InvalidArgument("the body holds a number with too many digits") from error
        raise InvalidArgument(f"the body is not JSON: {error}", hint="send one JSON object") from error
    return value


def write(value: Any) -> bytes:
    """`value` as compact UTF-8. A file name the system could not decode becomes question marks, not a broken reply."""
    return WRITES.encode(value).encode("utf-8", "replace")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return found


def _constant(word: str) -> Any:
    raise ValueError(f"{word} is no JSON number")


def _float(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text[:40]} is too large")
    return number


def _holds_nul(value: Any) -> bool:
    if isinstance(value, dict):
        return any("\0" in key or _holds_nul(item) for key, item in value.items())
    return any(map(_holds_nul, value)) if isinstance(value, list) else isinstance(value, str) and "\0" in value


def _refuse_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise InvalidArgument(f"the body is nested deeper than {DEEPEST}")
        inner = [item for item in level if isinstance(item, dict | list)]
        level = [child for item in inner for child in (item.values() if isinstance(item, dict) else item)]
        depth += 1


# Made once: json.loads and json.dumps with options of their own make one for each call.
READS = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
WRITES = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
