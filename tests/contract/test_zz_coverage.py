"""The last test: a unit, event or resource that nothing has exercised in the installed wheel fails the suite."""

from __future__ import annotations

import pytest

from tests.contract.faces import REGISTRY
from tests.world import World

WHOLE = {"test_examples", "test_malformed", "test_resources", "test_prompts", "test_chat", "test_faults"}


def test_everything_that_is_offered_was_exercised(world: World, dockerd: str | None, request: pytest.FixtureRequest) -> None:
    collected = {item.path.stem for item in request.session.items if item.path.parent.name == "contract"}
    if not collected >= WHOLE:
        pytest.skip("a part of the contract suite says nothing about the whole")
    world.note(world.host.counted())
    apps = {
        name for name in REGISTRY if dockerd and name.startswith("app.")
    }  # without Docker most of them are refused, and nothing happens
    missing = sorted(name for name in set(REGISTRY) - apps if not world.ledger.get(name))
    assert not missing, f"nothing has exercised: {', '.join(missing)}"


def test_every_event_of_the_log_is_what_its_schema_says(world: World) -> None:
    after, seen = 0, 0
    while page := world.call("event.list", after=after, limit=1000)["events"]:
        for event in page:
            assert REGISTRY[event["type"]].payload.first_error(event["payload"]) is None, event
        assert [event["seq"] for event in page] == list(range(after + 1, after + 1 + len(page)))
        after, seen = page[-1]["seq"], seen + len(page)
    assert seen == world.call("event.list")["last"]
