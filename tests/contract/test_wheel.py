"""The built wheel in a clean environment: what it ships, what importing it costs, and that a host of it serves."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from aima_lib.registry import SCHEMAS
from tests.contract.faces import REGISTRY
from tests.world import World, environment

HEAVY = ("mcp", "starlette", "uvicorn", "docker", "xllamacpp", "click", "rich", "aiohttp", "pynvml", "jsonschema")
LOADED = "import sys, json, aima_lib; print(json.dumps([aima_lib.__file__, sorted({name.partition('.')[0] for name in sys.modules})]))"


def ran(python: Path, cwd: Path, *words: str) -> str:
    done = subprocess.run([str(python), *words], capture_output=True, text=True, cwd=cwd, env=environment(cwd / "home"), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_schemas_ship_inside(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for path in [*SCHEMAS.rglob("*.json"), *SCHEMAS.rglob("*.md")]:
        assert f"aima_lib/schemas/{path.relative_to(SCHEMAS)}" in names
    for part in (
        "aima_lib/infra/migrations/0001_documents.sql",
        "aima_lib/engines/templates/qwen-tools.jinja",
        "aima_lib/engines/assets/digits8.onnx",
        "aima_lib/py.typed",
    ):
        assert part in names, part
    assert not [name for name in names if name.startswith(("tests", "examples", "docs"))]


def test_importing_the_library_loads_nothing_heavy(python: Path, tmp_path: Path) -> None:
    place, loaded = json.loads(ran(python, tmp_path, "-c", LOADED))
    assert Path(place).is_relative_to(python.parent.parent), "the checkout was imported, not the wheel"
    assert not set(HEAVY) & set(loaded)


def test_the_command_says_what_it_can(python: Path, tmp_path: Path) -> None:
    program = python.parent / "aima"
    done = subprocess.run([str(program), "--help"], capture_output=True, text=True, env=environment(tmp_path), check=False)
    assert done.returncode == 0, done.stderr
    for domain in {unit.domain for unit in REGISTRY.of("command", "query")}:
        assert f"\n  {domain} " in done.stdout
    version = json.loads(ran(python, tmp_path, "-c", "import json, aima_lib; print(json.dumps(aima_lib.__version__))"))
    assert subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True).stdout.strip() == f"aima {version}"


@pytest.mark.parametrize("name", [unit.name for unit in REGISTRY.of("command", "query")])
def test_every_unit_has_its_help(python: Path, faces_cli_help: dict[str, str], name: str) -> None:
    text = faces_cli_help[name]
    for key in REGISTRY[name].definition["inputSchema"]["properties"]:
        assert f"--{key.replace('_', '-')}" in text


@pytest.fixture(scope="module")
def faces_cli_help(python: Path) -> dict[str, str]:
    """Unit → what `aima <domain> <action> --help` prints; one process prints them all."""
    names = [unit.name for unit in REGISTRY.of("command", "query")]
    program = (
        "import json, sys\nfrom click.testing import CliRunner\nfrom aima_mcp.faces.cli import build\n"
        "print(json.dumps({name: CliRunner().invoke(build(), [*name.split('.'), '--help']).output for name in json.loads(sys.argv[1])}))"
    )
    done = subprocess.run([str(python), "-c", program, json.dumps(names)], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_a_host_of_it_serves(world: World) -> None:
    health = world.http.get("/health").json()
    assert health["status"] == "ok"
    assert health["version"] == world.call("system.info")["version"]
    installed = ran(world.host.python, world.folder, "-c", "import aima_lib; print(aima_lib.__file__)")
    assert Path(installed.strip()).is_relative_to(world.host.python.parent.parent)
