"""What a safetensors file and the config.json beside it say, read without trusting them."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from aima_lib.errors import InvalidArgument

LARGEST_HEAD, LARGEST_CONFIG = 100_000_000, 1 << 20


def count_parameters(path: Path, name: str) -> tuple[int, str | None]:
    """How many parameters the file holds, and its most frequent type ("BF16").

    Raises:
        InvalidArgument: it is no safetensors file or is cut short; the message names the offset.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        first = stream.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
        if length > min(size - 8, LARGEST_HEAD):
            raise _broken(name, 0, f"its head claims more bytes than the {size} of the file, or than {LARGEST_HEAD}")
        head = _object(name, stream.read(length), 8)
    by_type: dict[str, int] = {}
    for key, tensor in head.items():
        if key != "__metadata__":
            kind, elements = _tensor(name, key, tensor, size - 8 - length, 8 + length)
            by_type[kind] = by_type.get(kind, 0) + elements
    return sum(by_type.values()), max(by_type, key=by_type.__getitem__, default=None)


def _tensor(file: str, name: str, tensor: Any, room: int, start: int) -> tuple[str, int]:
    try:
        begin, end = (int(offset) for offset in tensor["data_offsets"])
        elements, kind = math.prod(int(length) for length in tensor["shape"]), str(tensor["dtype"])
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(file, 8, f"tensor {name} is not described") from error
    if not 0 <= begin <= end <= room:
        raise _broken(file, start, f"tensor {name} ends at byte {start + end}, the file at {start + room}: it was cut short")
    return kind, elements


def read_config(path: Path) -> dict[str, Any]:
    """The config.json of a transformers folder."""
    if path.stat().st_size > LARGEST_CONFIG:
        raise _broken("config.json", LARGEST_CONFIG, f"a configuration has at most {LARGEST_CONFIG} bytes")
    return _object("config.json", path.read_bytes(), 0)


def _object(name: str, data: bytes, at: int) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _broken(name, at, f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _broken(name, at, "not a JSON object")
    return value


def _broken(name: str, at: int, what: str) -> InvalidArgument:
    return InvalidArgument(f"{name} is not usable: at byte {at}: {what}", hint="download it again")
