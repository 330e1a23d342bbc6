"""Heads of models, made by hand: sound ones, and those that were made to hurt whoever reads them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# GGUF


def gguf_head(version: int = 3, tensors: int = 0, pairs: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


def gguf_text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def gguf_pair(key: str, value: Any) -> bytes:
    """One metadata key: a text, a whole number, a truth, or a list of one of them."""
    return gguf_text(key.encode()) + _gguf_value(value)


def _gguf_value(value: Any) -> bytes:
    if isinstance(value, list):
        kind, bodies = _gguf_value(value[0])[:4], [_gguf_value(each)[4:] for each in value]
        return struct.pack("<I", 9) + kind + struct.pack("<Q", len(value)) + b"".join(bodies)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_text(value.encode())
    return struct.pack("<II", 4, value)


def gguf_tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return gguf_text(name.encode()) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(metadata: dict[str, Any], tensors: list[tuple[str, tuple[int, ...], int, int]] | None = None) -> bytes:
    """A sound file. Tensors are (name, shape, type, bytes); what they hold are zeros."""
    body, at = b"", 0
    for name, shape, kind, length in tensors or []:
        body += gguf_tensor(name, shape, kind, at)
        at += -(-length // 32) * 32
    pairs = b"".join(gguf_pair(key, value) for key, value in metadata.items())
    head = gguf_head(3, len(tensors or []), len(metadata)) + pairs + body
    return head + bytes(-len(head) % 32) + bytes(at)


# safetensors


def safetensors(head: Any, body: int = 0, length: int | None = None) -> bytes:
    """A file with this head, as JSON or as it is, and so many zeros after it."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(body)


def tensor(shape: list[Any], begin: Any, end: Any, dtype: Any = "F16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


# ONNX: protobuf by hand


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | bytes | str) -> bytes:
    """A field that holds a number, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def onnx_weight(name: str, shape: tuple[int, ...], kind: int = 1, raw: int | None = 0, outside: dict[str, str] | None = None) -> bytes:
    """A weight with so many bytes of zeros, or with its data in another file."""
    body = b"".join(field(1, length) for length in shape) + field(2, kind) + field(8, name)
    if outside is not None:
        body += b"".join(field(13, field(1, key) + field(2, value)) for key, value in outside.items()) + field(14, 1)
    elif raw is not None:
        body += field(9, bytes(raw))
    return field(5, body)


def onnx_end(number: int, name: str, shape: tuple[int | str, ...]) -> bytes:
    """An input (11) or an output (12)."""
    dimensions = b"".join(field(1, field(1, each) if isinstance(each, int) else field(2, each)) for each in shape)
    return field(number, field(1, name) + field(2, field(1, field(1, 1) + field(2, dimensions))))


def onnx(*graph: bytes, version: int = 9) -> bytes:
    """A model of this graph."""
    return field(1, version) + field(2, "by hand") + field(7, b"".join(graph)) + field(8, field(2, 17))


def sound_onnx() -> bytes:
    ends = onnx_end(11, "images", (1, 3, 640, 640)) + onnx_end(12, "output0", (1, 84, 8400))
    return onnx(field(1, field(1, "images") + field(4, "Conv")), onnx_weight("w", (2, 3), 1, 24), ends)


# What hurts


class Hostile(NamedTuple):
    """A file that must be refused. `write` makes it, so that a large one need not be held."""

    name: str
    format: str
    write: Callable[[Path], None]


def _plain(data: bytes) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(data))


def void(_: object) -> None:
    """Nothing of a value."""


def _sparse(head: bytes, size: int) -> Callable[[Path], None]:
    """A file of zeros after its head; it takes no disk."""

    def write(path: Path) -> None:
        with path.open("wb") as stream:
            stream.write(head)
            stream.truncate(size)

    return write


def _repeated(head: bytes, piece: bytes, count: int, tail: bytes = b"") -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as stream:
            stream.write(head)
            for _ in range(count // 1000):
                stream.write(piece * 1000)
            stream.write(tail)

    return write


def hostile() -> list[Hostile]:
    """All of them; each name once."""
    found = [Hostile(name, format, write) for format, some in CORPUS.items() for name, write in some()]
    assert len({one.name for one in found}) == len(found)
    return found


Some = Iterator[tuple[str, Callable[[Path], None]]]
KEY, PAD = gguf_text(b"k"), bytes(64)


def _ggufs() -> Some:
    array = struct.pack("<I", 9)
    yield "gguf-empty", _plain(b"")
    yield "gguf-other-magic", _plain(b"GGML" + PAD)
    yield "gguf-version-0", _plain(gguf_head(version=0) + PAD)
    yield "gguf-big-endian", _plain(b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + PAD)
    yield "gguf-tensors-2-60", _sparse(gguf_head(tensors=1 << 60), 1 << 30)
    yield "gguf-tensors-2-24", _sparse(gguf_head(tensors=1 << 24), 1 << 34)
    yield "gguf-keys-2-63", _plain(gguf_head(pairs=1 << 63) + PAD)
    yield "gguf-keys-2-24", _sparse(gguf_head(pairs=1 << 24), 1 << 34)
    yield "gguf-key-of-2-62", _plain(gguf_head(pairs=1) + struct.pack("<Q", 1 << 62) + PAD)
    yield "gguf-key-of-1-gib", _sparse(gguf_head(pairs=1) + struct.pack("<Q", 1 << 30), 1 << 31)
    yield "gguf-text-of-1-gib", _sparse(gguf_head(pairs=1) + KEY + struct.pack("<IQ", 8, 1 << 30), 1 << 31)
    yield "gguf-many-texts", _repeated(gguf_head(pairs=4000), b"", 0, b"".join(gguf_pair(f"k{i}", "x" * 4096) for i in range(4000)))
    yield "gguf-type-99", _plain(gguf_head(pairs=1) + KEY + struct.pack("<I", 99) + PAD)
    yield "gguf-array-2-40", _plain(gguf_head(pairs=1) + KEY + array + struct.pack("<IQ", 8, 1 << 40))
    yield "gguf-array-of-empty-texts", _sparse(gguf_head(pairs=1) + KEY + array + struct.pack("<IQ", 8, 1 << 24), 1 << 28)
    yield "gguf-texts-to-the-limit", _sparse(gguf_head(pairs=9) + KEY + array + struct.pack("<IQ", 8, 1 << 22), 1 << 29)
    yield "gguf-array-of-type-99", _plain(gguf_head(pairs=1) + KEY + array + struct.pack("<IQ", 99, 1) + PAD)
    yield "gguf-nested", _plain(gguf_head(pairs=1) + KEY + array + struct.pack("<IQ", 9, 1) * 40 + PAD)
    yield "gguf-many-arrays", _sparse(gguf_head(pairs=1) + KEY + array + struct.pack("<IQ", 9, 1 << 24), 1 << 32)
    yield "gguf-not-utf8", _plain(gguf_head(pairs=1) + gguf_text(b"\xff\xfe") + PAD)
    yield "gguf-key-twice", _plain(gguf_head(pairs=2) + gguf_pair("a", 1) * 2 + PAD)
    yield "gguf-rank-2-32", _plain(gguf_head(tensors=1) + gguf_text(b"t") + struct.pack("<I", (1 << 32) - 1) + PAD)
    yield "gguf-tensor-past-the-end", _plain(gguf_head(tensors=1) + gguf_tensor("t", (1 << 40,), 0, 0) + PAD)
    yield "gguf-tensor-overflows", _plain(gguf_head(tensors=1) + gguf_tensor("t", ((1 << 63) + 1,) * 4, 0, 0) + PAD)
    yield "gguf-tensor-of-type-99", _plain(gguf_head(tensors=1) + gguf_tensor("t", (1 << 62,), 99, 0) + PAD)
    yield "gguf-offset-2-63", _plain(gguf_head(tensors=1) + gguf_tensor("t", (1,), 0, 1 << 63) + PAD)
    yield "gguf-offset-unaligned", _plain(gguf_head(tensors=1) + gguf_tensor("t", (1,), 0, 7) + PAD)
    yield "gguf-tensors-overlap", _plain(gguf_head(tensors=2) + gguf_tensor("a", (16,), 0, 0) + gguf_tensor("b", (16,), 0, 32) + PAD * 4)
    yield "gguf-tensor-twice", _plain(gguf_head(tensors=2) + gguf_tensor("a", (8,), 0, 0) + gguf_tensor("a", (8,), 0, 32) + PAD * 4)
    aligned = gguf_pair("general.alignment", 0)
    yield "gguf-alignment-0", _plain(gguf_head(tensors=1, pairs=1) + aligned + gguf_tensor("t", (1,), 0, 0) + PAD)
    yield "gguf-adapter", _plain(gguf({"general.architecture": "llama", "general.type": "adapter"}))


def _safetensors() -> Some:
    sound = tensor([2, 3], 0, 12)
    yield "safetensors-empty", _plain(b"")
    yield "safetensors-length-2-63", _plain(safetensors(b"{}", length=1 << 63))
    yield "safetensors-length-1-gib", _sparse(struct.pack("<Q", 1 << 30) + b"{", 1 << 31)
    yield "safetensors-head-90-mib", _sparse(struct.pack("<Q", 90_000_000) + b'{"a":', 1 << 28)
    yield "safetensors-not-json", _plain(safetensors(b"{]"))
    yield "safetensors-spaces-first", _plain(safetensors(b"   {}"))
    yield "safetensors-a-list", _plain(safetensors([]))
    yield "safetensors-deep", _plain(safetensors(b'{"a":' + b"[" * 100_000))
    yield "safetensors-deep-objects", _plain(safetensors(b'{"a":' * 100_000))
    yield "safetensors-long-number", _plain(safetensors(b'{"a":' + b"9" * 5_000_000 + b"}"))
    yield "safetensors-twice", _plain(safetensors(b'{"a":%s,"a":%s}' % ((json.dumps(sound).encode(),) * 2), 12))
    yield "safetensors-a-million-lists", _repeated(struct.pack("<Q", 30_000_008) + b'{"a":[', b"[],", 10_000_000, b"0]")
    yield "safetensors-past-the-end", _plain(safetensors({"w": tensor([1 << 40], 0, 1 << 41)}, 12))
    yield "safetensors-negative", _plain(safetensors({"w": tensor([2, 3], -12, 0)}, 12))
    yield "safetensors-backwards", _plain(safetensors({"w": tensor([0], 12, 0)}, 12))
    yield "safetensors-other-size", _plain(safetensors({"w": tensor([2, 4], 0, 12)}, 12))
    yield "safetensors-fraction", _plain(safetensors({"w": tensor([2.0, 3], 0, 12)}, 12))
    yield "safetensors-shape-overflows", _plain(safetensors({"w": tensor([1 << 63] * 16, 0, 12)}, 12))
    yield "safetensors-rank-10000", _plain(safetensors({"w": tensor([1] * 10_000, 0, 2)}, 2))
    yield "safetensors-overlap", _plain(safetensors({"a": sound, "b": tensor([2, 3], 6, 18)}, 18))
    yield "safetensors-gap", _plain(safetensors({"a": sound, "b": tensor([2, 3], 24, 36)}, 36))
    yield "safetensors-trailing", _plain(safetensors({"a": sound}, 4096))
    yield "safetensors-no-shape", _plain(safetensors({"a": {"dtype": "F16", "data_offsets": [0, 12]}}, 12))
    yield "safetensors-odd-metadata", _plain(safetensors({"__metadata__": [1], "a": sound}, 12))


def _onnx() -> Some:
    yield "onnx-empty", _plain(b"")
    yield "onnx-text", _plain(b"onnx, or so it says")
    yield "onnx-no-graph", _plain(field(1, 9) + field(2, "nobody"))
    yield "onnx-two-graphs", _plain(sound_onnx() + field(7, b""))
    yield "onnx-graph-past-the-end", _plain(field(1, 9) + varint(7 << 3 | 2) + varint(1 << 40) + PAD)
    yield "onnx-length-2-64", _plain(field(1, 9) + varint(7 << 3 | 2) + b"\xff" * 9 + b"\x01" + PAD)
    yield "onnx-endless-number", _plain(b"\x08" + b"\xff" * 1000)
    yield "onnx-field-0", _plain(b"\x00" * 64)
    yield "onnx-old-groups", _plain(field(1, 9) + b"\x3b" * 10_000)
    yield "onnx-cut", _plain(sound_onnx()[:-20])
    yield "onnx-weight-past-its-graph", _plain(field(1, 9) + field(7, varint(5 << 3 | 2) + varint(1 << 20)) + PAD)
    yield "onnx-weight-other-size", _plain(onnx(onnx_weight("w", (2, 3), 1, 20)))
    yield "onnx-weight-2-60", _plain(onnx(onnx_weight("w", (1 << 60,), 1, None)))
    yield "onnx-weight-overflows", _plain(onnx(onnx_weight("w", ((1 << 62),) * 32, 1, 8)))
    yield "onnx-rank-10000", _plain(onnx(onnx_weight("w", (1,) * 10_000, 1, 4)))
    yield "onnx-rank-packed", _plain(onnx(field(5, field(1, b"\x01" * 100_000) + field(2, 1))))
    outside = {"location": "../../../etc/shadow", "offset": "0", "length": "4"}
    yield "onnx-data-elsewhere", _plain(onnx(onnx_weight("w", (1,), 1, None, outside)))
    yield "onnx-data-absolute", _plain(onnx(onnx_weight("w", (1,), 1, None, outside | {"location": "/etc/shadow"})))
    yield "onnx-data-too-short", _plain(onnx(onnx_weight("w", (1 << 20,), 1, None, {"location": "data", "length": "4"})))
    yield "onnx-data-missing", _plain(onnx(onnx_weight("w", (1,), 1, None, {"location": "data"})))
    yield "onnx-data-offset-words", _plain(onnx(onnx_weight("w", (1,), 1, None, {"location": "data", "offset": "many"})))
    yield "onnx-long-name", _plain(onnx(onnx_weight("w" * 100_000, (1,), 1, 4)))
    yield "onnx-a-million-nodes", _repeated(field(1, 9) + varint(7 << 3 | 2) + varint(12_000_000), field(1, field(4, "a" * 8)), 1_000_000)
    yield "onnx-a-million-fields", _repeated(b"", field(99, 1), 4_000_000)
    deep = b""
    for _ in range(2_000):
        deep = field(2, field(1, deep))
    yield "onnx-deep-shape", _plain(onnx(field(11, field(1, "x") + deep), field(5, field(1, 1) + field(2, 77))) + b"\xff")


CORPUS: dict[str, Callable[[], Some]] = {"gguf": _ggufs, "safetensors": _safetensors, "onnx": _onnx}
