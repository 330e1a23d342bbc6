"""The memory a process here can really have: the machine's, or less where a control group says so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aima_lib.infra.hal.reading import number, text

ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class Memory:
    """`available_bytes` is what can be had without swapping; `limited_by` names the control group that sets `total_bytes`, if one does."""

    total_bytes: int
    available_bytes: int
    physical_bytes: int
    limited_by: str | None = None

    @property
    def used_bytes(self) -> int:
        """What cannot be had."""
        return self.total_bytes - self.available_bytes

    def described(self, kind: str) -> dict[str, Any]:
        """A device's `memory` field, when this is its memory."""
        return {"total_bytes": self.total_bytes, "kind": kind, "physical_bytes": self.physical_bytes, "limited_by": self.limited_by}


def system_memory(root: Path = ROOT) -> Memory:
    """Read the machine's memory now. Total minus used is what can be had: page cache that can be dropped counts as free."""
    import psutil

    machine = psutil.virtual_memory()
    total, available, limited_by = machine.total, machine.available, None
    for group, limit, used in _limits(root):
        if limit < total:
            total, limited_by = limit, f"control group {group}"
        if limit < machine.total:
            available = min(available, max(0, limit - used))
    return Memory(total, min(available, total), machine.total, limited_by)


def _limits(root: Path) -> Iterator[tuple[str, int, int]]:
    """(control group, its limit, what it cannot give back) for this process's group and every group above it."""
    groups = text(root / "proc/self/cgroup")
    for line in (groups or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            base, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        elif not controllers:
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        else:
            continue
        yield from _upwards(base, path, names)


def _upwards(base: Path, path: str, names: tuple[str, str, str]) -> Iterator[tuple[str, int, int]]:
    # In a container the path may be the host's and missing here, while the group's own files stand at the base: so try every level.
    parts = [part for part in path.split("/") if part and part != ".."]
    for depth in range(len(parts), -1, -1):
        folder = base.joinpath(*parts[:depth])
        limit, used = number(folder / names[0]), number(folder / names[1])
        if limit is not None and used is not None:
            yield "/" + "/".join(parts[:depth]), limit, max(0, used - _cache(folder, names[2]))


def _cache(folder: Path, key: str) -> int:
    for line in (text(folder / "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdigit():
            return int(value)
    return 0
