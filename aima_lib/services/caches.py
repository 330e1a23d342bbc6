"""What models lie in a folder that others filled: Ollama's store, Hugging Face's cache, or folders of files as LM Studio keeps them.

Only names and manifests are read here; the weights are opened one model at a time, by whoever takes them. Blocking.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from aima_lib.errors import AimaError, InvalidArgument
from aima_lib.infra.roots import Opened, Roots
from aima_lib.names import slug
from aima_lib.sources import ollama
from aima_lib.sources.choose import SHARD, WITH_SAFETENSORS
from aima_lib.sources.registry import LARGEST_MANIFEST, LARGEST_TEXT, Layer, layers_of

DEEPEST, MOST_MODELS, MOST_ENTRIES = 4, 2000, 50_000
WEIGHTS = (".gguf", ".safetensors")


@dataclass(frozen=True, slots=True)
class Held:
    """One model of a cache: its files by the names they are to have, and what is known of it beside them."""

    stem: str
    path: str
    format: str
    files: Mapping[str, str]
    repo: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """What looked like a model and cannot be taken, and why."""

    path: str
    reason: str


def find(given: Opened) -> list[Held | Skipped] | None:
    """The models of a cache; None when the folder is none: one model, or nothing.

    Raises:
        InvalidArgument: it holds more than is read at once.
    """
    names = set(given.names())
    for inner in ("", "models", "hub"):
        if inner and inner not in names:
            continue
        base = given.path / inner
        there = names if not inner else _names(given.roots, base)
        if {"manifests", "blobs"} <= there:
            return _bounded(_ollama(given.roots, base))
        if any(name.startswith("models--") for name in there):
            return _bounded(_hub(given.roots, base, sorted(there)))
    if given.name.startswith("models--") and "snapshots" in names:
        return _bounded(_snapshots(given.roots, given.path))
    if any(name.lower().endswith(WEIGHTS) for name in names):
        return None
    return _bounded(_tree(given.roots, given.path)) or None


def _bounded(found: Iterator[Held | Skipped]) -> list[Held | Skipped]:
    listed: list[Held | Skipped] = []
    for each in found:
        listed.append(each)
        if len(listed) > MOST_MODELS:
            raise InvalidArgument(f"the folder holds more than {MOST_MODELS} models", hint="import its folders one by one")
    return listed


def _names(roots: Roots, path: Path) -> set[str]:
    """What a folder holds; nothing when it is none, or may not be read."""
    try:
        with roots.open(str(path)) as opened:
            return set(opened.names()) if opened.is_folder else set()
    except (AimaError, OSError):
        return set()


def _files(roots: Roots, top: Path, deepest: int = DEEPEST) -> Iterator[str]:
    """Files beneath a folder, by their names from there."""
    waiting, seen = [PurePosixPath()], 0
    while waiting:
        inside = waiting.pop()
        for name in sorted(_names(roots, top / inside)):
            seen += 1
            if seen > MOST_ENTRIES:
                raise InvalidArgument(f"{top} holds more than {MOST_ENTRIES} files", hint="import its folders one by one")
            path = inside / name
            if name.startswith("."):
                continue
            if "." in name and name.lower().endswith((*WITH_SAFETENSORS, *WEIGHTS)):
                yield str(path)
            elif len(path.parts) < deepest:
                waiting.append(path)


def _read(roots: Roots, path: Path, most: int) -> bytes:
    with roots.open(str(path)) as opened:
        if opened.is_folder or opened.size > most:
            raise InvalidArgument(f"{path} is no file of at most {most} bytes")
        return os.pread(opened.descriptor, most, 0)


# Ollama


def _ollama(roots: Roots, base: Path) -> Iterator[Held | Skipped]:
    for host in sorted(_names(roots, base / "manifests")):
        for owner in sorted(_names(roots, base / "manifests" / host)):
            for name in sorted(_names(roots, base / "manifests" / host / owner)):
                for tag in sorted(_names(roots, base / "manifests" / host / owner / name)):
                    path = base / "manifests" / host / owner / name / tag
                    try:
                        yield _of_manifest(roots, base, path, owner, name, tag)
                    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
                        yield Skipped(str(path), f"its manifest cannot be read: {error}")
                    except AimaError as error:
                        yield Skipped(str(path), str(error))


def _of_manifest(roots: Roots, base: Path, path: Path, owner: str, name: str, tag: str) -> Held | Skipped:
    layers, stem = layers_of(json.loads(_read(roots, path, LARGEST_MANIFEST))), slug(f"{name}-{tag}")
    pieces = ollama.pieces_of(stem, layers)
    if not pieces:
        return Skipped(str(path), "it has no layer with a GGUF")
    small = ollama.texts_of(layers)
    texts = {kind: _read(roots, _blob(base, layer), LARGEST_TEXT).decode(errors="replace") for kind, layer in small.items()}
    repo = f"{name}:{tag}" if owner == "library" else f"{owner}/{name}:{tag}"
    return Held(
        stem,
        str(path),
        "gguf",
        {each: str(_blob(base, layer)) for each, layer in pieces.items()},
        repo,
        {each: layer.sha256 for each, layer in pieces.items()},
        ollama.defaults_of(texts),
        ollama.license_of(texts),
    )


def _blob(base: Path, layer: Layer) -> Path:
    return base / "blobs" / f"sha256-{layer.sha256}"


# Hugging Face, and folders of files


def _hub(roots: Roots, base: Path, names: Sequence[str]) -> Iterator[Held | Skipped]:
    for name in names:
        if name.startswith("models--"):
            yield from _snapshots(roots, base / name)


def _snapshots(roots: Roots, folder: Path) -> Iterator[Held | Skipped]:
    revisions = _names(roots, folder / "snapshots")
    if not revisions:
        yield Skipped(str(folder), "nothing of it was downloaded")
        return
    try:
        main = _read(roots, folder / "refs" / "main", 200).decode(errors="replace").strip()
    except AimaError:
        main = ""
    revision = main if main in revisions else max(revisions)
    top = folder / "snapshots" / revision
    yield from _grouped(top, list(_files(roots, top)), folder.name.removeprefix("models--").replace("--", "/"))


def _tree(roots: Roots, top: Path) -> Iterator[Held | Skipped]:
    folders: dict[str, list[str]] = {}
    for name in _files(roots, top):
        path = PurePosixPath(name)
        folders.setdefault(str(path.parent), []).append(path.name)
    for folder, names in folders.items():
        if any(name.lower().endswith(WEIGHTS) for name in names):
            yield from _grouped(top / folder, names, folder)


def _grouped(top: Path, names: Sequence[str], repo: str) -> Iterator[Held | Skipped]:
    """One model for each set of GGUF shards, and one for all safetensors at the top with what belongs to them."""
    sets: dict[str, list[str]] = {}
    for name in names:
        if name.lower().endswith(".gguf") and not re.search(r"mmproj|imatrix", name, re.I):
            sets.setdefault(SHARD.sub("", name), []).append(name)
    flat = [name for name in names if "/" not in name and name.endswith(WITH_SAFETENSORS)]
    tensors = [name for name in flat if name.endswith(".safetensors")]
    for stem, shards in sorted(sets.items()):
        yield _set(top, PurePosixPath(stem).stem, "gguf", shards, shards, repo)
    if tensors:
        yield _set(top, repo.rpartition("/")[2], "safetensors", tensors, flat, repo)
    if not sets and not tensors:
        yield Skipped(str(top), "it holds neither GGUF nor safetensors")


def _set(top: Path, stem: str, format: str, weights: Sequence[str], names: Sequence[str], repo: str) -> Held | Skipped:
    numbered = [found for name in weights if (found := SHARD.search(name))]
    if numbered and len(numbered) != int(numbered[0][2]):
        return Skipped(str(top / weights[0]), f"only {len(numbered)} of its {int(numbered[0][2])} shards are there")
    path = top / weights[0] if format == "gguf" else top
    return Held(slug(stem), str(path), format, {PurePosixPath(name).name: str(top / name) for name in sorted(names)}, repo)
