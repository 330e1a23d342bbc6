"""A process that pulls, and is killed, and pulls again: `python -m tests.pull_forks HOME REPO KILLS`, the configuration from stdin.

Everything is imported once; each try is a fork of that, so a kill costs milliseconds and not the start of an interpreter. Says, as JSON,
how often a try was killed and how often it got through.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import anyio
import httpx
import pypi_simple

from aima_lib.infra.download import Pace
from aima_lib.infra.ranges import arrived
from tests.unit.test_model import shop

LOADED = (httpx, pypi_simple, zipfile)  # once, and not in each fork
PACE = Pace(first_wait_seconds=0.02, longest_wait_seconds=0.1, segment=4 << 20)


async def pull(home: Path, repo: str, toml: str) -> None:
    async with shop(home, toml, pace=PACE) as here:
        await here.models.pull(repo)


async def delete(home: Path, toml: str) -> None:
    """Verify what is there, and take it away, for the next pull to begin from nothing."""
    async with shop(home, toml, pace=PACE) as here:
        (model,) = here.models.list()[0]
        assert await here.models.verify(model["id"]) == (True, [])
        await here.models.delete(model["id"])
        left = [path for path in (home / "models").rglob("*") if path.is_file()]
        assert left == [], f"left over: {left}"


def here(home: Path) -> int:
    """Bytes of parts, by what is written beside them, and of what is joined."""
    try:
        parts = [arrived(path) for path in (home / "models/partial").glob("*/*.part")]
        return sum(parts) + sum(path.stat().st_size for path in (home / "models/partial").glob("*/*.whole"))
    except FileNotFoundError:  # they became a model meanwhile
        return -1


def attempt(seconds: float | None, work: list[object], seen: Callable[[], int] | None = None) -> bool:
    """Do it in a process of its own, killed so many seconds after `seen` changed; whether it got through."""
    before = seen() if seen else 0
    child = os.fork()
    if child == 0:
        anyio.run(*work)  # type: ignore[arg-type]
        os._exit(0)
    ended, status = 0, 0
    while seconds is not None and seen is not None and seen() == before and not ended:
        time.sleep(0.002)
        ended, status = os.waitpid(child, os.WNOHANG)
    if seconds is not None and not ended:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    if not ended:
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        sys.exit(f"a try ended with {code}")
    return code == 0


def main() -> None:
    home, repo, kills, toml = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.stdin.read()
    chance, through, killed = random.Random(kills), 0, 0
    while killed < kills:
        # most in the midst of the transfer, the rest wherever the process happens to be
        seen = (lambda: here(home)) if chance.random() < 0.8 else None
        done = attempt(chance.uniform(0.0, 0.3), [pull, home, repo, toml], seen)
        killed += not done
        if done or chance.random() < 0.02:
            attempt(None, [pull, home, repo, toml])
            attempt(None, [delete, home, toml])
            through += 1
    attempt(None, [pull, home, repo, toml])
    attempt(None, [delete, home, toml])
    print(json.dumps({"killed": killed, "through": through + 1}), flush=True)


if __name__ == "__main__":
    main()
