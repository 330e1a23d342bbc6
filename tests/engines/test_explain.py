"""event.explain over what really went wrong: engines that were killed, models that were spoilt, services that somebody stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

import anyio
import pytest

from aima_lib.door import Caller
from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument, NotFound
from aima_lib.infra import trace
from tests.engines.conftest import Hosted
from tests.engines.test_engine import _spoil
from tests.engines.test_service import wait

pytestmark = [pytest.mark.anyio, pytest.mark.engine]
PARENT = f"00-{5:032x}-{9:016x}-01"


def cause_of(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entry that is marked."""
    [marked] = [entry for entry in found["timeline"] if entry["likely_cause"]]
    assert marked["entry"] == found["cause"]["entry"]
    assert f"entry {marked['entry']}" in found["explanation"]
    times = [entry["time"] for entry in found["timeline"]]
    assert times == sorted(times) and [entry["entry"] for entry in found["timeline"]] == list(range(1, len(times) + 1))
    result: Mapping[str, Any] = marked
    return result


def kinds(found: Mapping[str, Any]) -> list[str]:
    return [entry["kind"] for entry in found["timeline"]]


async def spoilt(hosted: Hosted) -> None:
    """A service that could not start, for its model was spoilt."""
    model = await hosted.tiny()
    await anyio.to_thread.run_sync(_spoil, hosted.gateway.services.models.path(hosted.gateway.services.store.get("model", model)))
    with pytest.raises(FailedPrecondition, match="invalid magic") as caught:
        await hosted.call("service.create", model_id=model)
    assert {"unit": "event.explain", "arguments": {"subject": "tiny"}} in caught.value.next


async def test_an_engine_that_was_killed_explains_its_services_restart(hosted: Hosted) -> None:
    await hosted.tiny()
    service = (await hosted.call("service.create", model_id="tiny"))["service"]
    id = service["instance_id"]
    os.kill(hosted.gateway.services.engines.instance(id)["pid"], signal.SIGKILL)
    [restart] = await hosted.until(lambda: hosted.events("service.restarted"), 10)
    await wait(hosted, "tiny", "running")
    [died] = hosted.events("engine.error")
    [stopped] = [event for event in hosted.events("engine.stopped") if event["payload"]["reason"] == "died"]
    again = await hosted.until(lambda: (found := hosted.events("service.started"))[1:] and found[1])
    assert (died["correlation_id"], died["causation_id"]) == (f"event-{died['seq']}", None), "nobody asked for it"
    for event in (stopped, restart, again, hosted.events("engine.started")[1]):
        assert (event["correlation_id"], event["causation_id"]) == (f"event-{died['seq']}",) * 2, event["type"]
    found = await hosted.call("event.explain", subject="tiny")
    marked = cause_of(found)
    assert (marked["kind"], marked["id"], found["subject"]["status"]) == ("engine.error", f"event-{died['seq']}", "running")
    assert "SIGKILL" in marked["text"]
    assert found["explanation"].startswith("The service tiny is running. Nothing is wrong with it now. What went wrong last: entry")
    assert {"device.metrics", "service.restarted", "engine.log", "run.started", "audit.intent"} <= set(kinds(found))
    assert kinds(found).index("engine.error") < kinds(found).index("service.restarted")
    for other in (id, f"event-{restart['seq']}"):
        assert cause_of(await hosted.call("event.explain", subject=other))["id"] == marked["id"]


async def test_a_spoilt_model_explains_the_service_the_run_and_the_model(hosted: Hosted) -> None:
    with trace.carried(trace.read({"traceparent": PARENT})):
        await spoilt(hosted)
    [run] = (await hosted.call("run.list", unit="service.create"))["runs"]
    for subject, kind in (("tiny", "service"), (run["id"], "run"), (f"{5:032x}", "correlation")):
        found = await hosted.call("event.explain", subject=subject)
        assert found["subject"]["kind"] == kind
        marked = cause_of(found)
        assert (marked["source"], marked["subject"]) == ("log", "llamacpp-tiny"), found
        assert "invalid magic" in marked["text"]
        assert "invalid magic" not in found["explanation"], "an engine's words stay where they are marked as such"
        assert "the most telling line" in found["cause"]["why"]
    assert {"unit": "service.start", "arguments": {"service_id": "tiny"}} in (await hosted.call("event.explain", subject="tiny"))["next"]


async def test_a_service_that_somebody_stopped_names_the_call(hosted: Hosted) -> None:
    await hosted.tiny()
    await hosted.call("service.create", model_id="tiny")
    assert (await hosted.call("event.explain", subject="tiny"))["cause"]["entry"] is None
    await hosted.call("service.stop", service_id="tiny")
    found = await hosted.call("event.explain", subject="tiny")
    marked = cause_of(found)
    assert marked["text"] == 'owner called service.stop: {"service_id":"tiny"}'
    since = (await hosted.call("event.list", types=["service.stopped"]))["events"][-1]["time"]
    later = await hosted.call("event.explain", subject="tiny", since=since)
    assert all(entry["time"] >= since for entry in later["timeline"])


async def test_who_may_not_read_logs_or_the_audit_log_is_told_what_was_left_out(hosted: Hosted) -> None:
    await spoilt(hosted)
    [run] = (await hosted.call("run.list", unit="service.create"))["runs"]
    reader = Caller("reader", frozenset({"read"}))
    found = await hosted.gateway.call("event.explain", {"subject": "tiny"}, caller=reader)
    assert {entry["source"] for entry in found["timeline"]} <= {"event", "metric"}, "nor another caller's runs"
    assert {entry["source"] for entry in found["left_out"]} >= {"audit", "logs"}
    assert cause_of(found)["kind"] == "engine.error"
    with pytest.raises(NotFound):
        await hosted.gateway.call("event.explain", {"subject": run["id"]}, caller=reader)
    everything = Caller("auditor", frozenset({"read", "logs", "audit"}))
    found = await hosted.gateway.call("event.explain", {"subject": "tiny"}, caller=everything)
    assert {entry["source"] for entry in found["timeline"]} == {"event", "metric", "log", "audit"}


async def test_it_stays_small_whatever_there_is(hosted: Hosted) -> None:
    await spoilt(hosted)
    for number in range(3000):
        payload = {"service_id": "tiny", "model_id": "tiny", "cause": f"{number} " + "x" * 2000}
        hosted.gateway.services.events.publish("service.failed", payload, subject="tiny")
    await hosted.gateway.services.store.submit(lambda db: None)
    found = await hosted.call("event.explain", subject="tiny", limit=20)
    assert len(found["timeline"]) <= 20
    assert max(len(entry["text"]) for entry in found["timeline"]) == 500
    assert "ask with a higher limit" in found["left_out"][-1]["reason"]
    cause_of(found)


async def test_what_is_not_there_is_said_with_what_is_near(hosted: Hosted) -> None:
    await hosted.tiny()
    with pytest.raises(NotFound, match="nothing called 'tinny'") as caught:
        await hosted.call("event.explain", subject="tinny")
    assert caught.value.hint == "did you mean tiny?"
    for name in ("event-999999999999", "event-" + "9" * 50, "call-0", "event-x", "' OR 1=1"):
        with pytest.raises(NotFound):
            await hosted.call("event.explain", subject=name)
    for since in ("now", ""):
        with pytest.raises(InvalidArgument, match=f"since: '{since}' is no RFC 3339 time"):
            await hosted.call("event.explain", subject="tiny", since=since)
    with pytest.raises(AimaError):
        await hosted.call("event.explain", subject="")
