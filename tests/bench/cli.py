"""What a command costs, against Python alone and the import of the MCP SDK: `python tests/bench/cli.py`. About 60 s."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from measure import ROOT, say

ROUNDS = 15
AIMA = [sys.executable, "-m", "aima_mcp.main"]
NOTHING = [sys.executable, "-c", "pass"]
SDK = [sys.executable, "-c", "import mcp"]
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}},
}
Measured = Callable[[], float]


def cpu(command: list[str], around: Mapping[str, str]) -> float:
    """Seconds of CPU, its own and the system's, that a command and its children took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=around, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def elapsed(command: list[str], around: Mapping[str, str]) -> float:
    """Seconds from start to end."""
    began = time.perf_counter()
    subprocess.run(command, env=around, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def first_reply(around: Mapping[str, str]) -> float:
    """Seconds from the start of `aima mcp` to its first answer."""
    began = time.perf_counter()
    with subprocess.Popen([*AIMA, "mcp"], env=around, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(HELLO).encode() + b"\n")
        server.stdin.flush()
        assert b"serverInfo" in server.stdout.readline()
        taken = time.perf_counter() - began
        server.stdin.close()
    return taken


def compare(ours: Measured, bare: Measured) -> tuple[float, float]:
    """Median seconds of each, in turns, after one of each that is not counted: it may have bytecode to write."""
    ours(), bare()
    pairs = [(ours(), bare()) for _ in range(ROUNDS)]
    return statistics.median(mine for mine, _ in pairs), statistics.median(other for _, other in pairs)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        around = {key: value for key, value in os.environ.items() if key not in ("AIMA_URL", "AIMA_KEY", "PYTHONDONTWRITEBYTECODE")}
        around |= {"AIMA_HOME": str(Path(folder) / "home"), "PYTHONPATH": str(ROOT)}
        subprocess.run([*AIMA, "start", "--port", "0"], env=around, check=True, capture_output=True)
        try:
            for words in (["--help"], ["model", "list", "--json"], ["model", "list", "-o", "yaml"], ["model", "list"]):
                mine, other = compare(lambda words=words: cpu([*AIMA, *words], around), lambda: cpu(NOTHING, around))
                say(f"CPU of aima {' '.join(words)}", mine, other, "python alone")
            say("first reply of aima mcp", *compare(lambda: first_reply(around), lambda: elapsed(SDK, around)), "import mcp")
        finally:
            subprocess.run([*AIMA, "stop"], env=around, check=True, capture_output=True)


if __name__ == "__main__":
    main()
