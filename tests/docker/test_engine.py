"""Engines as containers, on a real daemon: llama.cpp in an image that is built here, served through AIMA."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from aima_lib import runtime
from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument, Unavailable
from aima_lib.infra.home import Home
from aima_lib.launchers import process
from tests.docker.daemon import Dockerd
from tests.engines.conftest import Hosted
from tests.world import PATIENCE, ROOTS

pytestmark = [pytest.mark.anyio, pytest.mark.engine]
HERE = Path(__file__).parent
ENGINE = "llama-server"
SERVE: dict[str, Any] = {"engine": ENGINE, "launcher": "docker", "options": {"context_length": 256}}
HELLO = [{"role": "user", "content": "hello"}]
CONFIG = """
[docker]
socket = "{socket}"
[engines]
grace_seconds = 2
start_timeout_seconds = 60
probe_seconds = 0.5
[engines.images.llama-server]
image = "{image}"
memory_gib = {gib}
"""


def configure(home: Home, socket: Path, image: str, gib: float = 0.5) -> None:
    (home.path / "config.toml").write_text(CONFIG.format(socket=socket, image=image, gib=gib) + ROOTS, encoding="utf-8")


@asynccontextmanager
async def hosting(home: Home, fixtures: Path) -> AsyncIterator[Hosted]:
    """A host; its containers are ended with it."""
    async with runtime.host(home) as gateway:
        world = Hosted(gateway, fixtures)
        try:
            yield world
        finally:
            for service in (await world.call("service.list"))["services"]:
                await world.call("service.delete", service_id=service["id"])
            await world.call("engine.stop", name=ENGINE, force=True)


@pytest.fixture
async def hosted(home: Home, fixtures: Path, dockerd: Dockerd, llama: str, anyio_backend: str) -> AsyncIterator[Hosted]:
    configure(home, dockerd.socket, llama)
    async with hosting(home, fixtures) as world:
        yield world


async def serve(hosted: Hosted) -> dict[str, Any]:
    """The instance of a service of the tiny model that answers."""
    await hosted.call("service.create", model_id=await hosted.tiny(), **SERVE)
    return instance(hosted)


def instance(hosted: Hosted) -> dict[str, Any]:
    [found] = hosted.gateway.services.store.find("instance")
    return found


async def chat(hosted: Hosted) -> str:
    return str((await hosted.call("inference.chat", model="tiny", messages=HELLO, max_tokens=4))["content"])


async def back(hosted: Hosted, before: dict[str, Any], seconds: float = 30.0) -> dict[str, Any]:
    """The instance once it is another, and ready."""
    return await hosted.until(
        lambda: (found := instance(hosted))["status"] == "ready" and found["container_id"] != before["container_id"] and found, seconds
    )


async def test_a_recipe_whose_engine_is_an_image_is_applied_as_a_container(hosted: Hosted, llama: str) -> None:
    told = dict.fromkeys(("size_bytes", "memory_bytes"), "unverified")
    source = {"source": "huggingface", "repo": "a/tiny", "evidence": "unverified"}
    recipe: dict[str, Any] = {
        "name": await hosted.tiny(), "title": "Tiny, in a container", "type": "llm", "engines": [{"name": ENGINE, "image": llama}],
        "license": "mit", "size_bytes": 1_000_000, "memory_bytes": 90_000_000, "sources": [source], "evidence": told,
        "options": {"context_length": 256},
    }  # fmt: skip
    await hosted.call("catalog.create_recipe", recipe=recipe)
    applied = await hosted.call("catalog.apply_recipe", recipe_id=recipe["name"])
    assert applied["engine"] == ENGINE and applied["engine_version"] == llama
    assert instance(hosted)["container_id"] and await chat(hosted)
    other = {**recipe, "name": "other", "engines": [{"name": ENGINE, "image": f"sha256:{'0' * 64}"}]}
    await hosted.call("catalog.create_recipe", recipe=other)
    with pytest.raises(AimaError, match=r"config\.toml does not name sha256:0+ under \[engines\.images\.llama-server\]"):
        await hosted.call("catalog.apply_recipe", recipe_id="other")


def hard_end(dockerd: Dockerd, found: dict[str, Any]) -> None:
    """As `docker kill` does."""
    api = dockerd.api()
    api.kill(found["container_id"])
    api.close()


async def test_llama_cpp_answers_from_a_container_with_a_memory_limit(hosted: Hosted, dockerd: Dockerd, home: Home, llama: str) -> None:
    found = await serve(hosted)
    assert await chat(hosted)
    seen = dockerd.inspect(found["container_id"])
    held, key = seen["HostConfig"], process.read_key(home.path, found["id"])
    assert held["Memory"] == held["MemorySwap"] == 1 << 29
    assert held["CapDrop"] == ["ALL"] and held["SecurityOpt"] == ["no-new-privileges"] and not held["Privileged"]
    assert [port["HostIp"] for ports in held["PortBindings"].values() for port in ports] == ["127.0.0.1"]
    assert not any(mount["RW"] for mount in seen["Mounts"])
    assert key not in str(seen), "not in its arguments, nor in its environment"
    assert seen["Config"]["Labels"]["aima.home"] == home.id
    assert seen["Config"]["Labels"]["aima.generation"] == found["started_at"]
    engine = (await hosted.call("engine.get", name=ENGINE))["engine"]
    assert engine["launchers"] == ["docker"] or "docker" in engine["launchers"]
    assert engine["container"] == {"image": llama, "available": True, "reason": None}
    took = psutil.Process(seen["State"]["Pid"]).memory_info().rss
    assert process.rss_bytes(home.path, found["id"]) == pytest.approx(took, rel=0.2), "the container's, not of what stands for it"
    checks = {check["name"]: check for check in (await hosted.call("system.doctor"))["checks"]}
    assert "answers at" in checks["docker"]["message"]

    await hosted.call("service.delete", service_id="tiny")
    assert not [name for name in dockerd.containers() if home.id in name]
    lines = (await hosted.call("engine.logs", instance_id=found["id"]))["lines"]
    assert any("server is listening on" in line for line in lines), "they outlive the container"


async def test_one_that_takes_too_much_memory_is_explained(home: Home, fixtures: Path, dockerd: Dockerd, llama: str) -> None:
    configure(home, dockerd.socket, llama, gib=0.015)
    async with hosting(home, fixtures) as hosted:
        with pytest.raises(FailedPrecondition, match=r"out of memory: it reached its limit of 0\.015 GiB"):
            await hosted.call("engine.start", name=ENGINE, model_id=await hosted.tiny(), launcher="docker")


async def test_a_kill_for_want_of_memory_is_told_within_a_second_and_mended(hosted: Hosted, dockerd: Dockerd) -> None:
    found = await serve(hosted)
    pid = dockerd.inspect(found["container_id"])["State"]["Pid"]
    Path(f"/proc/{pid}/oom_score_adj").write_text("1000", encoding="utf-8")  # the first that the kernel takes
    api, program = dockerd.api(), dockerd.inspect(found["container_id"])["Config"]["Entrypoint"][0]
    hog = api.exec_create(found["container_id"], [program, "-c", "x = [b'x' * (1 << 24) for _ in range(100)]"])
    await anyio.to_thread.run_sync(lambda: api.exec_start(hog["Id"]))
    [error] = await hosted.until(lambda: hosted.events("engine.error"))
    api.close()
    assert "out of memory: it reached its limit of 0.5 GiB" in error["payload"]["cause"]
    [died] = [event for event in dockerd.happened(found["container_id"]) if event["Action"] == "die"]
    assert datetime.fromisoformat(error["time"]).timestamp() - died["timeNano"] / 1e9 < 1.0 * PATIENCE
    await back(hosted, found)
    assert await chat(hosted)
    explained = await hosted.call("event.explain", subject=found["id"])
    assert "out of memory" in str(explained)


async def test_docker_may_go_and_come_back_under_load(hosted: Hosted, dockerd: Dockerd) -> None:
    found = await serve(hosted)
    answered, failed, over = [], [], False

    async def ask() -> None:
        while not over:
            try:
                answered.append(await chat(hosted))
            except AimaError as error:
                failed.append(error)
            await anyio.sleep(0.02)

    async with anyio.create_task_group() as load:
        load.start_soon(ask)
        load.start_soon(ask)
        await hosted.until(lambda: len(answered) > 2)
        await anyio.to_thread.run_sync(dockerd.stop)
        try:
            await hosted.until(lambda: instance(hosted)["status"] == "failed")
            engine = (await hosted.call("engine.get", name=ENGINE))["engine"]
            assert not engine["container"]["available"] and "Docker" in engine["container"]["reason"]
            with pytest.raises(Unavailable, match="Docker") as away:
                await hosted.call("engine.start", name=ENGINE, model_id="tiny", launcher="docker")
            assert away.value.hint and "systemctl start docker" in away.value.hint
            assert (await hosted.call("service.get", service_id="tiny"))["service"]["status"] == "starting", "it waits, and has not failed"
            restarts = len(hosted.events("service.restarted"))
            await anyio.sleep(1)
            assert len(hosted.events("service.restarted")) <= restarts + 1, "it is not tried again and again"
        finally:
            await anyio.to_thread.run_sync(dockerd.start)
        await back(hosted, found, 40)
        before = len(answered)
        await hosted.until(lambda: len(answered) > before + 2)
        over = True
    assert all(isinstance(error, Unavailable) for error in failed), failed


async def test_a_container_that_somebody_removed_is_back(hosted: Hosted, dockerd: Dockerd, home: Home) -> None:
    found = await serve(hosted)
    api = dockerd.api()
    api.remove_container(found["container_id"], force=True)
    api.close()
    [error] = await hosted.until(lambda: hosted.events("engine.error"))
    assert "removed" in error["payload"]["cause"]
    await back(hosted, found)
    assert await chat(hosted)


async def test_strangers_are_left_alone_with_our_port_and_our_name(hosted: Hosted, dockerd: Dockerd, busybox: str, home: Home) -> None:
    model, port, name = await hosted.tiny(), process.free_port(), f"aima-{home.id}-llama-server-tiny"
    thieves = [dockerd.run(busybox, ["/bin/sleep", "600"], name=name, port=port)]
    try:
        with pytest.raises(FailedPrecondition, match=f"port {port} is taken by the container {name}"):
            await hosted.call("engine.start", name=ENGINE, model_id=model, launcher="docker", port=port)
        with pytest.raises(FailedPrecondition, match=f"the container {name} is not this home's"):
            await hosted.call("service.create", model_id=model, **SERVE)
        dockerd.rename(thieves[0], "strange")
        await hosted.call("service.start", service_id="tiny")
        found = instance(hosted)
        hard_end(dockerd, found)
        stolen = int(found["base_url"].rpartition(":")[2])
        thieves.append(dockerd.run(busybox, ["/bin/sleep", "600"], name="stranger", port=stolen))
        again = await back(hosted, found)
        assert again["base_url"] != found["base_url"] and await chat(hosted), "at another port: that one is taken"
        assert all(dockerd.inspect(thief)["State"]["Running"] for thief in thieves)
    finally:
        for thief in thieves:
            dockerd.remove(thief)


@pytest.mark.crash
async def test_a_host_that_is_killed_finds_its_container_again(
    home: Home, fixtures: Path, dockerd: Dockerd, llama: str, anyio_backend: str
) -> None:
    configure(home, dockerd.socket, llama)
    container = await killed_host(home, fixtures)
    async with hosting(home, fixtures) as hosted:
        assert instance(hosted)["container_id"] == container, "as it was, still warm"
        await hosted.until(lambda: hosted.events("engine.started")[-1]["payload"]["adopted"])
        assert await chat(hosted)
        found = process.read_state(home.path, instance(hosted)["id"])
        assert found is not None
        for pid in (found.keeper_pid, found.pid):  # what stands for it, killed together: nothing but the label is left
            os.kill(pid, signal.SIGKILL)
        await back(hosted, {"container_id": container})
        assert [name for name in dockerd.containers() if home.id in name] == [f"aima-{home.id}-{found.instance}"]


@pytest.mark.crash
async def test_a_dead_home_leaves_no_container(home: Home, fixtures: Path, dockerd: Dockerd, llama: str, anyio_backend: str) -> None:
    configure(home, dockerd.socket, llama)
    await killed_host(home, fixtures)
    with anyio.fail_after(2 + 30):  # the grace, and a moment
        while process.read_exit(home.path, "llama-server-tiny") is None:
            await anyio.sleep(0.1)
    assert not [name for name in dockerd.containers() if home.id in name]


async def killed_host(home: Home, fixtures: Path) -> str:
    """A host that served, killed; its container's id."""
    command = [sys.executable, str(HERE / "host_process.py"), str(home.path), str(fixtures / "tiny.gguf")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        container = (await anyio.to_thread.run_sync(host.stdout.readline)).strip()
        host.kill()
    assert container
    return container


async def test_what_cannot_be_a_container_is_refused(hosted: Hosted) -> None:
    model = await hosted.tiny()
    asked = {"name": "llamacpp", "model_id": model, "launcher": "docker", "options": {"context_length": 256}}
    with pytest.raises(FailedPrecondition, match="llamacpp stays a process: it chooses its own port") as process_only:
        await hosted.call("engine.start", **asked)
    [call] = process_only.value.next
    assert call == {"unit": "engine.start", "arguments": {key: value for key, value in asked.items() if key != "launcher"}}
    with pytest.raises(FailedPrecondition, match="stays a process"):
        await hosted.call("service.create", model_id=model, engine="llamacpp", launcher="docker")
    with pytest.raises(FailedPrecondition, match="names no image that serves vllm") as none:
        await hosted.call("engine.install", name="vllm", launcher="docker")
    assert none.value.hint and "[engines.images.vllm]" in none.value.hint
    with pytest.raises(InvalidArgument, match=r"launcher is docker, and options\.launcher process"):
        await hosted.call("engine.start", name=ENGINE, model_id=model, launcher="docker", options={"launcher": "process"})
