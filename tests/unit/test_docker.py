"""Docker that is not there: said with a hint by whoever needs it, and felt by nobody else."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from aima_lib import runtime
from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument, Unavailable
from aima_lib.infra.daemon import USUAL, Daemon, socket_of
from aima_lib.infra.home import Home
from tests.world import ROOTS

pytestmark = pytest.mark.anyio
IMAGES = f'[engines.images.llama-server]\nimage = "sha256:{"a" * 64}"\n'


def test_where_its_socket_is() -> None:
    assert socket_of(None, {}) == USUAL
    assert socket_of(None, {"DOCKER_HOST": "unix:///run/user/1000/podman/podman.sock"}) == "/run/user/1000/podman/podman.sock"
    assert socket_of("/mine.sock", {"DOCKER_HOST": "tcp://example.org:2375"}) == "/mine.sock"
    for elsewhere in ("tcp://10.0.0.1:2375", "ssh://root@example.org", "unix://relative"):
        with pytest.raises(Unavailable, match="unix socket only") as refused:
            socket_of(None, {"DOCKER_HOST": elsewhere})
        assert "example.org" not in str(refused.value)


@pytest.mark.parametrize("there", [False, True], ids=["no socket", "nobody listens"])
async def test_one_that_is_away_is_said_to_be(home: Home, tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if there:
        with socket.socket(socket.AF_UNIX) as nobody:
            nobody.bind("docker.sock")
    text = f'[docker]\nsocket = "{tmp_path}/docker.sock"\n{IMAGES}{ROOTS}'
    (home.path / "config.toml").write_text(text, encoding="utf-8")
    why = f"Docker at {tmp_path}/docker.sock does not run" if there else f"there is no Docker at {tmp_path}/docker.sock"
    async with runtime.host(home) as gateway:
        engine = (await gateway.call("engine.get", {"name": "llama-server"}))["engine"]
        assert why in engine["container"]["reason"] and "systemctl start docker" in engine["container"]["reason"]
        with pytest.raises(Unavailable, match=why) as away:
            await gateway.call("engine.install", {"name": "llama-server", "launcher": "docker"})
        assert away.value.hint and "DOCKER_HOST" in away.value.hint
        with pytest.raises(FailedPrecondition, match="llamacpp stays a process"):
            await gateway.call("engine.install", {"name": "llamacpp", "launcher": "docker"})
        checks = {check["name"]: check for check in (await gateway.call("system.doctor"))["checks"]}
        assert checks["docker"]["status"] == "warning" and why in checks["docker"]["message"]


async def test_one_that_does_not_answer_is_waited_for_as_long_as_the_owner_says(home: Home, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "docker.sock"))
        mute.listen()
        text = f'[docker]\nsocket = "{tmp_path}/docker.sock"\ncall_seconds = 1\n{IMAGES}{ROOTS}'
        (home.path / "config.toml").write_text(text, encoding="utf-8")
        async with runtime.host(home) as gateway:
            with anyio.fail_after(15), pytest.raises(AimaError, match="did not answer"):
                await gateway.services.docker.ask(Daemon.version)


async def test_a_home_that_needs_none_is_well_without(home: Home, tmp_path: Path) -> None:
    (home.path / "config.toml").write_text(f'[docker]\nsocket = "{tmp_path}/docker.sock"\n', encoding="utf-8")
    async with runtime.host(home) as gateway:
        checks = {check["name"]: check for check in (await gateway.call("system.doctor"))["checks"]}
        message = f"there is no Docker at {tmp_path}/docker.sock; nothing here needs it"
        assert checks["docker"] == {"name": "docker", "status": "ok", "message": message}


def test_the_sdk_is_not_loaded_before_it_is_needed(home: Home) -> None:
    code = f"""
import anyio, sys
from aima_lib import runtime
from aima_lib.infra.home import Home
async def main():
    async with runtime.host(Home({str(home.path)!r})) as gateway:
        await gateway.call("engine.list")
anyio.run(main)
assert "docker" not in sys.modules and "requests" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("image", ["llama:latest", "llama", "LLAMA@sha256:" + "a" * 64])
async def test_an_image_is_configured_by_its_digest(home: Home, image: str) -> None:
    (home.path / "config.toml").write_text(f'[engines.images.llama-server]\nimage = "{image}"\n', encoding="utf-8")
    with pytest.raises(InvalidArgument, match=r"engines\.images\.llama-server\.image"):
        async with runtime.host(home):
            pass
