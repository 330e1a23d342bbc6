"""What an engine's processes take of memory, measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Footprint:
    """`bytes` now, `peak_bytes` the most so far; `source` says how: rss, or nvml for a GPU's own memory."""

    bytes: int
    peak_bytes: int
    source: str
    rss_bytes: int | None = None
    cgroup_bytes: int | None = None


def measure(pids: Sequence[int]) -> Footprint | None:
    """A process tree, now; None when nothing of it is left. Blocking: the kernel walks every page.

    What its processes share is counted once, and whole: weights that another engine has mapped too are this one's when that one goes.
    """
    found = [one for pid in pids if (one := _process(pid)) is not None]
    if not found:
        return None
    now = sum(rss - shared for rss, shared, _ in found) + max(shared for _, shared, _ in found)
    grown = sum(peak - rss for rss, _, peak in found)
    return Footprint(now, now + grown, "rss", sum(rss for rss, _, _ in found), _cgroup_peak(pids[0]))


def resident_peak(pids: Sequence[int]) -> int:
    """The most that was ever resident of these processes, each by itself. Cheap, where `measure` walks every page of them."""
    return sum(_field(Path(f"/proc/{pid}/status"), "VmHWM") or 0 for pid in pids)


def _process(pid: int) -> tuple[int, int, int] | None:
    """Resident bytes, how many of them others have too, and the most that ever was resident."""
    try:
        rss = int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None
    rollup = Path(f"/proc/{pid}/smaps_rollup")
    shared = sum(_field(rollup, name) or 0 for name in ("Shared_Clean", "Shared_Dirty"))
    return rss, min(shared, rss), max(rss, _field(Path(f"/proc/{pid}/status"), "VmHWM") or 0)


def _field(path: Path, name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _cgroup_peak(pid: int) -> int | None:
    """The peak of the control group that a process has for itself; None where it shares ours."""
    theirs, ours = _group(pid), _group("self")
    if theirs is None or theirs == ours:
        return None
    for path in (CGROUPS / theirs.lstrip("/") / "memory.peak", CGROUPS / "memory" / theirs.lstrip("/") / "memory.max_usage_in_bytes"):
        try:
            return int(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return None


def _group(pid: int | str) -> str | None:
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    rows = [line.split(":", 2) for line in lines]
    return next((row[2] for row in rows if len(row) == 3 and (row[1] == "" or "memory" in row[1].split(","))), None)
