"""catalog.apply_recipe over MCP: in one call, and with kill -9 of the host in each of its steps, forward and backward."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from tests.contract.faces import mcp_http
from tests.hub import Fault, Hub
from tests.tiny import write_tiny_gguf
from tests.world import HostProcess, environment

pytestmark = pytest.mark.crash
# In the midst of which steps the host is killed, in turn, AIMA_KILLS times in all.
PHASES = ("downloading", "starting", "undoing", "matching", "verifying", "testing")
KILLS = int(os.environ.get("AIMA_KILLS", "3"))
MODERN = "2026-07-28"
SCRIPT = Path(__file__).with_name("apply_host.py")


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "shop") as hub:
        hub.add_repo("a/m", {"m-f32.gguf": write_tiny_gguf(tmp_path / "m.gguf").read_bytes()})
        hub.faults = {"/a/m/m-f32.gguf": Fault(bytes_per_second=2_000_000)}
        yield hub


@pytest.fixture
def up(fixtures: Path, shop: Hub, tmp_path: Path) -> Iterator[HostProcess]:
    config = f"[engines]\ngrace_seconds = 5\n{shop.config}"
    running = HostProcess(Path(sys.executable), tmp_path / "home", fixtures, config).start()
    try:
        yield running
    finally:
        running.stop()


def recipe(name: str, **more: Any) -> dict[str, Any]:
    sources = [{"source": "huggingface", "repo": "a/m", "evidence": "unverified"}]
    known = {"size_bytes": "unverified", "memory_bytes": "unverified"}
    base = {"name": name, "title": "Random weights", "type": "llm", "engines": ["llamacpp"], "license": "mit", "size_bytes": 1_000_000}
    return {**base, "memory_bytes": 90_000_000, "sources": sources, "evidence": known, **more}


def test_one_call_over_mcp_from_nothing_to_an_answer(up: HostProcess) -> None:
    with start_blocking_portal("asyncio") as portal, ExitStack() as stack:
        mcp = mcp_http(stack, portal, up, MODERN)
        assert mcp.call("catalog.create_recipe", {"recipe": recipe("mine")}).code == "ok"
        told = mcp.call("catalog.apply_recipe", {"recipe_id": "mine"})
        assert told.code == "ok" and told.body["made"] == ["model:mine", "service:mine"] and told.body["test"]["answer"]
        hello = {"model": "mine", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        assert mcp.call("inference.chat", hello).body["content"]


@dataclass
class Life:
    """Hosts of one home, one after the other, that apply one recipe."""

    home: Path
    recipe: Path
    log: Path

    def spawn(self) -> subprocess.Popen[str]:
        command = [sys.executable, str(SCRIPT), str(self.home), str(self.recipe), "once"]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, env=environment(self.home), stdout=subprocess.PIPE, stderr=log, text=True)

    def killed(self, phase: str) -> bool:
        """Start a host and kill it as soon as it says the phase; False where it ended before."""
        with self.spawn() as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip() == phase:
                    process.kill()
                    return True
            return False

    def ended(self) -> Mapping[str, Any]:
        """What the host tells that lives to the end."""
        with self.spawn() as process:
            said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, self.log.read_text(encoding="utf-8")[-3000:]
        told: Mapping[str, Any] = json.loads(said.splitlines()[-1])
        return told


def test_a_host_that_is_killed_goes_on_where_it_was(tmp_path: Path, shop: Hub) -> None:
    killed = 0
    for number in range(KILLS):
        phase, name, folder = PHASES[number % len(PHASES)], "mine", tmp_path / str(number)
        folder.mkdir()
        limits = {"limits": {"answer_seconds": 0.001}} if phase == "undoing" else {}
        (folder / "recipe.json").write_text(json.dumps(recipe(name, **limits)), encoding="utf-8")
        life = Life(folder / "home", folder / "recipe.json", folder / "log")
        life.home.mkdir()
        (life.home / "config.toml").write_text(f"[engines]\ngrace_seconds = 5\n{shop.config}", encoding="utf-8")
        sent = sum(shop.counts.values())
        killed += life.killed(phase)
        told = life.ended()
        if phase == "undoing":
            assert told["run"]["status"] == "failed", told["run"]
            assert sorted(told["run"]["error"]["details"]["undone"]) == [f"model:{name}", f"service:{name}"]
            assert (told["models"], told["services"], told["applied"]) == ([], [], 0)
        else:
            assert told["run"]["status"] == "succeeded" and told["run"]["result"]["test"]["answer"], told["run"]
            assert told["run"]["result"]["made"] == [f"model:{name}", f"service:{name}"]
            assert (told["models"], told["services"], told["applied"]) == ([name], [name], 1)
        assert sum(shop.counts.values()) - sent <= 2_500_000  # what had come is not fetched again
    print(f"\n{killed} kills of the host in the midst of catalog.apply_recipe")
    assert killed >= KILLS - 1
