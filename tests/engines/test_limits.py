"""What the owner's configuration forbids is refused, and the refusal says so."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio
import pytest

from aima_lib import runtime
from aima_lib.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from aima_lib.infra.home import Home
from tests.engines.conftest import Hosted
from tests.engines.pacing import ask, paced, pids, serve
from tests.world import ROOTS

pytestmark = [pytest.mark.anyio, pytest.mark.engine]
HELLO = [{"role": "user", "content": "hello"}]


async def test_no_engine_plans_with_more_than_the_owners_limit(home: Home, fixtures: Path, anyio_backend: str) -> None:
    (home.path / "config.toml").write_text(f"[engines]\nmemory_limit_gib = 0.001\n{ROOTS}", encoding="utf-8")
    async with runtime.host(home) as gateway:
        hosted = Hosted(gateway, fixtures)
        with pytest.raises(ResourceExhausted) as refused:
            await hosted.call("engine.start", name="llamacpp", model_id=await hosted.tiny())
        assert "memory_limit_gib" in f"{refused.value} {refused.value.hint}"
        assert hosted.gateway.services.store.find("instance", status="ready") == []


async def test_a_request_loads_nothing_where_the_owner_does_not_want_it(home: Home, fixtures: Path, anyio_backend: str) -> None:
    (home.path / "config.toml").write_text(f"[inference]\nload_on_request = false\n{ROOTS}", encoding="utf-8")
    async with runtime.host(home) as gateway:
        hosted = Hosted(gateway, fixtures)
        with pytest.raises(FailedPrecondition) as refused:
            await hosted.call("inference.chat", model=await hosted.tiny(), messages=HELLO)
        assert refused.value.next[0]["unit"].startswith("service.")
        assert (await hosted.call("service.list"))["total"] == 0


async def test_the_share_of_memory_that_is_kept_back_is_the_owners(home: Home, anyio_backend: str) -> None:
    (home.path / "config.toml").write_text("[engines]\nmemory_reserve_fraction = 0.5\n", encoding="utf-8")
    async with runtime.host(home) as gateway:
        cpu = (await gateway.call("resource.status"))["memory"][0]
        assert cpu["reserved_bytes"] == cpu["total_bytes"] - cpu["total_bytes"] // 2
        assert cpu["usable_bytes"] == max(0, cpu["total_bytes"] - cpu["reserved_bytes"] - cpu["used_bytes"])


async def test_a_death_counts_as_long_as_the_owner_says(home: Home, fixtures: Path, tmp_path: Path, anyio_backend: str) -> None:
    async with paced(home, fixtures, tmp_path, engines="restart_window_seconds = 1.5") as hosted:
        await serve(hosted)
        [pid] = (await pids(hosted)).values()
        os.kill(pid, signal.SIGKILL)
        await hosted.until(lambda: hosted.gateway.services.serving.reconciler.deaths(["llama-server-tiny"]) == 1)
        await hosted.until(lambda: hosted.gateway.services.serving.reconciler.deaths(["llama-server-tiny"]) == 0)
        assert (await hosted.call("service.status", service_id="tiny"))["restarts"] == 0


async def test_a_request_waits_as_long_as_the_owner_says(home: Home, fixtures: Path, tmp_path: Path, anyio_backend: str) -> None:
    async with paced(home, fixtures, tmp_path, inference="queue_seconds = 0.3") as hosted:
        await serve(hosted, parallel=1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: ask(hosted, tokens=1000, pace=0.05))
            await hosted.until(lambda: hosted.gateway.services.serving.turns.of_service("tiny").seated)
            waited = await ask(hosted, tokens=1)
            tasks.cancel_scope.cancel()
        assert isinstance(waited.error, Unavailable) and "came free within 0.3 s" in str(waited.error)


async def test_a_key_that_the_configuration_does_not_have_is_refused_by_name(home: Home) -> None:
    (home.path / "config.toml").write_text("[docker]\ncall_secs = 3\n", encoding="utf-8")
    with pytest.raises(InvalidArgument, match="call_secs"):
        async with runtime.host(home):
            pass
