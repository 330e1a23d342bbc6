"""The event log: numbered in order, shown live and replayed, never in the way of whoever publishes."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest

from aima_lib.errors import Internal, InvalidArgument
from aima_lib.gateway import Gateway
from aima_lib.infra import events as module
from aima_lib.infra.events import Events
from aima_lib.infra.retention import Retention
from aima_lib.infra.store import Store
from tests.workshop import events_of

pytestmark = pytest.mark.anyio
DEADLINE = 20


@pytest.fixture
def log(store: Store, tmp_path: Path) -> Events:
    return events_of(store, tmp_path / "schemas", "model.created", "model.deleted", "device.detected")


async def reached(log: Events, number: int) -> None:
    with anyio.fail_after(DEADLINE):
        while log.last < number:
            await anyio.sleep(0.001)


async def take(log: Events, count: int, after: int | None = None, types: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    taken: list[dict[str, Any]] = []
    with anyio.fail_after(DEADLINE):
        async with aclosing(log.follow(after, types)) as following:  # type: ignore[type-var]
            async for event in following:
                taken.append(event)
                if len(taken) == count:
                    break
    return taken


async def test_events_are_numbered_in_the_order_they_were_published(log: Events) -> None:
    for number in range(50):
        log.publish("model.created", {"number": number}, subject=f"m{number}")
    seen = await take(log, 50, after=0)
    assert [event["payload"]["number"] for event in seen] == list(range(50))
    assert [event["seq"] for event in seen] == list(range(1, 51))
    assert seen[3]["subject"] == "m3"
    assert set(seen[0]) == {"seq", "type", "time", "subject", "correlation_id", "causation_id", "payload"}
    assert (seen[3]["correlation_id"], seen[3]["causation_id"]) == ("event-4", None), "nobody asked for it"


async def test_a_follower_starts_from_now_and_wakes_on_news(log: Events) -> None:
    log.publish("model.created", {"number": 0})
    await reached(log, 1)
    seen: list[Any] = []

    async def follow() -> None:
        seen.extend(await take(log, 2))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        await anyio.wait_all_tasks_blocked()
        for number in (1, 2):
            log.publish("model.created", {"number": number})
    assert [event["payload"]["number"] for event in seen] == [1, 2]


async def test_a_cursor_replays_and_goes_on_live(log: Events) -> None:
    for number in range(10):
        log.publish("model.created", {"number": number})
    await reached(log, 10)
    seen: list[Any] = []

    async def follow() -> None:
        seen.extend(await take(log, 6, after=6))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        await anyio.wait_all_tasks_blocked()
        log.publish("model.created", {"number": 10})
        log.publish("model.created", {"number": 11})
    assert [event["seq"] for event in seen] == [7, 8, 9, 10, 11, 12]


async def test_the_log_replays_what_memory_does_not_hold(store: Store, log: Events) -> None:
    for number in range(1200):  # more than one page of the log
        log.publish("model.created", {"number": number})
    await reached(log, 1200)
    after_restart = Events(store, log._types)
    assert after_restart.last == 1200
    seen = await take(after_restart, 1200, after=0)
    assert [event["seq"] for event in seen] == list(range(1, 1201))
    after_restart.publish("model.created", {"number": 0})
    await reached(after_restart, 1201)


async def test_types_are_names_or_whole_domains(log: Events) -> None:
    for type in ("model.created", "device.detected", "model.deleted", "model.created"):
        log.publish(type, {"number": 0})
    await reached(log, 4)
    assert [event["seq"] for event in await take(log, 2, after=0, types=("model.created",))] == [1, 4]
    assert [event["seq"] for event in await take(log, 3, after=0, types=("model.*",))] == [1, 3, 4]
    assert [event["seq"] for event in log.page(0, 10, ("device.*", "model.deleted"))] == [2, 3]
    assert [event["seq"] for event in log.page(2, 1)] == [3]
    assert [event["seq"] for event in log.page(None, 2, ("model.*",))] == [3, 4]
    assert [event["seq"] for event in log.page(None, 2)] == [3, 4]
    assert log.page(0, 10, ("'); DROP TABLE events; --",)) == []


async def test_a_follower_too_slow_reads_on_from_the_log_and_blocks_nobody(log: Events) -> None:
    slow = log.follow(0)
    log.publish("model.created", {"number": 0})
    first = await anext(slow)
    total = 3 * module.KEPT
    with anyio.fail_after(DEADLINE):
        for number in range(1, total + 1):
            log.publish("model.created", {"number": number})  # a plain call: nothing could wait here
        await reached(log, total + 1)
        rest = [await anext(slow) for _ in range(total)]
    assert first["seq"] == 1
    assert [event["seq"] for event in rest] == list(range(2, total + 2))
    assert {event["type"] for event in rest} == {"model.created"}


async def test_a_hundred_subscribers_see_everything_that_a_publisher_says_at_full_speed(log: Events) -> None:
    total, wrong = 3_000, 0

    async def subscribe() -> None:
        nonlocal wrong
        expected = 1
        async for event in log.follow(0):
            wrong += event["seq"] != expected or event["type"] == "lagged"
            expected = event["seq"] + 1
            if expected > total:
                return

    with anyio.fail_after(3 * DEADLINE):
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(subscribe)
            for number in range(total):
                log.publish("model.created", {"number": number})
                if number % 100 == 0:
                    await anyio.lowlevel.checkpoint()
    assert wrong == 0


async def test_who_comes_back_after_the_log_forgot_is_told_what_is_missing(log: Events) -> None:
    for number in range(300):
        log.publish("model.created", {"number": number})
    await reached(log, 300)
    reading = log.follow(10)
    assert (await anext(reading))["seq"] == 11
    await log.prune("2001-01-01T00:00:00.000Z", 100, 1 << 30)
    assert (log.first, log.last) == (201, 300)
    [mark, *rest] = await take(log, 101, after=50)
    assert (mark["type"], mark["seq"]) == ("lagged", 200)
    assert mark["payload"] == {"after": 50, "first": 201, "last": 300}
    assert [event["seq"] for event in rest] == list(range(201, 301))
    assert [event["type"] for event in await take(log, 2, after=200)] == ["model.created"] * 2, "nothing is missing after 200"


async def test_an_empty_log_remembers_its_numbers(store: Store, log: Events) -> None:
    for number in range(3):
        log.publish("model.created", {"number": number})
    await reached(log, 3)
    await log.prune("9999-01-01T00:00:00.000Z", 100, 1 << 30)
    later = Events(store, log._types)
    assert (later.first, later.last, later.bytes()) == (4, 3, 0)
    later.publish("model.created", {"number": 3})
    assert [event["seq"] for event in await take(later, 2, after=1)] == [3, 4]


async def test_what_no_schema_describes_is_not_published(log: Events) -> None:
    with pytest.raises(Internal, match=r"model\.flew cannot be published: no such event"):
        log.publish("model.flew", {"number": 1})
    with pytest.raises(Internal, match=r"model\.created cannot be published: .*number"):
        log.publish("model.created", {"number": "one"})
    with pytest.raises(Internal, match=r"model\.created cannot be published"):
        log.publish("model.created", {"number": 1, "prompt": "secret"})
    assert log.page(0, 10) == []


async def test_a_failing_subscriber_harms_nobody(log: Events, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[int] = []

    def fail(event: dict[str, Any]) -> None:
        raise RuntimeError("a subscriber's own fault")

    log.subscribe(fail)
    leave = log.subscribe(lambda event: heard.append(event["seq"]))
    log.publish("model.created", {"number": 1})
    await reached(log, 1)
    assert heard == [1]
    assert "a subscriber failed on model.created" in caplog.text
    leave()
    log.publish("model.created", {"number": 2})
    await reached(log, 2)
    assert heard == [1]
    assert log.counts["model.created"] == 2


async def test_a_domain_without_its_star_is_refused(hosted: Gateway) -> None:
    with pytest.raises(InvalidArgument, match="no event called 'model'"):
        hosted.follow(types=("model",))
    hosted.follow(types=("model.*",))


async def test_old_events_are_dropped_and_numbers_go_on(store: Store, log: Events) -> None:
    for number in range(300):
        log.publish("model.created", {"number": number})
    await reached(log, 300)
    async with anyio.create_task_group() as tasks:
        await tasks.start(Retention(store, log, {"retention_days": 14, "retention_count": 100, "retention_bytes": 1 << 30}).run)
        with anyio.fail_after(DEADLINE):
            while len(log.page(0, 1000)) != 100:
                await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()
    assert [event["seq"] for event in log.page(0, 2)] == [201, 202]


@pytest.mark.anyio
async def test_the_newest_of_a_kind_are_found_however_long_ago(hosted: Gateway) -> None:
    events = hosted.services.events
    await hosted.call("device.detect")
    for number in range(150):
        events.publish("model.deleted", {"model_id": f"m{number}", "freed_bytes": 0}, subject=f"m{number}")
    await hosted.services.store.submit(lambda db: None)
    found = (await hosted.call("event.list", {"types": ["device.detected"], "limit": 5}))["events"]
    assert found and {event["type"] for event in found} == {"device.detected"}
    newest = (await hosted.call("event.list", {"limit": 2}))["events"]
    assert [event["subject"] for event in newest] == ["m148", "m149"]
