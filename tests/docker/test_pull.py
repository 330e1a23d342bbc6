"""Images that are pulled: by digest, from a registry of our own, by the real daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import pytest

from aima_lib import runtime
from aima_lib.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from aima_lib.gateway import Gateway
from aima_lib.infra.home import Home
from tests.docker.daemon import Dockerd
from tests.docker.registry import Registry

pytestmark = [pytest.mark.anyio]
INSTALL = {"name": "llama-server", "launcher": "docker"}
NOBODY = "127.0.0.1:9"
Opened = Callable[..., AbstractAsyncContextManager[Gateway]]


@pytest.fixture
def registry() -> Iterator[Registry]:
    running = Registry()
    yield running
    running.close()


@pytest.fixture
def knowing(home: Home, dockerd: Dockerd) -> Opened:
    """A host that knows the daemon and an image."""

    @asynccontextmanager
    async def opened(image: str, **docker: Any) -> AsyncIterator[Gateway]:
        lines = [f'[docker]\nsocket = "{dockerd.socket}"', *(f"{key} = {value}" for key, value in docker.items())]
        (home.path / "config.toml").write_text("\n".join([*lines, "[engines.images.llama-server]", f'image = "{image}"']), encoding="utf-8")
        async with runtime.host(home) as gateway:
            yield gateway

    return opened


async def test_an_image_comes_by_its_digest_with_progress(knowing: Opened, registry: Registry) -> None:
    digest, _ = registry.image(3_000_000, 1_000_000, 500_000)
    image, told = f"{registry.host}/engines/llama@{digest}", list[Mapping[str, Any]]()

    async def hear(item: Mapping[str, Any]) -> None:
        told.append(item)

    async with knowing(image) as gateway:
        before = (await gateway.call("engine.get", {"name": "llama-server"}))["engine"]["container"]
        assert before == {"image": image, "available": False, "reason": f"{image} is not here: engine.install pulls it"}
        with pytest.raises(FailedPrecondition, match="the image of llama-server is not here") as absent:
            await gateway.services.engines.catalog.refuse_absent(gateway.services.engines.catalog.adapter("llama-server"), INSTALL)
        assert absent.value.next == [{"unit": "engine.install", "arguments": INSTALL}]
        done = await gateway.call("engine.install", INSTALL, send=hear)
        assert done == {"engine": "llama-server", "version": digest, "path": image, "packages": [], "model_id": None, "installed": True}
        assert told[-1]["phase"] == "pulling" and told[-1]["completed"] == told[-1]["total"] > 4_500_000
        assert (await gateway.call("engine.install", INSTALL))["installed"] is False
        assert (await gateway.call("engine.get", {"name": "llama-server"}))["engine"]["container"]["available"]
        with pytest.raises(InvalidArgument, match="an image's version is its digest"):
            await gateway.call("engine.install", {**INSTALL, "version": "1.0"})


async def test_a_mirror_is_asked_first_and_the_registry_itself_where_that_has_it_not(knowing: Opened, registry: Registry) -> None:
    digest, _ = registry.image(1000)
    async with knowing(f"{NOBODY}/engines/llama@{digest}", mirrors=f'{{"{NOBODY}" = ["{registry.host}"]}}') as gateway:
        assert (await gateway.call("engine.install", INSTALL))["version"] == digest
        assert (await gateway.call("engine.get", {"name": "llama-server"}))["engine"]["container"]["available"]
    other, _ = registry.image(1000)
    empty = Registry()
    try:
        async with knowing(
            f"{registry.host}/engines/llama@{other}", mirrors=f'{{"{registry.host}" = ["{empty.host}", "{NOBODY}"]}}'
        ) as gateway:
            assert (await gateway.call("engine.install", INSTALL))["version"] == other
    finally:
        empty.close()


async def test_a_pull_that_stands_still_is_given_up_and_may_be_tried_again(knowing: Opened, registry: Registry) -> None:
    digest, layers = registry.image(100_000)
    async with knowing(f"{registry.host}/engines/llama@{digest}") as gateway:
        await gateway.call("engine.install", INSTALL)
    larger, both = registry.image(2_000_000, upon=layers)
    registry.stuck.add(both[1])
    async with knowing(f"{registry.host}/engines/llama@{larger}", stall_seconds=1) as gateway:
        with pytest.raises(Unavailable, match=r"the pull of \S+ has not gone on for 1 s: \S+ layer \w+ downloading") as stalled:
            await gateway.call("engine.install", INSTALL)
        assert stalled.value.hint and "mirrors" in stalled.value.hint
        registry.stuck.clear()
        registry.let_go.set()
        assert (await gateway.call("engine.install", INSTALL))["installed"]
    assert registry.asked[layers[0]] == 1, "a layer that an image here has is not fetched again"


async def test_a_caller_that_leaves_ends_the_pull(knowing: Opened, registry: Registry) -> None:
    digest, layers = registry.image(2_000_000)
    registry.slow.add(layers[0])
    async with knowing(f"{registry.host}/engines/llama@{digest}") as gateway:
        async with anyio.create_task_group() as work:
            work.start_soon(gateway.services.docker.pull, f"{registry.host}/engines/llama@{digest}")
            with anyio.fail_after(10):
                while not registry.asked[layers[0]]:
                    await anyio.sleep(0.01)
            work.cancel_scope.cancel()
        assert await anyio.to_thread.run_sync(registry.left.wait, 10), "the daemon has let go too"


async def test_what_is_not_what_was_asked_for_is_refused(knowing: Opened, registry: Registry) -> None:
    digest, _ = registry.image(1000)
    other, _ = registry.image(1000)
    registry.blobs[digest] = registry.blobs[other]
    async with knowing(f"{registry.host}/engines/llama@{digest}") as gateway:
        with pytest.raises(FailedPrecondition, match="digest"):
            await gateway.call("engine.install", INSTALL)
    async with knowing(f"{registry.host}/engines/llama@sha256:{'0' * 64}") as gateway:
        with pytest.raises(NotFound, match="manifest unknown"):
            await gateway.call("engine.install", INSTALL)
    async with knowing(f"{NOBODY}/engines/llama@{digest}") as gateway:
        with pytest.raises(Unavailable, match="Docker cannot reach the registry") as away:
            await gateway.call("engine.install", INSTALL)
        assert away.value.hint and "[docker] mirrors" in away.value.hint
