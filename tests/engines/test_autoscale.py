"""Services that have more engines while requests wait, and fewer again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aima_lib.errors import InvalidArgument
from aima_lib.infra.home import Home
from aima_lib.services.meter import Meter
from tests.engines.conftest import Hosted
from tests.engines.pacing import asking, paced, serve

pytestmark = [pytest.mark.anyio, pytest.mark.engine]
QUICK = "autoscale_up_seconds = 0.2\nautoscale_down_seconds = 0.6\n"


@pytest.fixture
async def hosted(home: Home, fixtures: Path, tmp_path: Path, anyio_backend: str) -> AsyncIterator[Hosted]:
    """A hosted home whose llama-server takes its time, and whose services scale soon."""
    async with paced(home, fixtures, tmp_path, inference=QUICK) as found:
        yield found


def replicas(hosted: Hosted) -> int:
    found: int = hosted.gateway.services.serving.get("tiny")["ready_replicas"]
    return found


async def test_engines_come_while_requests_wait_and_go_when_they_do_not(hosted: Hosted) -> None:
    await serve(hosted, parallel=1)
    updated = await hosted.call("service.update", service_id="tiny", autoscale={"max": 2, "waiting": 2})
    assert updated["service"]["autoscale"] == {"min": 1, "max": 2, "waiting": 2, "ttft_ms": None}
    async with asking(hosted, 12, wait=0.02) as results:
        await hosted.until(lambda: replicas(hosted) == 2, 30)
        await hosted.until(lambda: hosted.events("service.scaled"))
        heard = len(results)
        await hosted.until(lambda: len(results) > heard + 40)
    await hosted.until(lambda: replicas(hosted) == 1, 30)
    await hosted.until(lambda: len(hosted.events("service.scaled")) == 2)
    assert not [each.error for each in results if each.error]
    steps = [event["payload"] for event in hosted.events("service.scaled")]
    assert [(each["old_replicas"], each["new_replicas"]) for each in steps] == [(1, 2), (2, 1)], "no more steps than that"
    assert "requests wait for 1 engines" in steps[0]["cause"] and "under way" in steps[1]["cause"]
    with pytest.raises(InvalidArgument, match=r"autoscale\.min: 3 is more than max, 2"):
        await hosted.call("service.update", service_id="tiny", autoscale={"min": 3, "max": 2})
    await hosted.call("service.update", service_id="tiny", autoscale={"min": 2, "max": 3})
    await hosted.until(lambda: replicas(hosted) == 2, 30)
    assert (await hosted.call("service.scale", service_id="tiny", replicas=1))["service"]["autoscale"] is None


async def test_an_engine_that_does_not_fit_is_not_asked_for_again_at_once_and_nobody_gives_way(hosted: Hosted) -> None:
    await serve(hosted, parallel=1)
    engines = hosted.gateway.services.engines
    needed = engines.needed_bytes("llama-server", "tiny", {"parallel": 1, "context_length": 256})
    assert needed
    engines.books.limit_bytes = int(needed * 1.5)
    await hosted.call("service.update", service_id="tiny", autoscale={"max": 3, "ttft_ms": 1})
    async with asking(hosted, 2, wait=0.02, tokens=1) as results:
        degraded = await hosted.until(lambda: hosted.events("service.degraded"), 30)
        heard = len(results)
        await hosted.until(lambda: len(results) > heard + 20)  # as long as it took to be refused once
    cause = degraded[0]["payload"]["cause"]
    assert "its time to first token is" in cause and "left of the owner's limit" in cause
    assert not [each.error for each in results if each.error]
    found = (await hosted.call("service.get", service_id="tiny"))["service"]
    assert (found["desired_replicas"], found["ready_replicas"], found["health"]) == (1, 1, "healthy")
    assert len(hosted.events("service.degraded")) == 1 and not hosted.events("service.scaled", "service.unloaded")


def test_a_time_to_first_token_of_few_says_nothing() -> None:
    meter = Meter()
    for milliseconds in (5.0, 1.0, 3.0):
        meter.record(milliseconds, None, failed=False)
    assert meter.ttft_since(0.0, 3) == 3.0 and meter.ttft_since(0.0, 4) is None
    meter.record(None, None, failed=True)
    assert meter.ttft_since(0.0, 4) is None
