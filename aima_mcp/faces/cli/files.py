"""Files on the command line: `--audio @speech.wav` in, `--out speech.wav` out. Which fields are files, schemas mark (`contentEncoding`)."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aima_lib.errors import InvalidArgument

if TYPE_CHECKING:
    from aima_lib.door import Door

INLINE_BYTES = 2 << 20  # a larger one is named to the host, which reads it beneath its roots
STDIO = "-"
Place = tuple[str, str | None]  # a field of the output, or of each item of a list there


def is_file(spec: Mapping[str, Any]) -> bool:
    """Whether a value of this schema is the bytes of a file."""
    return spec.get("contentEncoding") == "base64"


def attached(text: str, what: str) -> str:
    """`@path` as the unit takes it: base64, or for a large file its path."""
    path = text[1:]
    try:
        if path != STDIO and Path(path).stat().st_size > INLINE_BYTES:
            return f"file:{Path(path).absolute()}"
        body = sys.stdin.buffer.read() if path == STDIO else Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{what}: cannot read {path}: {error.strerror}", hint="@- reads standard input") from error
    if not body:
        raise InvalidArgument(f"{what}: {path} is empty")
    return base64.b64encode(body).decode()


def places(schema: Mapping[str, Any]) -> list[Place]:
    """Where an output holds files."""
    return list(_places(schema))


def _places(schema: Mapping[str, Any]) -> Iterator[Place]:
    for name, spec in schema["properties"].items():
        if is_file(spec):
            yield name, None
        inner = spec.get("items", {}).get("properties", {})
        yield from ((name, key) for key, part in inner.items() if is_file(part))


async def saved(door: Door, schema: Mapping[str, Any], output: Mapping[str, Any], target: str) -> Mapping[str, Any]:
    """The output with its files written: to `target`, and where there are several, to target-2, target-3 …"""
    found, count = dict(output), 0
    for field, key in places(schema):
        items = found[field] if key else [found]
        kept = []
        for item in items:
            name = key or field
            count += 1
            path = target if count == 1 or target == STDIO else str(_numbered(Path(target), count))
            _write(path, await _bytes(door, str(item[name])))
            kept.append({**item, name: path})
        found = {**found, field: kept} if key else kept[0]
    return found


def told(schema: Mapping[str, Any], output: Mapping[str, Any]) -> Mapping[str, Any]:
    """The output as a person reads it: what is base64 is said to be there, and how to have it."""
    found = dict(output)
    for field, key in places(schema):
        if key:
            found[field] = [{**item, key: _words(item[key])} for item in found[field]]
        else:
            found[field] = _words(found[field])
    return found


def _words(value: str) -> str:
    return value if value.startswith("aima://") else f"{len(value) * 3 // 4} bytes: --out FILE writes them, --json prints them"


async def _bytes(door: Door, value: str) -> bytes:
    if value.startswith("aima://"):
        value = str((await door.read(value))["content"]["content"])
    return base64.b64decode(value)


def _write(path: str, data: bytes) -> None:
    try:
        if path == STDIO:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            Path(path).write_bytes(data)
    except OSError as error:
        raise InvalidArgument(f"--out: cannot write {path}: {error.strerror}") from error


def _numbered(path: Path, count: int) -> Path:
    return path.with_name(f"{path.stem}-{count}{path.suffix}")
