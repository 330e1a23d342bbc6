"""What CONTRIBUTING.md shows works: its blocks are applied to a copy of the tree, and the copy is used."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import sha256_of
from tests.tiny import write_tiny_gguf

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(json|python|yaml|diff) (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
pytestmark = pytest.mark.engine

USE = """
import json, sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from aima_lib import Aima

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words): pass

web = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=sys.argv[1]))
Thread(target=web.serve_forever, daemon=True).start()
with Aima() as aima:
    said = {"before": aima.model.count()["count"]}
    repo = f"http://127.0.0.1:{web.server_port}/"
    said["pulled"] = aima.model.pull(repo=repo, source="sums")["model"]["id"]
    said["gguf"] = aima.model.count(format="gguf")["count"]
    said["instance"] = aima.engine.start(name="parrot", model_id="tiny")["instance"]["id"]
    answer = aima.inference.chat(model="tiny", messages=[{"role": "user", "content": "Polly"}])
    said["answer"] = answer["content"]
    aima.engine.stop(instance_id=said["instance"])
web.shutdown()
print(json.dumps(said))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The tree with every block of CONTRIBUTING.md applied."""
    tree = tmp_path / "tree"
    for folder in ("aima_lib", "aima_mcp", "schemas"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    blocks = BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 8
    for kind, name, text in blocks:
        path = tree / name
        if kind != "diff":
            assert not path.exists(), f"{name} is no example any more: it exists"
            path.write_text(text, encoding="utf-8")
            continue
        old = "".join(line[1:] + "\n" for line in text.splitlines() if line.startswith("-"))
        new = "".join(line[1:] + "\n" for line in text.splitlines() if line.startswith("+"))
        before = path.read_text(encoding="utf-8")
        assert before.count(old) == 1, f"{name} does not hold this once: {old}"
        path.write_text(before.replace(old, new), encoding="utf-8")
    return tree


def test_the_worked_examples_work(copy: Path, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "SHA256SUMS").write_text(f"{sha256_of(tmp_path / 'tiny.gguf')}  tiny.gguf\n", encoding="utf-8")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/config.toml").write_text('[egress]\nallow = ["127.0.0.1/32"]\n', encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(copy), "AIMA_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path)], env=environment, cwd=copy, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "before": 0,
        "pulled": "tiny",
        "gguf": 1,
        "instance": "parrot-tiny",
        "answer": "Polly",
    }


def test_the_recipe_is_listed(copy: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(copy), "AIMA_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "aima_mcp.main", "quickstart", "--list"]
    done = subprocess.run(command, env=environment, cwd=copy, capture_output=True, text=True, timeout=60, check=False)
    assert "example-0.1b" in done.stdout, done.stdout + done.stderr
