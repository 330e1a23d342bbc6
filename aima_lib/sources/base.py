"""What a source is asked, and what it answers: data, no effects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from aima_lib.errors import Unavailable
from aima_lib.infra.web import Web

Renew = Callable[[], Awaitable[Mapping[str, str]]]
# What hubs call tasks, and what AIMA calls a model that does one.
TASKS = {
    "text-generation": "llm",
    "image-text-to-text": "vlm",
    "visual-question-answering": "vlm",
    "automatic-speech-recognition": "asr",
    "auto-speech-recognition": "asr",
    "text-to-speech": "tts",
    "feature-extraction": "embedding",
    "sentence-similarity": "embedding",
    "sentence-embedding": "embedding",
    "text-to-image": "diffusion",
    "text-to-image-synthesis": "diffusion",
    "text-to-video": "video_gen",
    "text-to-video-synthesis": "video_gen",
    "object-detection": "detection",
    "image-object-detection": "detection",
    "text-ranking": "rerank",
}
FORMATS = ("gguf", "safetensors", "onnx")


@dataclass(frozen=True, slots=True)
class Request:
    """A pull as the caller asked for it."""

    repo: str
    revision: str | None = None
    file: str | None = None
    quantization: str | None = None
    mirror: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One download. With `member`, a zip of which that one file is wanted. `renew` makes new headers when the old ones have run out."""

    url: str
    size: int | None = None
    sha256: str | None = None
    member: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    renew: Renew | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Artefact:
    """One file of a model: its parts in order, one after the other. `git_oid`: its digest as git reckons it, where that is all there is."""

    name: str
    parts: tuple[Part, ...]
    sha256: str | None = None
    size: int | None = None
    git_oid: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the one part is the file."""
        return len(self.parts) == 1 and self.parts[0].member is None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a download needs to know. `defaults`: what the publisher set for the model, as types/model.json has it."""

    name: str
    format: str
    revision: str | None
    artefacts: tuple[Artefact, ...]
    license: str | None = None
    quantization: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def key(self) -> str:
        """The same for plans that end in the same bytes, whoever asks and whatever mirror serves them."""
        said = [[a.name, a.sha256, a.size, [[p.sha256 or p.url, p.member] for p in a.parts]] for a in self.artefacts]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]

    @property
    def size(self) -> int | None:
        """Bytes the weights will take, as far as the source says; for zips, the size of the zips."""
        sizes = [a.size if a.size is not None else total([p.size for p in a.parts]) for a in self.artefacts]
        return total(sizes)


@dataclass(frozen=True, slots=True)
class Hit:
    """A model that a search found. What a source does not tell is None."""

    repo: str
    source: str
    type: str | None = None
    format: str | None = None
    downloads: int | None = None
    license: str | None = None
    updated_at: str | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """A search as the caller asked for it."""

    words: str
    type: str | None = None
    format: str | None = None
    limit: int = 10


Config = Mapping[str, str | None]
Resolve = Callable[[Request, Config, Web], Awaitable[Plan]]
Search = Callable[[Query, Config, Web], Awaitable[list[Hit]]]


def sized(value: object) -> int | None:
    """A size as a source tells it, or None when it is no size."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53 else None


def total(sizes: list[int | None]) -> int | None:
    """The sum, or None when one of them is unknown."""
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def matches(name: str, pattern: str) -> bool:
    """Whether a path fits a shell pattern, or its last part does when the pattern names no folder."""
    return fnmatchcase(name, pattern) or ("/" not in pattern and fnmatchcase(PurePosixPath(name).name, pattern))


def safe_name(name: str) -> str:
    """`name`, when it stays inside a folder.

    Raises:
        Unavailable: it would not: whoever serves it is broken or hostile.
    """
    parts = PurePosixPath(name).parts
    if not parts or len(name) > 400 or name.startswith("/") or "\\" in name or "\0" in name or any(part in ("..", ".") for part in parts):
        raise Unavailable(f"the source names a file {name!r}, which would leave the model's folder", hint="use another mirror")
    return name
