"""What an ONNX file says of itself: a walk over its protobuf that descends into nothing it need not, and trusts no length.

Field numbers are those of onnx.proto (ONNX 1.x): a model holds a graph, a graph its nodes, weights, inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from aima_lib.errors import InvalidArgument

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MOST_FIELDS, MOST_WEIGHTS, MOST_NAMED, MOST_DIMENSIONS, LONGEST_TEXT = 600_000, 1 << 16, 4096, 64, 1 << 12
# Number types of a tensor: name and bits.
TYPES: Mapping[int, tuple[str, int]] = {
    1: ("F32", 32), 2: ("U8", 8), 3: ("I8", 8), 4: ("U16", 16), 5: ("I16", 16), 6: ("I32", 32), 7: ("I64", 64), 9: ("BOOL", 8),
    10: ("F16", 16), 11: ("F64", 64), 12: ("U32", 32), 13: ("U64", 64), 14: ("C64", 64), 15: ("C128", 128), 16: ("BF16", 16),
    17: ("F8_E4M3", 8), 18: ("F8_E4M3FNUZ", 8), 19: ("F8_E5M2", 8), 20: ("F8_E5M2FNUZ", 8), 21: ("U4", 4), 22: ("I4", 4), 23: ("F4", 4),
}  # fmt: skip
QUANTIZING = {"MatMulNBits": "Q4", "DequantizeLinear": "I8", "QLinearMatMul": "I8", "QLinearConv": "I8", "MatMulInteger": "I8"}


@dataclass(slots=True)
class Head:
    """The graph's weights and its ends. `external` are the files beside it that hold weights: name → bytes that must be there."""

    ir_version: int = 0
    opset: int = 0
    nodes: int = 0
    weights: int = 0
    parameters: int = 0
    bytes_by_type: dict[str, int] = field(default_factory=dict)
    elements: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, list[int | None]] = field(default_factory=dict)
    outputs: dict[str, list[int | None]] = field(default_factory=dict)
    external: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    quantized: str | None = None


def read_head(stream: BinaryIO, size: int, name: str) -> Head:
    """Walk a model.

    Raises:
        InvalidArgument: it is no ONNX model, is cut short, or claims what cannot be; the message names the offset.
    """
    walk, head = _Walk(stream, size, name), Head()
    has_graph = False
    for number, kind, end in walk.fields(size):
        if number == 1 and kind == VARINT:
            head.ir_version = end
        elif number == 2 and kind == BYTES:
            walk.text(end, "the producer")
        elif number == 7 and kind == BYTES:
            if has_graph:
                raise walk.broken("it holds two graphs")
            has_graph = True
            _graph(walk, end, head)
        elif number == 8 and kind == BYTES:
            head.opset = max(head.opset, _number(walk, end, 2))
        elif number == 14 and kind == BYTES and len(head.metadata) < MOST_NAMED:
            key, value = _pair(walk, end)
            head.metadata[key] = value
        elif kind == BYTES:
            walk.skip(end)
    if not has_graph or not 1 <= head.ir_version <= 1000:
        walk.at = 0
        raise walk.broken("it holds no graph of a known version")
    return head


class _Walk:
    """A cursor over tags; no field may reach past the one it stands in."""

    def __init__(self, stream: BinaryIO, size: int, name: str) -> None:
        self.stream, self.size, self.name, self.at, self.left = stream, size, name, 0, MOST_FIELDS

    def broken(self, what: str) -> InvalidArgument:
        return InvalidArgument(f"{self.name} is not a usable ONNX model: at byte {self.at}: {what}", hint="download it, or export it again")

    def fields(self, end: int) -> Iterator[tuple[int, int, int]]:
        """Each field up to `end`: its number, its kind, and its value, or for bytes where they end. What is not read must be skipped."""
        while self.at < end:
            self.left -= 1
            if self.left < 0:
                raise self.broken(f"more than {MOST_FIELDS} fields")
            tag = self.varint(end)
            number, kind = tag >> 3, tag & 7
            if number == 0:
                raise self.broken("a field of number 0")
            if kind == VARINT:
                yield number, kind, self.varint(end)
            elif kind == BYTES:
                length = self.varint(end)
                if length > end - self.at:
                    raise self.broken(f"field {number} needs {length} bytes, {end - self.at} are left")
                yield number, kind, self.at + length
            elif kind in (FIXED64, FIXED32):
                self.skip(self.at + (8 if kind == FIXED64 else 4), end)
                yield number, kind, 0
            else:
                raise self.broken(f"field {number} is of the unknown kind {kind}")

    def varint(self, end: int) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.stream.read(1)
            if not byte or self.at >= end:
                raise self.broken("a number is cut short")
            self.at += 1
            value |= (byte[0] & 0x7F) << shift
            if byte[0] < 0x80:
                return value & ((1 << 64) - 1)
        raise self.broken("a number of more than ten bytes")

    def take(self, end: int, most: int, what: str) -> bytes:
        if end - self.at > most:
            raise self.broken(f"{what} is {end - self.at} bytes long, at most {most} are read")
        data = self.stream.read(end - self.at)
        if len(data) != end - self.at:
            raise self.broken(f"{what} could not be read whole")
        self.at = end
        return data

    def text(self, end: int, what: str) -> str:
        try:
            return self.take(end, LONGEST_TEXT, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.broken(f"{what} is not UTF-8") from error

    def skip(self, to: int, end: int | None = None) -> None:
        if to > (self.size if end is None else end):
            raise self.broken("a field is cut short")
        self.stream.seek(to)
        self.at = to


def _graph(walk: _Walk, end: int, head: Head) -> None:
    for number, kind, stop in walk.fields(end):
        if kind != BYTES:
            continue
        if number == 1:
            _node(walk, stop, head)
        elif number == 5:
            _weight(walk, stop, head)
        elif number in (11, 12):
            ends = head.inputs if number == 11 else head.outputs
            if len(ends) >= MOST_NAMED:
                raise walk.broken(f"more than {MOST_NAMED} inputs or outputs")
            name, shape = _value(walk, stop)
            ends[name] = shape
        else:
            walk.skip(stop)


def _node(walk: _Walk, end: int, head: Head) -> None:
    """Only the operator's name, and the weight of a constant; subgraphs and other attributes are passed over."""
    head.nodes += 1
    operator = ""
    for number, kind, stop in walk.fields(end):
        if number == 4 and kind == BYTES:
            operator = walk.text(stop, "an operator")
            head.quantized = head.quantized or QUANTIZING.get(operator)
            if operator != "Constant":
                walk.skip(end)
                return
        elif number == 5 and kind == BYTES and operator == "Constant":
            for _, _, tensor in _within(walk, stop, 5):
                _weight(walk, tensor, head)
        elif kind == BYTES:
            walk.skip(stop)


def _weight(walk: _Walk, end: int, head: Head) -> None:
    head.weights += 1
    if head.weights > MOST_WEIGHTS:
        raise walk.broken(f"more than {MOST_WEIGHTS} weights")
    shape: list[int] = []
    name, type_number, raw, outside, is_outside = "", 0, None, {}, False
    for number, kind, stop in walk.fields(end):
        if number == 1:
            shape += [stop] if kind == VARINT else _packed(walk, stop)
        elif number == 2 and kind == VARINT:
            type_number = stop
        elif number == 8 and kind == BYTES:
            name = walk.text(stop, "the name of a weight")
        elif number == 13 and kind == BYTES:
            key, value = _pair(walk, stop)
            outside[key] = value
        elif number == 14 and kind == VARINT:
            is_outside = stop == 1
        elif kind == BYTES:
            raw = stop - walk.at if number == 9 else raw
            walk.skip(stop)
        if len(shape) > MOST_DIMENSIONS or len(outside) > 16:
            raise walk.broken(f"the weight {name} has too many dimensions or too many files")
    _measure(walk, head, name, shape, type_number, raw, outside if is_outside else None)


def _measure(walk: _Walk, head: Head, name: str, shape: list[int], kind: int, raw: int | None, outside: Mapping[str, str] | None) -> None:
    elements = 1
    for length in shape:
        elements *= length
    label, bits = TYPES.get(kind, ("unknown", 0))
    length = -(-elements * bits // 8)
    if outside is not None:
        _elsewhere(walk, head, name, outside, length)
    elif raw is not None and bits and raw != length:
        raise walk.broken(f"the weight {name} of {elements} {label} does not take the {raw} bytes it has")
    elif raw is None and elements > 8 * walk.size:
        raise walk.broken(f"the weight {name} claims {elements} elements, more than the file can hold")
    head.parameters += elements
    head.elements[label] = head.elements.get(label, 0) + elements
    head.bytes_by_type[label] = head.bytes_by_type.get(label, 0) + length


def _elsewhere(walk: _Walk, head: Head, name: str, outside: Mapping[str, str], length: int) -> None:
    place = outside.get("location", "")
    if not place or place.startswith(("/", "\\")) or "\\" in place or ":" in place or "\0" in place or ".." in place.split("/"):
        raise walk.broken(f"the weight {name} lies at {place!r}, which is not a file beside the model")
    try:
        offset, claimed = int(outside.get("offset", "0")), int(outside.get("length", length))
    except ValueError as error:
        raise walk.broken(f"the weight {name} has an offset that is no number") from error
    if offset < 0 or claimed < length or offset + claimed > 1 << 50:
        raise walk.broken(f"the weight {name} takes {length} bytes, {claimed} at {offset} of {place} are named")
    if place not in head.external and len(head.external) >= MOST_NAMED:
        raise walk.broken(f"its weights lie in more than {MOST_NAMED} files")
    head.external[place] = max(head.external.get(place, 0), offset + claimed)


def _packed(walk: _Walk, end: int) -> list[int]:
    found: list[int] = []
    while walk.at < end and len(found) <= MOST_DIMENSIONS:
        found.append(walk.varint(end))
    return found


def _pair(walk: _Walk, end: int) -> tuple[str, str]:
    key, value = "", ""
    for number, kind, stop in walk.fields(end):
        if number == 1 and kind == BYTES:
            key = walk.text(stop, "a key")
        elif number == 2 and kind == BYTES and stop - walk.at <= LONGEST_TEXT:
            value = walk.text(stop, "a value")
        elif kind == BYTES:
            walk.skip(stop)
    return key, value


def _number(walk: _Walk, end: int, wanted: int) -> int:
    found = 0
    for number, kind, value in walk.fields(end):
        if kind == BYTES:
            walk.skip(value)
        elif number == wanted:
            found = value
    return found


def _value(walk: _Walk, end: int) -> tuple[str, list[int | None]]:
    """Name and shape of an input or output; None stands for a length that is open."""
    name, shape = "", []
    for number, kind, stop in walk.fields(end):
        if number == 1 and kind == BYTES:
            name = walk.text(stop, "a name")
        elif number == 2 and kind == BYTES:
            shape = _shape(walk, stop)
        elif kind == BYTES:
            walk.skip(stop)
    return name, shape


def _shape(walk: _Walk, end: int) -> list[int | None]:
    """TypeProto → tensor (1) → shape (2) → dimensions (1) → length (1)."""
    found: list[int | None] = []
    for _, _, tensor in _within(walk, end, 1):
        for _, _, shape in _within(walk, tensor, 2):
            for _, _, dimension in _within(walk, shape, 1):
                length: int | None = None
                for number, kind, value in walk.fields(dimension):
                    if number == 1 and kind == VARINT:
                        length = value if value < 1 << 62 else None
                    elif kind == BYTES:
                        walk.skip(value)
                found.append(length)
                if len(found) > MOST_DIMENSIONS:
                    raise walk.broken(f"a shape of more than {MOST_DIMENSIONS} dimensions")
    return found


def _within(walk: _Walk, end: int, wanted: int) -> Iterator[tuple[int, int, int]]:
    for number, kind, stop in walk.fields(end):
        if number == wanted and kind == BYTES:
            yield number, kind, stop
        elif kind == BYTES:
            walk.skip(stop)
