"""What a source is asked, and what it answers: data, no effects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from aima_lib.errors import Unavailable
from aima_lib.infra.web import Web


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
    """One download. With `member`, a zip of which that one file is wanted."""

    url: str
    size: int | None = None
    sha256: str | None = None
    member: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Artefact:
    """One file of a model: its parts in order, one after the other."""

    name: str
    parts: tuple[Part, ...]
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a download needs to know."""

    name: str
    format: str
    revision: str | None
    artefacts: tuple[Artefact, ...]
    license: str | None = None
    quantization: str | None = None

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


Resolve = Callable[[Request, Mapping[str, str | None], Web], Awaitable[Plan]]


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
    if not parts or name.startswith("/") or "\\" in name or "\0" in name or any(part in ("..", ".") for part in parts):
        raise Unavailable(f"the source names a file {name!r}, which would leave the model's folder", hint="use another mirror")
    return name
