"""Services that may not live together: who is asked for is loaded, the others of its group make way, and come back if it does not come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from aima_lib import runtime
from aima_lib.errors import FailedPrecondition
from aima_lib.infra.home import Home
from tests.engines.conftest import Hosted
from tests.engines.pacing import Asked, ask, paced, serve, write

pytestmark = [pytest.mark.anyio, pytest.mark.engine]
FOUR = {"parallel": 4, "context_length": 256}


@pytest.fixture
async def hosted(home: Home, fixtures: Path, tmp_path: Path, anyio_backend: str) -> AsyncIterator[Hosted]:
    """A hosted home whose llama-server takes its time."""
    async with paced(home, fixtures, tmp_path) as found:
        yield found


def loaded(hosted: Hosted) -> list[str]:
    """The services of which an engine lives."""
    alive = [each for each in hosted.gateway.services.store.find("instance") if each["status"] in ("starting", "ready")]
    return sorted({each["service_id"] for each in alive})


@asynccontextmanager
async def counted(hosted: Hosted) -> AsyncIterator[list[int]]:
    """How many services were loaded at a time, whenever that changed."""
    seen: list[int] = []

    def changed(kinds: set[str]) -> None:
        seen.append(len(loaded(hosted)))

    hosted.gateway.services.store.watch(changed)
    yield seen


def stops(plan: Any) -> list[str]:
    return [each["id"] for each in plan["changes"]["stops"]]


async def got(hosted: Hosted, service_id: str) -> dict[str, Any]:
    return dict((await hosted.call("service.get", service_id=service_id))["service"])


async def late(hosted: Hosted, model: str, results: list[Asked]) -> None:
    results.append(await ask(hosted, model=model, tokens=5, pace=0.1))


async def test_of_a_group_whoever_is_asked_for_is_loaded_and_never_two(hosted: Hosted) -> None:
    async with counted(hosted) as seen:
        await serve(hosted, "tiny", group="chat")
        await hosted.tiny("other")
        wanted = {"model_id": "other", "engine": "llama-server", "options": FOUR, "group": "chat"}
        assert stops(await hosted.gateway.plan("service.create", wanted)) == ["tiny"]
        results: list[Asked] = []

        async def client(model: str) -> None:
            results.append(await ask(hosted, model=model, tokens=2, pace=0.01))

        async with anyio.create_task_group() as tasks:  # an explicit order and requests at the same time
            tasks.start_soon(lambda: hosted.call("service.create", **wanted))
            await hosted.until(lambda: hosted.gateway.services.store.peek("service", "other"))
            for number in range(8):
                tasks.start_soon(client, ("tiny", "other")[number % 2])
        assert [each.error for each in results] == [None] * 8
        [now] = loaded(hosted)
        [then] = {"tiny", "other"} - {now}
        assert (await got(hosted, then))["unloaded"]
        async with anyio.create_task_group() as tasks:  # one that is stopped may end what it answers before another comes
            tasks.start_soon(lambda: late(hosted, now, results))
            await hosted.until(lambda: hosted.gateway.services.serving.turns.of_service(now).seated)
            tasks.start_soon(lambda: hosted.call("service.stop", service_id=now))
            await hosted.until(lambda: not hosted.gateway.services.serving.get(now)["desired_replicas"])
            await hosted.call("service.start", service_id=then)
        assert results[-1].error is None and results[-1].heard == 5
    assert max(seen) == 1
    reasons = {event["payload"]["reason"] for event in hosted.events("service.unloaded")}
    assert reasons == {"group"} and not hosted.events("service.failed", "service.restarted")


async def test_who_joins_takes_the_place_who_is_pinned_keeps_it_and_the_refusal_says_what_would_help(hosted: Hosted) -> None:
    await serve(hosted, "tiny", group="chat")
    await serve(hosted, "other")
    joins = {"service_id": "other", "group": "chat"}
    assert loaded(hosted) == ["other", "tiny"] and stops(await hosted.gateway.plan("service.update", joins)) == ["tiny"]
    assert (await hosted.call("service.update", **joins))["service"]["group"] == "chat"
    assert loaded(hosted) == ["other"]
    assert (await hosted.call("service.update", service_id="other", group=""))["service"]["group"] is None
    await hosted.call("service.update", service_id="tiny", pinned=True)
    assert (await ask(hosted, model="tiny", tokens=1)).error is None
    assert loaded(hosted) == ["other", "tiny"]
    with pytest.raises(FailedPrecondition, match="tiny is pinned"):
        await hosted.call("service.update", **joins, priority=7)
    after = await got(hosted, "other")
    assert (after["group"], after["priority"], after["status"]) == (None, 50, "running")
    await hosted.gateway.services.serving.put_down("other", 5, unloaded=True)
    await hosted.call("service.update", **joins)  # which is not loaded, so nobody has to leave
    third = {"model_id": "other", "name": "third", "engine": "llama-server", "options": FOUR, "group": "chat"}
    for unit, arguments in (("service.start", {"service_id": "other"}), ("service.create", third)):
        with pytest.raises(FailedPrecondition, match="1 of the group chat may be at a time, and tiny is pinned"):
            await hosted.gateway.plan(unit, arguments)
        with pytest.raises(FailedPrecondition, match="tiny is pinned") as refused:
            await hosted.gateway.call(unit, arguments)
    asked = await ask(hosted, model="other", tokens=1)
    assert isinstance(asked.error, FailedPrecondition) and "tiny is pinned" in str(asked.error)
    assert loaded(hosted) == ["tiny"] and len((await hosted.call("service.list"))["services"]) == 2, "the third was not made"
    await hosted.call(refused.value.next[0]["unit"], **refused.value.next[0]["arguments"])
    start = {"service_id": "other"}
    assert stops(await hosted.gateway.plan("service.start", start)) == ["tiny"]
    await hosted.call("service.start", **start)
    assert loaded(hosted) == ["other"] and stops(await hosted.gateway.plan("service.start", start)) == []


async def test_who_made_way_for_one_that_does_not_start_is_loaded_again(hosted: Hosted) -> None:
    await serve(hosted, "tiny", group="kinds")
    await hosted.tiny("other")
    services, broken = hosted.gateway.services, {**FOUR, "seed": 15}
    with pytest.raises(FailedPrecondition, match="did not start") as refused:
        await hosted.call("service.create", model_id="other", engine="llama-server", options=broken, group="kinds")
    assert "tiny, which made way for it, is loaded again" in str(refused.value.hint)
    await hosted.until(lambda: services.serving.routes.ready("tiny"))
    assert (await got(hosted, "other"))["status"] == "failed" and loaded(hosted) == ["tiny"]
    # the same for memory, where a request brings one up
    await hosted.call("service.stop", service_id="other")
    await services.store.update("service", "other", unloaded=True, group=None)
    needed = services.engines.needed_bytes("llama-server", "tiny", FOUR)
    assert needed
    services.engines.books.limit_bytes = int(needed * 1.5)
    asked = await ask(hosted, model="other", tokens=1)
    assert asked.error is not None and "did not start" in str(asked.error)
    assert [event["payload"]["reason"] for event in hosted.events("service.unloaded")] == ["group", "evicted"]
    await hosted.until(lambda: services.serving.routes.ready("tiny"))
    assert loaded(hosted) == ["tiny"]


async def test_a_group_that_may_have_fewer_after_a_restart_has_fewer(home: Home, fixtures: Path, tmp_path: Path) -> None:
    write(home, tmp_path, inference="groups = {chat = 2}")
    config = home.path / "config.toml"
    config.write_text(config.read_text(encoding="utf-8").replace("grace_seconds = 1", "grace_seconds = 10"), encoding="utf-8")
    async with runtime.host(home) as gateway:
        first = Hosted(gateway, fixtures)
        await serve(first, "tiny", group="chat", priority=60)
        await serve(first, "other", group="chat")
        assert loaded(first) == ["other", "tiny"]
    async with paced(home, fixtures, tmp_path) as second:
        [left] = await second.until(lambda: second.events("service.unloaded"))  # told once its engine has ended
        assert left["payload"]["service_id"] == "other" and loaded(second) == ["tiny"]
        assert (await got(second, "other"))["unloaded"] and (await got(second, "tiny"))["ready_replicas"] == 1
        assert not second.events("service.restarted"), "who stays was adopted"
