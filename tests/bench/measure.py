"""What the benchmarks share. They print ratios: this machine's seconds are nobody else's."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

Call = Callable[[], Awaitable[object]]


async def times(call: Call, seconds: float, warm: int = 20) -> list[float]:
    """How long each call took, one after the other, for so many seconds."""
    for _ in range(warm):
        await call()
    taken = []
    end = time.perf_counter() + seconds
    while (before := time.perf_counter()) < end:
        await call()
        taken.append(time.perf_counter() - before)
    return taken


async def compare(ours: Call, bare: Call, seconds: float, rounds: int = 5) -> tuple[float, float]:
    """Median seconds of each, in turns, so that a noisy moment hits both."""
    mine: list[float] = []
    other: list[float] = []
    for _ in range(rounds):
        mine += await times(ours, seconds / rounds / 2)
        other += await times(bare, seconds / rounds / 2)
    return statistics.median(mine), statistics.median(other)


def say(what: str, ours: float, bare: float, against: str) -> None:
    """One line: both figures and their ratio."""
    print(f"{what:<52} {ours * 1e6:>10.1f} µs   {against}: {bare * 1e6:>10.1f} µs   ratio {ours / bare:>7.2f}", flush=True)
