"""Runs that begin by themselves: when a schedule is due, what is made up for, and that a moment or an event begins one run."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from aima_lib.errors import InvalidArgument
from aima_lib.flows import clockwork
from aima_lib.flows.journal import Journal
from aima_lib.gateway import Gateway
from aima_lib.infra.clock import stamp
from aima_lib.infra.home import Home
from aima_lib.runtime import host
from tests.served import registry
from tests.toys import HANDLERS, TOYS, done, pipeline, step
from tests.workshop import agreed

pytestmark = pytest.mark.anyio
NOON = datetime(2026, 3, 29, 12, 0, 30, tzinfo=UTC)


def due(missed: str, minutes: int, cron: str = "*/5 * * * *", **more: str) -> list[str]:
    found = clockwork.due({"cron": cron, "missed": missed, **more}, NOON - timedelta(minutes=minutes), NOON)
    return [f"{moment:%H:%M}" for moment in found]


@pytest.mark.parametrize(
    ("missed", "minutes", "expected"),
    [
        ("skip", 21, ["12:00"]),  # half a minute ago: late, not missed
        ("once", 21, ["12:00"]),
        ("all", 21, ["11:40", "11:45", "11:50", "11:55", "12:00"]),
        ("skip", 0, []),
        ("all", 0, []),
    ],
)
def test_what_was_missed_is_made_up_for_as_the_schedule_says(missed: str, minutes: int, expected: list[str]) -> None:
    assert due(missed, minutes) == expected


def test_of_many_missed_moments_one_is_made_up_for_where_none_is_fresh() -> None:
    assert due("once", 600, "15 * * * *") == ["11:15"]
    assert due("skip", 600, "15 * * * *") == []
    assert len(due("all", 525_600, "* * * * *")) == clockwork.MOST


def test_a_time_zone_is_followed_into_summer_time() -> None:
    paris = {"cron": "30 2 * * *", "timezone": "Europe/Paris"}
    moment = clockwork.upcoming(paris, datetime(2026, 3, 27, 12, tzinfo=UTC))
    assert moment == datetime(2026, 3, 28, 1, 30, tzinfo=UTC)
    assert clockwork.upcoming(paris, datetime(2026, 3, 30, tzinfo=UTC)) == datetime(2026, 3, 30, 0, 30, tzinfo=UTC)


@pytest.fixture
def place(home: Home, tmp_path: Path) -> tuple[Home, Path, Any]:
    known, name = registry(tmp_path, TOYS, HANDLERS)
    sys.modules[f"{name}.only"].FOLDER[0] = str(tmp_path)
    return home, tmp_path, known


@asynccontextmanager
async def hosting(place: tuple[Home, Path, Any]) -> AsyncIterator[Gateway]:
    with anyio.fail_after(20):
        async with host(place[0], registry=place[2]) as gateway:
            yield gateway


async def runs(gateway: Gateway, count: int) -> list[Mapping[str, Any]]:
    """The runs that have begun by themselves, once there are so many and they have ended."""
    while True:
        found = [run for run in gateway.services.store.find("run", unit="pipeline.run") if run["status"] != "running"]
        if len(found) >= count:
            return found
        await anyio.sleep(0.01)


async def test_a_schedule_runs_and_a_moment_begins_one_run(place: tuple[Home, Path, Any]) -> None:
    config = {"schedule": {"cron": "* * * * * *", "input": {"x": "tick"}}}
    async with hosting(place) as gateway:
        await gateway.call("pipeline.create", pipeline(step("a", "toy.look", value="${input.x}"), name="tick", config=config))
        first = await runs(gateway, 2)
        cursor = Journal(gateway.services.store).cursors()["tick", "schedule"]
    assert [run["result"]["output"]["a"]["value"] for run in first[:2]] == ["tick", "tick"]
    assert len({run["id"] for run in first}) == len(first)
    async with hosting(place) as gateway:  # as if the host had died before it wrote down how far it was
        earlier = datetime.fromisoformat(cursor) - timedelta(seconds=1)
        await Journal(gateway.services.store).move("tick", {"schedule": stamp(earlier)})
        await agreed(gateway, "pipeline.delete", {"pipeline_id": "tick"})
        while Journal(gateway.services.store).cursors():
            await anyio.sleep(0.01)
        ended = await runs(gateway, 2)
        keys = [run["idempotency_key"] for run in ended]
    assert len(keys) == len(set(keys))


async def test_an_event_begins_one_run_over_the_end_of_a_host(place: tuple[Home, Path, Any]) -> None:
    when = 'event("pipeline.created") and event.subject == "wanted"'
    given = {"who": "${event.payload.by}", "name": "${event.subject}"}
    document = pipeline(
        step("a", "toy.once", value="${input.name} by ${input.who}"), name="listener", output="${steps.a.value}",
        config={"triggers": [{"when": when, "input": given}]},
    )  # fmt: skip
    async with hosting(place) as gateway:
        await gateway.call("pipeline.create", document)
        for name in ("other", "wanted"):
            await gateway.call("pipeline.create", pipeline(step("b", "toy.look"), name=name))
        [run] = await runs(gateway, 1)
        assert run["result"]["output"] == "wanted by owner"
        assert run["caller"] == "owner"
        [cause] = gateway.services.events.page(0, 10, ["pipeline.created"], subject="wanted")
        assert run["correlation_id"] == cause["correlation_id"]
        while (cursor := Journal(gateway.services.store).cursors()["listener", "events"]) == "0":
            await anyio.sleep(0.01)
        await Journal(gateway.services.store).move("listener", {"events": str(max(int(cursor) - 3, 0))})
    async with hosting(place) as gateway:
        await gateway.call("pipeline.create", pipeline(step("c", "toy.look"), name="wanted"))
        assert len(await runs(gateway, 2)) == 2
    assert done(place[1]) == ["a", "a"]


async def test_a_trigger_may_do_what_its_maker_may_and_ends_with_its_key(place: tuple[Home, Path, Any]) -> None:
    document = pipeline(step("a", "toy.once"), name="listener", config={"triggers": [{"when": 'event("pipeline.created")'}]})
    async with hosting(place) as gateway:
        made = await agreed(gateway, "key.create", {"name": "writer", "scopes": ["read", "write", "inference"]})
        writer = gateway.services.keys.caller(made["secret"])
        await gateway.call("pipeline.create", document, caller=writer)
        await gateway.call("pipeline.create", pipeline(step("b", "toy.look"), name="first"))
        [run] = await runs(gateway, 1)
        assert (run["caller"], run["scopes"]) == ("writer", ["inference", "read", "write"])
        await agreed(gateway, "key.revoke", {"key_id": "writer"})
        before = int(Journal(gateway.services.store).cursors()["listener", "events"])
        await gateway.call("pipeline.create", pipeline(step("b", "toy.look"), name="second"))
        while int(Journal(gateway.services.store).cursors()["listener", "events"]) <= before:
            await anyio.sleep(0.01)
        assert len(await runs(gateway, 1)) == 1


@pytest.mark.parametrize(
    ("schedule", "path"), [({"cron": "61 * * * *"}, "cron"), ({"cron": "0 0 * * *", "timezone": "Mars/Base"}, "timezone")]
)
async def test_a_schedule_that_can_never_be_is_refused(hosted: Gateway, schedule: Mapping[str, Any], path: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await hosted.call("pipeline.create", {"name": "p", "steps": [{"id": "a", "type": "model.list"}], "config": {"schedule": schedule}})
    assert raised.value.details["issues"][0]["path"] == f"config.schedule.{path}"
