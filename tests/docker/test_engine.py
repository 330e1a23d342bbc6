"""Engines as containers, on a real daemon: llama.cpp in an image that is built here, served through AIMA."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from aima_lib import runtime
from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument, Unavailable
from aima_lib.infra.home import Home
from tests.docker.daemon import Dockerd
from tests.engines.conftest import Hosted
from tests.world import ROOTS

pytestmark = [pytest.mark.anyio, pytest.mark.engine]
ENGINE, SMALL = "llama-server", {"context_length": 256}
CONFIG = """
[docker]
socket = "{socket}"
[engines]
grace_seconds = 2
start_timeout_seconds = 60
probe_seconds = 0.5
[engines.images.llama-server]
image = "{image}"
memory_gib = 0.5
"""


@pytest.fixture
async def hosted(home: Home, fixtures: Path, dockerd: Dockerd, llama: str, anyio_backend: str) -> AsyncIterator[Hosted]:
    """A hosted home that knows the daemon; its containers are ended with it."""
    (home.path / "config.toml").write_text(CONFIG.format(socket=dockerd.socket, image=llama) + ROOTS, encoding="utf-8")
    async with runtime.host(home) as gateway:
        world = Hosted(gateway, fixtures)
        try:
            yield world
        finally:
            for service in (await world.call("service.list"))["services"]:
                await world.call("service.delete", service_id=service["id"])
            await world.call("engine.stop", name=ENGINE, force=True)


async def test_llama_cpp_answers_from_a_container_with_a_memory_limit(hosted: Hosted, dockerd: Dockerd) -> None:
    model = await hosted.tiny()
    service = (await hosted.call("service.create", model_id=model, engine=ENGINE, launcher="docker", options=SMALL))["service"]
    said = await hosted.call("inference.chat", model=service["id"], messages=[{"role": "user", "content": "hello"}], max_tokens=4)
    assert said["content"] and said["usage"]["completion_tokens"]
    [instance] = (await hosted.call("engine.get", name=ENGINE))["engine"]["instances"]
    found = dockerd.inspect(instance["container_id"])
    print(instance, found["HostConfig"])
    assert found["HostConfig"]["Memory"] == 1 << 29
    stopped = await hosted.call("service.delete", service_id=service["id"])
    print(stopped)
    assert not dockerd.containers()
