"""What belongs together and what caused what: from a call to its run, to the calls within, to events, and on to what they cause."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anyio
import pytest

from aima_lib.errors import AimaError
from aima_lib.gateway import Gateway
from aima_lib.infra import lineage, trace
from aima_lib.infra.events import Events
from aima_lib.infra.home import Home
from aima_lib.infra.store import Store
from aima_lib.runtime import host
from tests.tiny import write_tiny_gguf
from tests.workshop import agreed, events_of

pytestmark = pytest.mark.anyio
PARENT = f"00-{7:032x}-{9:016x}-01"


async def events(gateway: Gateway, **given: Any) -> list[Any]:
    await gateway.services.store.submit(lambda db: None)
    found: list[Any] = (await gateway.call("event.list", {"after": 0, "limit": 1000, **given}))["events"]
    return found


async def test_what_nobody_asked_for_belongs_to_itself_and_what_it_causes_to_it(store: Store, tmp_path: Path) -> None:
    log: Events = events_of(store, tmp_path / "schemas", "model.created", "model.deleted")
    first = log.publish("model.created", {"number": 1}, subject="a")
    with lineage.after(first):  # its number is not known yet
        assert lineage.ids() == (None, None)
        second = log.publish("model.deleted", {"number": 2}, subject="a")
        with lineage.after(second):
            log.publish("model.created", {"number": 3}, subject="b")
    await store.submit(lambda db: None)
    told = [(event["correlation_id"], event["causation_id"]) for event in log.page(0, 10)]
    assert told == [("event-1", None), ("event-1", "event-1"), ("event-1", "event-2")]
    assert (first.id, second.id, second.correlation_id) == ("event-1", "event-2", "event-1")
    with lineage.after(log.page(2, 1)[0]):
        assert lineage.ids() == ("event-1", "event-3")
    with lineage.after(log.latest("model.deleted", "a")):
        assert lineage.ids() == ("event-1", "event-2")
    assert log.latest("model.deleted", "b") is None and lineage.ids() == (None, None)
    assert [event["seq"] for event in log.page(0, 10, correlation_id="event-1")] == [1, 2, 3]
    assert [event["seq"] for event in log.page(0, 10, ("model.deleted",), correlation_id="event-1")] == [2]
    assert [event["seq"] for event in log.page(0, 10, subject="b", correlation_id="event-1")] == [3]


async def test_a_call_its_run_and_their_events_tell_of_one_another(hosted: Gateway, tmp_path: Path) -> None:
    await hosted.call("model.import", {"path": str(write_tiny_gguf(tmp_path / "tiny.gguf")), "name": "tiny"})
    [run] = (await hosted.call("run.list", {"unit": "model.import"}))["runs"]
    [created] = await events(hosted, types=["model.created"])
    assert re.fullmatch(r"call-[0-9a-f]+-[0-9a-f]{6}", run["correlation_id"])
    assert run["causation_id"] == run["correlation_id"], "the call that started it"
    assert (created["correlation_id"], created["causation_id"]) == (run["correlation_id"], run["id"])
    entries = (await hosted.call("audit.list", {"correlation_id": run["correlation_id"]}))["entries"]
    assert [(entry["entry"], entry["causation_id"]) for entry in entries] == [("intent", run["id"]), ("outcome", run["id"])]
    assert await events(hosted, correlation_id=run["correlation_id"]) == [created]
    assert "traceparent" not in run


async def test_a_callers_trace_is_what_all_its_calls_belong_to(hosted: Gateway) -> None:
    with trace.carried(trace.read({"traceparent": PARENT})):
        for _ in range(2):
            await hosted.call("unit.call", {"name": "device.detect", "arguments": {}})
    found = (await events(hosted, types=["device.detected"]))[-2:]
    assert {event["correlation_id"] for event in found} == {f"{7:032x}"}
    assert len({event["causation_id"] for event in found}) == 2, "each of its own call"


async def test_two_calls_share_nothing(hosted: Gateway) -> None:
    for _ in range(2):
        await hosted.call("device.detect")
    found = (await events(hosted, types=["device.detected"]))[-2:]
    assert len({event["correlation_id"] for event in found}) == 2
    assert all(event["correlation_id"] == event["causation_id"] for event in found)


async def test_a_plan_and_a_refusal_belong_to_their_call(hosted: Gateway, tmp_path: Path) -> None:
    await hosted.call("model.import", {"path": str(write_tiny_gguf(tmp_path / "tiny.gguf")), "name": "tiny"})
    with pytest.raises(AimaError):
        await hosted.call("model.delete", {"model_id": "tiny"})
    await agreed(hosted, "model.delete", {"model_id": "tiny"})
    [deleted] = await events(hosted, types=["model.deleted"])
    refused, *_ = (await hosted.call("audit.list", {"unit": "model.delete", "code": "approval_required"}))["entries"]
    done = (await hosted.call("audit.list", {"unit": "model.delete", "code": "ok"}))["entries"][0]
    assert deleted["correlation_id"] == done["correlation_id"]
    assert refused["correlation_id"] not in (None, done["correlation_id"])


async def test_a_run_taken_up_by_the_next_host_belongs_where_it_began(home: Home, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    async with host(home) as gateway:
        with trace.carried(trace.read({"traceparent": PARENT})):
            await gateway.call("model.import", {"path": str(path), "name": "tiny"})
        [run] = (await gateway.call("run.list", {"unit": "model.import"}))["runs"]
        await agreed(gateway, "model.delete", {"model_id": "tiny"})
        await gateway.services.store.update("run", run["id"], status="running", finished_at=None, result=None)  # as a crash leaves it
    async with host(home) as gateway:
        with anyio.fail_after(20):
            again = (await gateway.call("run.wait", {"run_id": run["id"]}))["run"]
        assert (again["status"], again["attempts"], again["correlation_id"]) == ("succeeded", 2, f"{7:032x}")
        created = (await events(gateway, types=["model.created"]))[-1]
        assert (created["correlation_id"], created["causation_id"]) == (f"{7:032x}", run["id"])
