"""What the owner's configuration forbids is refused, and the refusal says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from aima_lib import runtime
from aima_lib.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from aima_lib.infra.home import Home
from tests.engines.conftest import Hosted
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


async def test_a_key_that_the_configuration_does_not_have_is_refused_by_name(home: Home) -> None:
    (home.path / "config.toml").write_text("[docker]\ncall_secs = 3\n", encoding="utf-8")
    with pytest.raises(InvalidArgument, match="call_secs"):
        async with runtime.host(home):
            pass
