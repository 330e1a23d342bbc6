"""What a safetensors file and the config.json beside it say, read without trusting them."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from aima_lib.errors import InvalidArgument

LARGEST_HEAD, LARGEST_CONFIG = 100_000_000, 1 << 20


def count_parameters(path: Path) -> tuple[int, str | None]:
    """How many parameters the file holds, and its most frequent type ("BF16").

    Raises:
        InvalidArgument: it is no safetensors file or is cut short; the message names the offset.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        first = stream.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
        if length > min(size - 8, LARGEST_HEAD):
            raise _broken(path, 0, f"its head claims {length} bytes, the file has {size}")
        head = _object(path, stream.read(length), 8)
    by_type: dict[str, int] = {}
    for name, tensor in head.items():
        if name != "__metadata__":
            kind, elements = _tensor(path, name, tensor, size - 8 - length, 8 + length)
            by_type[kind] = by_type.get(kind, 0) + elements
    return sum(by_type.values()), max(by_type, key=by_type.__getitem__, default=None)


def _tensor(path: Path, name: str, tensor: Any, room: int, start: int) -> tuple[str, int]:
    try:
        begin, end = (int(offset) for offset in tensor["data_offsets"])
        elements, kind = math.prod(int(length) for length in tensor["shape"]), str(tensor["dtype"])
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(path, 8, f"tensor {name} is not described") from error
    if not 0 <= begin <= end <= room:
        raise _broken(path, start, f"tensor {name} ends at byte {start + end}, the file at {start + room}: it was cut short")
    return kind, elements


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a transformers folder, or nothing when there is none."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    if path.stat().st_size > LARGEST_CONFIG:
        raise _broken(path, LARGEST_CONFIG, f"a configuration has at most {LARGEST_CONFIG} bytes")
    return _object(path, path.read_bytes(), 0)


def _object(path: Path, data: bytes, at: int) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _broken(path, at, f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _broken(path, at, "not a JSON object")
    return value


def _broken(path: Path, at: int, what: str) -> InvalidArgument:
    return InvalidArgument(f"{path.name} is not usable: at byte {at}: {what}", hint="download it again")
