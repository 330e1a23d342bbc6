"""The programs in examples/ run by themselves, against the world's host."""

from __future__ import annotations

import subprocess

import pytest

from tests.world import ROOT, World, environment

PROGRAMS = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_example_runs(program: object, world: World) -> None:
    command = [str(world.host.python), str(program), "tiny"]
    done = subprocess.run(
        command, env=environment(world.home.path), cwd=world.folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.split()) > 3, done.stdout


def test_there_is_one_for_each_door() -> None:
    assert {path.stem for path in PROGRAMS} >= {"library", "openai_client", "mcp_agent", "pipeline"}
