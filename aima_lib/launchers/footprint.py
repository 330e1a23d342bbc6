"""What an engine's processes take of memory, measured: their own pages and their share of those they share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Footprint:
    """`bytes` now, `peak_bytes` the most so far; `source` says how: pss, rss, or nvml for a GPU's own memory."""

    bytes: int
    peak_bytes: int
    source: str
    rss_bytes: int | None = None
    cgroup_bytes: int | None = None


def measure(pids: Sequence[int]) -> Footprint | None:
    """A process tree, now; None when nothing of it is left. Blocking: a millisecond or so for each process."""
    found = [one for pid in pids if (one := _process(pid)) is not None]
    if not found:
        return None
    now, rss = sum(one.bytes for one in found), sum(one.rss_bytes or 0 for one in found)
    peak = sum(one.peak_bytes for one in found)
    source = "pss" if all(one.source == "pss" for one in found) else "rss"
    return Footprint(now, max(now, peak), source, rss, _cgroup_peak(pids[0]))


def _process(pid: int) -> Footprint | None:
    try:
        rss = int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None
    peak = _field(Path(f"/proc/{pid}/status"), "VmHWM") or rss
    pss = _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss")
    if pss is None:
        return Footprint(rss, max(peak, rss), "rss", rss)
    # The kernel keeps the peak of resident pages alone; what is shared now was shared then.
    return Footprint(pss, max(pss, peak - (rss - pss)), "pss", rss)


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
