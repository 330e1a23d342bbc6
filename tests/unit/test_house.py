"""The house rules that a program can check: lint, types, layers, sizes, words, generated files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(path for folder in ("aima_lib", "aima_mcp") for path in (ROOT / folder).rglob("*.py"))
WRITTEN = [path for path in MODULES if path.name != "types.py"]
FORBIDDEN = re.compile(r"manager|helper|util|common|provider|repository|impl|smart|v2", re.IGNORECASE)
BROAD = re.compile(r"except (Exception|BaseException)\b|except:")


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check"],
        ["ruff", "format", "--check"],
        ["mypy", "--no-incremental"],
        ["importlinter.cli", "lint-imports"],
    ],
    ids=lambda command: command[0],
)
def test_tool_is_content(command: list[str]) -> None:
    run = [sys.executable, "-m", *command] if command[0] != "importlinter.cli" else [str(Path(sys.executable).with_name("lint-imports"))]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_generated_files_are_fresh() -> None:
    done = subprocess.run([sys.executable, "-m", "aima_lib.generate", "--check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_keeps_the_house_sizes_and_words(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 500, "a module stops at 500 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} is longer than 60 lines"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            assert not FORBIDDEN.search(re.sub("simple|implement|implicit", "", node.name)), f"{node.name}: a word the house does not use"
    assert not FORBIDDEN.search(path.stem), "a word the house does not use"


def test_only_the_top_of_the_gateway_and_the_event_bus_catch_everything() -> None:
    broad = [path.name for path in WRITTEN if BROAD.search(path.read_text(encoding="utf-8"))]
    assert set(broad) <= {"gateway.py", "events.py"}, broad
