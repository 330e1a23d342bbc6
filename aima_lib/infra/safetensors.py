"""What a safetensors file and the config.json beside it say, read without trusting them.

Source of the layout: the format's own description: eight bytes of length, that much JSON, then the tensors without a gap.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from aima_lib.errors import InvalidArgument

LARGEST_HEAD, LARGEST_CONFIG, MOST_TENSORS, MOST_DIMENSIONS = 100_000_000, 1 << 20, 1 << 18, 16
# Bits of each type of number.
BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
BLOCK, EXPERT = re.compile(r"\.(?:layers|h|blocks|layer|block)\.\d+\."), re.compile(r"\.experts\.|_exps\.")
# Beside packed weights stand the numbers that unpack them: they are no parameters.
UNPACKING = re.compile(r"(?:scales?|scale_inv|qzeros|zeros|g_idx|absmax|quant_map|quant_state\S*|zero_point|weight_shape)$")


@dataclass(slots=True)
class Head:
    """The tensors of one file: how many, of which types, and where their bytes go."""

    tensors: int = 0
    elements: dict[str, int] = field(default_factory=dict)
    bytes_by_type: dict[str, int] = field(default_factory=dict)
    packed: int = 0  # elements of integers, which hold more than one weight each where the configuration says so
    parameters: int = 0
    block_bytes: int = 0
    expert_bytes: int = 0
    expert_parameters: int = 0
    vision: bool = False


def read_head(stream: BinaryIO, size: int, name: str) -> Head:
    """Read and check a file's head.

    Raises:
        InvalidArgument: it is no safetensors file, is cut short, or claims what cannot be; the message names the offset.
    """
    first = stream.read(8)
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
    if length > min(size - 8, LARGEST_HEAD):
        raise _broken(name, 0, f"its head claims more bytes than the {size} of the file, or than {LARGEST_HEAD}")
    text = stream.read(length)
    if not text.startswith(b"{"):
        raise _broken(name, 8, "its head does not begin with '{'")
    tensors = _object(name, text, 8)
    extra = tensors.pop("__metadata__", {})
    if not isinstance(extra, dict) or any(not isinstance(value, str) for value in extra.values()):
        raise _broken(name, 8, "__metadata__ is no object of texts")
    if len(tensors) > MOST_TENSORS:
        raise _broken(name, 8, f"{len(tensors)} tensors, at most {MOST_TENSORS} are read")
    head, room = Head(), size - 8 - length
    spans = [_tensor(head, name, key, tensor, room, 8 + length) for key, tensor in tensors.items()]
    _refuse_gaps(name, spans, room, 8 + length)
    return head


def _tensor(head: Head, file: str, name: str, tensor: Any, room: int, start: int) -> tuple[int, int, str]:
    try:
        begin, end = tensor["data_offsets"]
        shape, kind = tensor["shape"], tensor["dtype"]
        sound = all(type(number) is int and number >= 0 for number in (begin, end, *shape)) and len(shape) <= MOST_DIMENSIONS
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(file, 8, f"tensor {name} is not described") from error
    if not sound or not isinstance(kind, str):
        raise _broken(file, 8, f"tensor {name} has a shape or offsets that are no counts")
    if not begin <= end <= room:
        raise _broken(file, start, f"tensor {name} ends at byte {start + end}, the file at {start + room}: it was cut short")
    elements, bits = math.prod(shape), BITS.get(kind)
    if (bits is None and elements > 8 * (end - begin)) or (bits is not None and -(-elements * bits // 8) != end - begin):
        raise _broken(file, start, f"tensor {name} of {elements} {kind} does not take the {end - begin} bytes it claims")
    _count(head, name, kind, elements, end - begin)
    return begin, end, name


def _count(head: Head, name: str, kind: str, elements: int, length: int) -> None:
    kind = kind if kind in BITS else "unknown"
    head.tensors += 1
    head.elements[kind] = head.elements.get(kind, 0) + elements
    head.bytes_by_type[kind] = head.bytes_by_type.get(kind, 0) + length
    dotted = f".{name}"
    if BLOCK.search(dotted):
        head.block_bytes += length
    if EXPERT.search(dotted):
        head.expert_bytes += length
    head.vision = head.vision or ".visual." in dotted or ".vision_" in dotted
    if UNPACKING.search(name):
        return
    if kind in ("I32", "U8"):
        head.packed += elements
        return
    head.parameters += elements
    if EXPERT.search(dotted):
        head.expert_parameters += elements


def _refuse_gaps(file: str, spans: list[tuple[int, int, str]], room: int, start: int) -> None:
    reached = 0
    for begin, end, name in sorted(spans):
        if begin != reached:
            raise _broken(file, start + begin, f"tensor {name} overlaps another, or leaves a gap before it")
        reached = end
    if reached != room:
        raise _broken(file, start + reached, f"{room - reached} bytes follow the last tensor")


def read_json(stream: BinaryIO, size: int, name: str, largest: int = LARGEST_CONFIG) -> dict[str, Any]:
    """A small JSON object.

    Raises:
        InvalidArgument: it is too long, or no JSON object.
    """
    if size > largest:
        raise _broken(name, largest, f"{size} bytes, at most {largest} are read")
    return _object(name, stream.read(largest + 1), 0)


def _object(name: str, data: bytes, at: int) -> dict[str, Any]:
    try:
        value = json.loads(data, object_pairs_hook=_once, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise _broken(name, at, f"not JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise _broken(name, at, "not a JSON object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _broken(name: str, at: int, what: str) -> InvalidArgument:
    return InvalidArgument(f"{name} is not usable: at byte {at}: {what}", hint="download it again")
