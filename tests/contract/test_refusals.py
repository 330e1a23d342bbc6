"""Bad input that agents and people really give, through real doors: the answer says what to do next."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from aima_lib.errors import FailedPrecondition
from tests.contract.conftest import Faces
from tests.contract.faces import REGISTRY
from tests.world import World, environment, within


def serve(world: World, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`aima serve`, which is expected to end at once."""
    command = [str(world.host.python), "-m", "aima_mcp.main", "serve", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment(home), check=False)


@pytest.mark.parametrize("face", ["library", "embedded", "http", "mcp_stdio", "mcp_http", "mcp_http_handshake", "cli"])
def test_a_model_that_is_not_there_names_the_nearest_and_the_next_call(faces: Faces, face: str) -> None:
    question = {"model": "tiyn", "messages": [{"role": "user", "content": "hi"}]}
    outcome = faces[face].call("inference.chat", question)
    assert outcome.code == "not_found"
    assert "tiyn" in outcome.body["message"]
    assert "tiny" in json.dumps([outcome.body.get("hint"), outcome.body.get("details")])
    [first, *_] = outcome.body["next"]
    assert faces[face].call(first["unit"], first["arguments"]).code == "ok"


def test_a_second_host_is_refused_with_the_first_ones_pid(world: World) -> None:
    done = serve(world, world.home.path, "--port", "0")
    assert done.returncode == FailedPrecondition.exit_code
    assert str(world.host.pid) in done.stderr
    assert "Traceback" not in done.stderr
    assert world.http.get("/health").json()["status"] == "ok"


def test_a_port_that_is_taken_is_refused_naming_its_holder(world: World, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = serve(world, tmp_path / "home", "--port", str(port))  # which waits for half a minute, and no longer
    assert done.returncode == FailedPrecondition.exit_code
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_gguf_is_told_in_two_seconds_and_aima_stays_up(world: World) -> None:
    with within(2):
        answer = world.http.post("/units/model/import", json={"path": "broken.gguf", "name": "broken"})
    assert answer.status_code == 400 or answer.json()["code"] in ("failed_precondition", "invalid_argument")
    assert "broken.gguf" in answer.json()["message"]
    assert world.call("model.list", limit=1000)["total"] == len(world.call("model.list", limit=1000)["models"])
    assert "broken" not in [model["id"] for model in world.call("model.list", limit=1000)["models"]]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic YTpi"}], ids=str)
@pytest.mark.parametrize(
    "path", ["/units/system/info", "/resources?uri=aima://devices", "/events", "/openapi.json", "/metrics", "/v1/models", "/mcp"]
)
def test_without_the_key_nothing_is_told(world: World, path: str, headers: dict[str, str]) -> None:
    answer = httpx.get(world.host.url + path, headers=headers, trust_env=False)
    assert answer.status_code == 401
    assert str(world.home.path) not in answer.text


def test_every_unit_refuses_an_unknown_method_and_path(world: World) -> None:
    for path, method, status in (
        ("/units/model/fly", "POST", 404),
        ("/units/model/pull", "DELETE", 405),
        ("/units/model/pull", "GET", 405),
        ("/nothing", "GET", 404),
    ):
        answer: Any = world.http.request(method, path)
        assert answer.status_code == status, (path, method, answer.text)
        assert answer.json()["code"]


def test_an_agent_can_go_from_search_to_call(faces: Faces) -> None:
    """Three tools reach all others: whatever is listed, search finds it, describe shows it, call calls it."""
    for unit in REGISTRY.of("query"):
        if unit.definition["inputSchema"].get("required"):
            continue
        described = faces["mcp_http"].call("unit.describe", {"name": unit.name})
        assert described.body["unit"]["inputSchema"] == unit.definition["inputSchema"]
        called = faces["mcp_http"].call("unit.call", {"name": unit.name})
        assert called.code in ("ok", "invalid_argument"), called.body
