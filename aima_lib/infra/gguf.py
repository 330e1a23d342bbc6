"""What a GGUF file says of itself, read without trusting it.

Every count, length and offset is compared with the size of the file before anything is allocated or skipped, so a file of 49 bytes
that claims an array of 2^40 is refused at once. Source of the layout: ggml's docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from aima_lib.errors import InvalidArgument

LONGEST_KEY, LONGEST_KEPT, MOST_KEPT, MOST_ELEMENTS, MOST_DIMENSIONS, DEEPEST = 65_535, 1 << 20, 8 << 20, 1 << 24, 4, 2
MOST_KEYS, MOST_TENSORS, MOST_STRINGS, MOST_ARRAYS, WINDOW = 1 << 14, 1 << 17, 1 << 21, 1 << 16, 1 << 18
BLOCK, EXPERT = re.compile(r"(?:blk|v\.blk|a\.blk)\.\d+\."), "_exps."
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY, LENGTH = 8, 9, struct.Struct("<Q")
# Tensor types: name, elements a block, bytes a block.
TENSOR_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
FILE_TYPES: Mapping[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L",
    14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M",
    32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip


@dataclass(slots=True)
class Head:
    """Metadata and tensor list of one GGUF file. Long arrays are counted, not kept."""

    version: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    parameters: int = 0
    tensors: int = 0
    bytes_by_type: dict[str, int] = field(default_factory=dict)
    block_bytes: int = 0  # of the layers; the rest are embeddings and the output
    embedding: tuple[str, int] | None = None  # type and bytes of the words' vectors
    expert_bytes: int = 0
    expert_parameters: int = 0
    complete: bool = False

    def of_architecture(self, key: str) -> Any:
        """`block_count` means `llama.block_count` in a llama, None when the file does not say."""
        return self.metadata.get(f"{self.metadata.get('general.architecture')}.{key}")


def read_head(path: Path, name: str | None = None) -> Head:
    """Read and check a file's head: metadata, and that every tensor lies inside the file. `name` is what errors call it.

    Raises:
        InvalidArgument: it is no GGUF, is cut short, or claims what cannot be; the message names the offset.
    """
    with path.open("rb", buffering=1 << 20) as stream:
        return parse(stream, path.stat().st_size, name or path.name)


def peek_head(stream: BinaryIO, have: int, size: int, name: str) -> Head:
    """Read as much as the first `have` bytes of a file of `size` bytes tell; `complete` says whether that was all."""
    cursor = _Cursor(stream, size, name, have)
    head = Head()
    try:
        _read(cursor, head)
    except _Ended:
        return head
    return head


def parse(stream: BinaryIO, size: int, name: str) -> Head:
    """`read_head` for an open stream."""
    head = Head()
    _read(_Cursor(stream, size, name, size), head)
    return head


class _Ended(Exception):
    """The bytes at hand end here, though the file goes on."""


class _Cursor:
    """Reads forward, and refuses to pass the end."""

    def __init__(self, stream: BinaryIO, size: int, name: str, have: int) -> None:
        self.stream, self.size, self.name, self.have, self.at, self.kept = stream, size, name, have, 0, 0

    def broken(self, what: str) -> InvalidArgument:
        return InvalidArgument(
            f"{self.name} is not a usable GGUF: at byte {self.at}: {what}", hint="download it again, or convert it again"
        )

    def _claim(self, length: int, what: str) -> None:
        if length > self.size - self.at:
            raise self.broken(f"{what} needs {length} bytes, the file ends {self.size - self.at} bytes later")
        if length > self.have - self.at:
            raise _Ended

    def take(self, length: int, what: str) -> bytes:
        self._claim(length, what)
        data = self.stream.read(length)
        if len(data) != length:
            raise self.broken(f"{what} could not be read whole")
        self.at += length
        return data

    def skip(self, length: int, what: str) -> None:
        if length < 65_536:
            self.take(length, what)
            return
        self._claim(length, what)
        self.stream.seek(length, 1)
        self.at += length

    def skip_strings(self, length: int, what: str) -> None:
        """Pass over strings, whose lengths are read from a window that moves: a vocabulary has hundreds of thousands."""
        window, at, end = b"", 0, min(self.size, self.have)
        for _ in range(length):
            if at + 8 > len(window):
                self.at, at = self.at + at, 0
                self.stream.seek(self.at)
                window = self.stream.read(min(WINDOW, max(0, end - self.at)))
                self._claim(8, f"the length of {what}")
            (size,) = LENGTH.unpack_from(window, at)
            at += 8 + size
            if self.at + at > end:
                self.at += at - size
                self._claim(size, what)
        self.at += at
        self.stream.seek(self.at)

    def number(self, form: str, what: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def count(self, smallest: int, what: str, most: int = MOST_ELEMENTS) -> int:
        """A count of things that take at least `smallest` bytes each."""
        number: int = self.number("<Q", what)
        if number > most or number * smallest > self.size - self.at:
            raise self.broken(f"{what} is {number}, more than a file of {self.size} bytes can hold")
        return number

    def text(self, what: str, longest: int = LONGEST_KEPT) -> str:
        length = self.count(1, f"length of {what}", most=1 << 62)
        if length > longest:
            raise self.broken(f"{what} is {length} bytes long, at most {longest} are read")
        self.kept += length
        if self.kept > MOST_KEPT:
            raise self.broken(f"its text is longer than {MOST_KEPT} bytes")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.broken(f"{what} is not UTF-8") from error


def _read(cursor: _Cursor, head: Head) -> None:
    if cursor.take(4, "the magic") != b"GGUF":
        cursor.at = 0
        raise cursor.broken("it does not begin with b'GGUF'")  # with what instead is not told: it may be anybody's file
    head.version = cursor.number("<I", "the version")
    if head.version not in (2, 3):
        cursor.at = 4
        raise cursor.broken(f"version {head.version} is not 2 or 3" + (" (a big-endian file)" if head.version >> 16 else ""))
    tensors = cursor.count(32, "the number of tensors", MOST_TENSORS)
    pairs = cursor.count(13, "the number of metadata keys", MOST_KEYS)
    for _ in range(pairs):
        key = cursor.text("a metadata key", LONGEST_KEY)
        if key in head.metadata or key in head.lengths:
            raise cursor.broken(f"the metadata key {key} stands there twice")
        _read_value(cursor, head, key, cursor.number("<I", f"the type of {key}"))
    _read_tensors(cursor, head, tensors)
    head.complete = True


def _read_value(cursor: _Cursor, head: Head, key: str, kind: int) -> None:
    if kind == ARRAY:
        _read_array(cursor, head, key)
    elif kind == STRING:
        head.metadata[key] = cursor.text(key)
    elif kind in SCALARS:
        head.metadata[key] = cursor.number(SCALARS[kind], key)
    else:
        raise cursor.broken(f"{key} has the unknown type {kind}")


def _read_array(cursor: _Cursor, head: Head, key: str, depth: int = 1) -> None:
    kind = cursor.number("<I", f"the element type of {key}")
    if kind == ARRAY:
        if depth == DEEPEST:
            raise cursor.broken(f"{key} nests arrays more than {DEEPEST} deep")
        for _ in range(cursor.count(12, f"the length of {key}", MOST_ARRAYS)):
            _read_array(cursor, head, key, depth + 1)
        return
    if kind != STRING and kind not in SCALARS:
        raise cursor.broken(f"{key} has elements of the unknown type {kind}")
    width = 8 if kind == STRING else struct.calcsize(SCALARS[kind])
    head.lengths[key] = length = cursor.count(width, f"the length of {key}")
    if kind == STRING:
        if length > MOST_STRINGS:
            raise cursor.broken(f"{key} has {length} strings, at most {MOST_STRINGS} are read")
        cursor.skip_strings(length, f"an element of {key}")
    elif length <= 1024:
        head.metadata[key] = [value for (value,) in struct.iter_unpack(SCALARS[kind], cursor.take(length * width, key))]
    else:
        cursor.skip(length * width, key)


def _read_tensors(cursor: _Cursor, head: Head, count: int) -> None:
    infos = list(_tensor_infos(cursor, count))
    alignment = head.metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise cursor.broken(f"general.alignment is {alignment!r}")
    start, reached = -(-cursor.at // alignment) * alignment, 0
    for name, elements, kind, offset in sorted(infos, key=lambda info: info[3]):
        label, block, width = TENSOR_TYPES.get(kind, ("unknown", 0, 0))
        # of a type that is not known here, all that is sure is that no weight takes less than a bit
        length = -(-elements // block) * width if block else elements // 8
        if offset % alignment or offset < reached:
            raise cursor.broken(f"tensor {name} begins at {offset} of the data, inside another or off the alignment of {alignment}")
        if start + offset + length > cursor.size:
            raise cursor.broken(f"tensor {name} ends at byte {start + offset + length}, the file at {cursor.size}: it was cut short")
        reached = offset + length
        _count(head, name, elements, label, length)


def _count(head: Head, name: str, elements: int, label: str, length: int) -> None:
    head.parameters += elements
    head.tensors += 1
    head.bytes_by_type[label] = head.bytes_by_type.get(label, 0) + length
    if BLOCK.match(name):
        head.block_bytes += length
    if name == "token_embd.weight":
        head.embedding = label, length
    if EXPERT in name:
        head.expert_bytes += length
        head.expert_parameters += elements


def _tensor_infos(cursor: _Cursor, count: int) -> Iterator[tuple[str, int, int, int]]:
    seen: set[str] = set()
    for _ in range(count):
        name = cursor.text("a tensor's name", LONGEST_KEY)
        if name in seen:
            raise cursor.broken(f"tensor {name} stands there twice")
        seen.add(name)
        dimensions = cursor.number("<I", f"the rank of {name}")
        if dimensions > MOST_DIMENSIONS:
            raise cursor.broken(f"tensor {name} has {dimensions} dimensions, at most {MOST_DIMENSIONS} are possible")
        elements = 1
        for _ in range(dimensions):
            elements *= cursor.number("<Q", f"a dimension of {name}")
        yield name, elements, cursor.number("<I", f"the type of {name}"), cursor.number("<Q", f"the offset of {name}")
