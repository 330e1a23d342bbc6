"""What a call would change, as far as it can be known before it is made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Thing = tuple[str, str]  # kind and id: ("model", "tiny")
GIB, MIB = 1 << 30, 1 << 20
SIZES = (("download_bytes", "fetches"), ("freed_bytes", "frees"), ("memory_bytes", "takes of memory"))


@dataclass(frozen=True, slots=True)
class Change:
    """Things by kind and id. Of the figures, 0 is none and None is unknown.

    download_bytes: fetched from outside. freed_bytes: given back, of disk where something is deleted, of memory where something is
    stopped. memory_bytes: taken by what is started. notes: what else should be known before. saw: what else the answer hangs on; it is
    compared, and not shown.
    """

    creates: tuple[Thing, ...] = ()
    deletes: tuple[Thing, ...] = ()
    starts: tuple[Thing, ...] = ()
    stops: tuple[Thing, ...] = ()
    used_by: tuple[Thing, ...] = ()
    download_bytes: int | None = 0
    freed_bytes: int | None = 0
    memory_bytes: int | None = 0
    notes: tuple[str, ...] = ()
    saw: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The wire form, types/change.json."""
        lists = {name: [{"kind": kind, "id": id} for kind, id in things] for name, things in self._things().items()}
        return lists | {name: getattr(self, name) for name, _ in SIZES} | {"notes": [*self.notes]}

    def fingerprint(self) -> str:
        """The same for the same change of the same world; sizes may move a little and are left out, as notes are."""
        told = {**self._things(), "saw": self.saw}
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=sorted).encode()).hexdigest()

    def words(self) -> str:
        """One line for a person."""
        said = [f"{verb} {', '.join(f'{kind} {id}' for kind, id in things)}" for verb, things in self._things().items() if things]
        said += [f"{verb} {_size(size)}" for name, verb in SIZES if (size := getattr(self, name))]
        said += self.notes
        return "; ".join(said).replace("used_by", "in use by") or "changes nothing that lasts"

    def _things(self) -> dict[str, tuple[Thing, ...]]:
        return {name: getattr(self, name) for name in ("creates", "deletes", "starts", "stops", "used_by")}


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"
