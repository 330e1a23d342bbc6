"""What a model's files say about it, as the fields of its record. Blocking: read from a worker thread."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aima_lib.errors import InvalidArgument
from aima_lib.infra import geometry
from aima_lib.infra.apart import read_apart
from aima_lib.infra.facts import FACTS
from aima_lib.infra.gguf import Head
from aima_lib.infra.kinds import ABILITIES
from aima_lib.infra.roots import Absent, Opened

__all__ = ["CHECKED", "FACTS", "TYPES", "describe", "digest_of", "geometry_of", "unread", "weights_in"]
TYPES = ("llm", "vlm", "asr", "tts", "embedding", "diffusion", "video_gen", "detection", "rerank")
SUFFIXES = {
    ".gguf": "gguf",
    ".safetensors": "safetensors",
    ".onnx": "onnx",
    ".engine": "tensorrt",
    ".plan": "tensorrt",
    ".pt": "pytorch",
    ".pth": "pytorch",
    ".ckpt": "pytorch",
}
CHECKED = ("gguf", "safetensors", "onnx", "ctranslate2")  # formats whose files are looked into
BESIDE = (".json", ".jinja", ".txt", ".model")  # what an engine reads beside the weights
# What may be a Python pickle by its name.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SHARD, MOST_FILES = re.compile(r"-\d{5}-of-(\d{5})$"), 400
# A file, and the name it goes by: while it is downloaded it lies under another.
Named = tuple[Path, str]


def describe(format: str, files: Sequence[Named]) -> dict[str, Any]:
    """The fields of FACTS, None where unknown, read in a child process with little memory and little time.

    Raises:
        InvalidArgument: a file is broken; the message names it and the offset.
    """
    return read_apart(format, files)


def unread(type: str, license: str | None = None) -> dict[str, Any]:
    """The fields of FACTS of a model that has no files to read: it comes with its engine, or is elsewhere."""
    empty = {"capabilities": [*ABILITIES.get(type, ())], "modalities": [], "warnings": [], "geometry": {}}
    return {**dict.fromkeys(FACTS), **empty, "type": type, "license": license}


def geometry_of(head: Head) -> dict[str, Any]:
    """The numbers that a memory estimate needs, None where the head of a GGUF does not say."""
    return geometry.of_gguf(head)


def digest_of(files: Sequence[tuple[str, str]]) -> str:
    """One digest for a model: of its file, or of the list of its files' names and digests."""
    if len(files) == 1:
        return f"sha256:{files[0][1]}"
    listed = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(files))
    return f"sha256:{hashlib.sha256(listed.encode()).hexdigest()}"


def weights_in(given: Opened, keep: Callable[[Opened], Opened]) -> tuple[str, list[Opened]]:
    """Format and files of the one model at `given`: a file, all shards beside it, or a folder. What is opened is given to `keep`.

    Raises:
        InvalidArgument: there is none, more than one, or nothing AIMA can read.
    """
    if given.is_folder:
        return _folder(given, given.within, keep)
    kind = SUFFIXES.get(given.path.suffix.lower())
    if kind != "gguf":
        kind = "gguf" if os.pread(given.descriptor, 4, 0) == b"GGUF" else kind
    if kind == "safetensors":
        return _folder(keep(given.roots.open(str(given.path.parent))), given.beside, keep)
    if kind == "gguf":
        return kind, _shards(given, keep)
    if kind == "onnx":
        stem = given.path.stem
        names = (f"{given.name}_data", f"{given.name}.data", f"{given.name}.json", f"{stem}.json", f"{stem}.txt")
        return kind, [given, *(opened for name in names if (opened := _file(given.beside, name, keep)))]
    return kind or "unknown", [given]


def _shards(first: Opened, keep: Callable[[Opened], Opened]) -> list[Opened]:
    found = SHARD.search(first.path.stem)
    if found is None:
        return [first]
    count = int(found[1])
    if count > MOST_FILES:
        raise InvalidArgument(f"{first.name} is one of {count} shards, at most {MOST_FILES} are read")
    names = [f"{first.path.stem[: found.start()]}-{number:05d}-of-{found[1]}{first.path.suffix}" for number in range(1, count + 1)]
    shards = {name: first if name == first.name else _file(first.beside, name, keep) for name in names}
    if missing := [name for name, shard in shards.items() if shard is None]:
        raise InvalidArgument(
            f"{first.name} is one of {count} shards, {', '.join(missing[:5])} not beside it", hint="put all shards into one folder"
        )
    return [shard for shard in shards.values() if shard is not None]


def _file(reach: Callable[[str], Opened], name: str, keep: Callable[[Opened], Opened]) -> Opened | None:
    """A file of that name, kept open; a folder, a pipe, or nothing is None."""
    try:
        opened = keep(reach(name))
    except Absent:
        return None
    return None if opened.is_folder else opened


def _folder(folder: Opened, reach: Callable[[str], Opened], keep: Callable[[Opened], Opened]) -> tuple[str, list[Opened]]:
    names = [name for name in folder.names() if not name.startswith(".")]
    tensors = [name for name in names if name.endswith(".safetensors")]
    wanted = tensors + [name for name in names if tensors and name.endswith(BESIDE)]
    if len(wanted) > MOST_FILES:
        raise InvalidArgument(f"{folder.path} holds {len(wanted)} files of a model, at most {MOST_FILES} are read")
    files = [opened for name in wanted if (opened := _file(reach, name, keep))]
    if any(file.name.endswith(".safetensors") for file in files):
        return "safetensors", files
    if "model.bin" in names and "config.json" in names:
        others = [name for name in names if name.endswith(BESIDE)]
        return "ctranslate2", [opened for name in ("model.bin", *others) if (opened := _file(reach, name, keep))]
    if onnx := [name for name in names if name.endswith(".onnx")]:
        return "onnx", _onnx(folder, onnx, names, reach, keep)
    ggufs = [name for name in names if name.lower().endswith(".gguf") and "mmproj" not in name.lower()]
    first = next((opened for name in ggufs if (opened := _file(reach, name, keep))), None)
    if first is None:
        raise _nothing(folder, names)
    shards = _shards(first, keep)
    if len(ggufs) > len(shards):
        raise InvalidArgument(f"{folder.path} holds {len(ggufs)} models: {', '.join(ggufs[:5])}", hint="give the path of one")
    projectors = [name for name in names if name.lower().endswith(".gguf") and "mmproj" in name.lower()]
    return "gguf", shards + [opened for name in projectors[:1] if (opened := _file(reach, name, keep))]


def _onnx(
    folder: Opened, onnx: list[str], names: list[str], reach: Callable[[str], Opened], keep: Callable[[Opened], Opened]
) -> list[Opened]:
    """The one network of a folder, and what its engines read beside it: settings, tokenizers, labels, voices, weights of their own file."""
    first = "model.onnx" if "model.onnx" in onnx else onnx[0]
    if len(onnx) > 1 and first != "model.onnx":
        raise InvalidArgument(f"{folder.path} holds {len(onnx)} models: {', '.join(onnx[:5])}", hint="give the path of one")
    others = [name for name in names if name.endswith((*BESIDE, ".npz", ".bin", ".onnx_data", ".onnx.data"))]
    return [opened for name in (first, *others[:MOST_FILES]) if (opened := _file(reach, name, keep))]


def _nothing(folder: Opened, names: Sequence[str]) -> InvalidArgument:
    message = f"{folder.path} holds neither GGUF nor safetensors"
    if pickles := [name for name in names if name.endswith(PICKLES)]:
        message += f"; {', '.join(pickles[:3])} may be a Python pickle, which runs whatever code it carries: AIMA never loads one"
        return InvalidArgument(message, hint="take the same model as safetensors or GGUF")
    return InvalidArgument(message, hint="give the path of the weights")
