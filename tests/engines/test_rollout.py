"""Services that become others while they are asked: nobody is refused, and what does not pass never answers anybody."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aima_lib import runtime
from aima_lib.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from aima_lib.infra.home import Home
from tests.engines.conftest import Hosted
from tests.engines.pacing import asking, paced, pids, serve, write

pytestmark = [pytest.mark.anyio, pytest.mark.engine]
FOUR = {"parallel": 4, "context_length": 256}


@pytest.fixture
async def hosted(home: Home, fixtures: Path, tmp_path: Path, anyio_backend: str) -> AsyncIterator[Hosted]:
    """A hosted home whose llama-server takes its time."""
    async with paced(home, fixtures, tmp_path) as found:
        yield found


async def service(hosted: Hosted) -> dict[str, Any]:
    found: dict[str, Any] = (await hosted.call("service.get", service_id="tiny"))["service"]
    return found


def limit(hosted: Hosted, times: float) -> None:
    """Let engines take as much memory as so many of the service's."""
    engines = hosted.gateway.services.engines
    needed = engines.needed_bytes("llama-server", "tiny", FOUR)
    assert needed
    engines.books.limit_bytes = int(needed * times)


async def test_engines_are_replaced_one_by_one_and_nobody_is_refused(hosted: Hosted) -> None:
    await serve(hosted)
    before, old = await service(hosted), await pids(hosted)
    async with asking(hosted, 8, tokens=2, pace=0.03) as results:
        for seed, said in ((13, "no message"), (14, "within 0.2 s")):
            with pytest.raises(FailedPrecondition, match=said) as refused:
                await hosted.call("service.update", service_id="tiny", options={**FOUR, "seed": seed}, probe_seconds=0.2)
            assert "serves what it served before" in str(refused.value.hint)
            assert refused.value.next[0]["unit"] == "engine.logs"
            await hosted.call(refused.value.next[0]["unit"], **refused.value.next[0]["arguments"])
            assert said in hosted.events("service.rolled_back")[-1]["payload"]["cause"]
        after = await service(hosted)
        assert await pids(hosted) == old and {**after, "metrics": 0} == {**before, "metrics": 0}
        assert not hosted.events("service.updated")
        found = (await hosted.call("service.update", service_id="tiny", options={**FOUR, "seed": 3}))["service"]
    assert not [each.error for each in results if each.error]
    assert (found["status"], found["ready_replicas"], found["options"]["seed"]) == ("running", 1, 3)
    new = await pids(hosted)
    assert not set(new.values()) & set(old.values()) and list(new) == [found["instance_id"]]
    [event] = hosted.events("service.updated")
    assert event["payload"]["old"]["options"] == FOUR and event["payload"]["options"] == {**FOUR, "seed": 3}
    assert (await hosted.call("service.update", service_id="tiny", options={**FOUR, "seed": 3}, pinned=True))["service"]["pinned"]
    assert await pids(hosted) == new and len(hosted.events("service.updated")) == 1, "the same again changes nothing"
    assert (await hosted.call("service.scale", service_id="tiny", replicas=2))["service"]["ready_replicas"] == 2
    assert set(new) < set(await pids(hosted))
    assert not hosted.events("service.restarted", "service.failed")


async def test_where_both_do_not_fit_the_plan_says_so_and_requests_wait(hosted: Hosted) -> None:
    await serve(hosted)
    limit(hosted, 1.5)
    arguments = {"service_id": "tiny", "options": {**FOUR, "seed": 3}}
    plan = await hosted.gateway.plan("service.update", arguments)
    assert "do not fit into memory together" in plan["summary"] and plan["changes"]["stops"] and plan["changes"]["notes"]
    async with asking(hosted, 4, tokens=2, pace=0.02) as results:
        assert (await hosted.call("service.update", **arguments))["service"]["options"]["seed"] == 3
        with pytest.raises(FailedPrecondition, match="no message"):
            await hosted.call("service.update", service_id="tiny", options={**FOUR, "seed": 13})
    assert not [each.error for each in results if each.error]
    found = await service(hosted)
    assert (found["status"], found["options"]["seed"]) == ("running", 3)
    [alive] = await pids(hosted)
    with pytest.raises(ResourceExhausted, match="was not updated"):
        await hosted.call("service.update", service_id="tiny", options={**FOUR, "parallel": 64, "context_length": 100_000})
    assert list(await pids(hosted)) == [alive], "what would not fit in its place either costs nothing"


async def test_a_later_engine_that_fails_takes_the_earlier_back(hosted: Hosted) -> None:
    await serve(hosted, replicas=2)
    engines = hosted.gateway.services.engines
    probe, passed = engines.pass_probe, list[str]()

    async def second_dies(instance_id: str, seconds: float) -> None:
        if passed:
            os.kill(engines.instance(instance_id)["pid"], signal.SIGKILL)
        await probe(instance_id, seconds)
        passed.append(instance_id)

    engines.pass_probe = second_dies  # type: ignore[method-assign]
    async with asking(hosted, 8, tokens=2, pace=0.02) as results:
        with pytest.raises(FailedPrecondition, match="did not pass its probe"):
            await hosted.call("service.update", service_id="tiny", options={**FOUR, "seed": 3})
    assert len(passed) == 1 and not [each.error for each in results if each.error]
    found = await service(hosted)
    assert (found["options"], found["ready_replicas"]) == (FOUR, 2) and set(await pids(hosted)) == {
        "llama-server-tiny",
        "r2.llama-server-tiny",
    }


async def test_who_cancels_or_stops_an_update_leaves_the_service_as_it_was(hosted: Hosted) -> None:
    await serve(hosted)
    old, routes = await pids(hosted), hosted.gateway.services.serving.routes
    wanted = {"service_id": "tiny", "options": {**FOUR, "seed": 3}}
    run = await hosted.gateway.start("service.update", wanted)
    await hosted.until(lambda: len(routes.instances("tiny")) == 2)
    await hosted.call("run.cancel", run_id=run["id"])
    await hosted.until(lambda: hosted.events("service.rolled_back") and len(routes.instances("tiny")) == 1)
    assert await pids(hosted) == old and (await service(hosted))["options"] == FOUR
    run = await hosted.gateway.start("service.update", wanted)
    await hosted.until(lambda: len(routes.instances("tiny")) == 2)
    assert (await hosted.call("service.stop", service_id="tiny"))["service"]["status"] == "stopped"
    ended = (await hosted.call("run.wait", run_id=run["id"]))["run"]
    assert ended["status"] == "failed" and not await pids(hosted)
    found = (await hosted.call("service.update", **wanted))["service"]
    assert (found["status"], found["options"]["seed"]) == ("stopped", 3), "what does not run is only another from now on"


async def test_a_host_that_ends_in_the_middle_goes_on_when_it_is_back(home: Home, fixtures: Path, tmp_path: Path) -> None:
    write(home, tmp_path)
    async with runtime.host(home) as gateway:
        first = Hosted(gateway, fixtures)
        await serve(first)
        run = await gateway.start("service.update", {"service_id": "tiny", "options": {**FOUR, "seed": 3}})
        await first.until(lambda: len(gateway.services.serving.routes.instances("tiny")) == 2)
    async with paced(home, fixtures, tmp_path) as second:
        assert (await second.call("run.wait", run_id=run["id"]))["run"]["status"] == "succeeded"
        found = await service(second)
        assert (found["status"], found["options"]["seed"], len(await pids(second))) == ("running", 3, 1)
        assert not second.events("service.rolled_back")


async def test_what_cannot_be_served_is_refused_before_anything_is_done(hosted: Hosted) -> None:
    await serve(hosted)
    await hosted.call("model.import", path=str(hosted.fixtures / "tiny.gguf"), name="other", mode="copy", type="embedding")
    for changes, said in (
        ({"model_id": "other"}, "which is llm; other is embedding"),
        ({"options": {"dtype": "auto"}}, "no option 'dtype'"),
        ({"engine": "vllm"}, "vllm reads"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            await hosted.gateway.plan("service.update", {"service_id": "tiny", **changes})
        with pytest.raises(InvalidArgument, match=said):
            await hosted.call("service.update", service_id="tiny", **changes)
    assert not hosted.events("service.rolled_back", "service.updated")
