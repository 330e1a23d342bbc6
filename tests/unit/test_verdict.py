"""Which entry of a timeline is taken for the cause, where the engines of tests/engines cannot be brought to fail so."""

from __future__ import annotations

from typing import Any

from aima_lib.services.verdict import Entry, has_failed, verdict


def at(second: int, kind: str, subject: str | None = None, **more: Any) -> Entry:
    more = {"source": "event", "text": kind, "order": second, **more}
    return Entry(f"2026-11-26T12:00:{second:02}.000Z", more.pop("source"), kind, subject, more.pop("text"), **more)


DIED = at(30, "engine.error", "e", id="event-3", failed=True, facts={"instance_id": "e", "cause": "it was ended by SIGKILL"})
FULL = {"metric": "memory_fraction", "value": 0.97, "threshold": 0.95}


def test_want_of_memory_before_an_end_by_the_kernel() -> None:
    alarm = at(20, "device.metrics_alert", "cpu", failed=True, facts=FULL)
    again = at(40, "service.failed", "s", id="event-4", causation_id="event-3", failed=True)
    cause, why = verdict([alarm, DIED, again], frozenset({"s"}))
    assert cause is alarm
    assert why == "cpu ran out of memory 10 s before engine.error of e (event-3), which memory, or the kernel, ended"
    long_ago = at(20, "device.metrics_alert", "cpu", failed=True, facts=FULL)
    long_ago.time = "2026-11-26T11:00:00.000Z"
    assert verdict([long_ago, DIED, again], frozenset({"s"}))[0] is DIED
    hot = at(20, "device.metrics_alert", "cpu", failed=True, facts=FULL | {"metric": "temperature_celsius"})
    assert verdict([hot, DIED, again], frozenset({"s"}))[0] is DIED, "heat slows down and kills nothing"


def test_a_loop_of_causes_and_a_cause_of_later_lead_nowhere() -> None:
    one = at(10, "engine.error", "e", id="event-1", causation_id="event-2", failed=True)
    two = at(11, "engine.error", "e", id="event-2", causation_id="event-1", failed=True)
    assert verdict([one, two], frozenset({"e"}))[0] is one


def test_single_requests_count_only_where_nothing_graver_is_known() -> None:
    request = at(50, "inference.request_failed", "e", id="event-9", failed=True)
    assert verdict([DIED, request], frozenset({"e"}))[0] is DIED
    assert verdict([request], frozenset({"e"}))[0] is request


def test_in_a_trace_of_many_calls_only_the_same_call_counts() -> None:
    trace = "0" * 31 + "1"
    other = at(10, "engine.error", "x", id="event-1", correlation_id=trace, causation_id="call-1", failed=True)
    own = at(20, "service.failed", "s", id="event-2", correlation_id=trace, causation_id="call-2", failed=True)
    assert verdict([other, own], frozenset({"s"}))[0] is own
    other.causation_id = "call-2"
    assert verdict([other, own], frozenset({"s"}))[0] is other


def test_which_events_tell_of_a_failure() -> None:
    def event(type: str, **payload: Any) -> bool:
        return has_failed({"type": type, "payload": payload})

    assert event("engine.error") and event("service.failed") and event("device.metrics_alert") and event("pipeline.failed")
    assert not event("inference.request_failed", code="cancelled") and event("inference.request_failed", code="unavailable")
    assert not event("model.verified", valid=True) and event("model.verified", valid=False)
    assert not event("device.health_changed", new_status="healthy") and event("device.health_changed", new_status="critical")
    assert not event("service.started") and not event("engine.start_progress", phase="failed")
