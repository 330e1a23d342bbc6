"""Requests over engines that die, hang and lag, and over more models than fit. Counts are small here; LOAD multiplies them."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from aima_lib.errors import FailedPrecondition, ResourceExhausted, Unavailable
from aima_lib.infra.home import Home
from tests.engines.conftest import Hosted
from tests.engines.pacing import Asked, ask, crowd, guest, paced, pids, say, serve
from tests.world import within

pytestmark = [pytest.mark.anyio, pytest.mark.engine]
LOAD = int(os.environ.get("LOAD", "1"))


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Mapping[str, str]:
    """More of config.toml: a test's own, by `parametrize(…, indirect=True)`."""
    return {"engines": "", "inference": ""} | getattr(request, "param", {})


@pytest.fixture
async def hosted(home: Home, fixtures: Path, tmp_path: Path, settings: Mapping[str, str], anyio_backend: str) -> AsyncIterator[Hosted]:
    """A hosted home whose llama-server takes its time."""
    async with paced(home, fixtures, tmp_path, **settings) as found:
        yield found


async def test_an_engine_that_is_killed_under_load_fails_only_what_it_had_begun_to_answer(hosted: Hosted) -> None:
    await serve(hosted, parallel=4)
    results: list[Asked] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: crowd(hosted, 32 * LOAD, 3, results, tokens=4, pace=0.02))
        await hosted.until(lambda: len(results) > 20 * LOAD)
        [pid] = (await pids(hosted)).values()
        os.kill(pid, signal.SIGKILL)
    failed = [each for each in results if each.error]
    print(f"killed under load: {len(results)} requests, {len(failed)} failed, all of them past their first token")
    assert len(results) == 32 * LOAD * 3 and len(failed) <= 4
    for each in failed:
        assert each.heard and isinstance(each.error, Unavailable) and "in the middle" in str(each.error), each
    assert (await hosted.call("service.get", service_id="tiny"))["service"]["status"] == "running"


async def test_one_of_three_replicas_that_flaps_costs_nobody_who_had_heard_nothing(hosted: Hosted) -> None:
    await serve(hosted, parallel=2)
    service = (await hosted.call("service.scale", service_id="tiny", replicas=3))["service"]
    assert (service["ready_replicas"], len(service["endpoints"])) == (3, 3)
    results: list[Asked] = []

    async def flap() -> None:
        for _ in range(3):
            await hosted.until(lambda: hosted.gateway.services.engines.instance("r2.llama-server-tiny")["status"] == "ready", 20)
            os.kill(hosted.gateway.services.engines.instance("r2.llama-server-tiny")["pid"], signal.SIGKILL)
            await hosted.until(lambda: hosted.gateway.services.engines.instance("r2.llama-server-tiny")["status"] != "ready", 20)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(flap)
        tasks.start_soon(lambda: crowd(hosted, 8 * LOAD, 60, results, tokens=3, pace=0.02))
    failed = [each for each in results if each.error]
    print(f"one of three flaps: {len(results)} requests, {len(failed)} failed, all of them past their first token")
    assert all(each.heard for each in failed) and len(failed) <= 3 * 2
    await hosted.until(lambda: hosted.events("service.degraded"), 30)
    service = (await hosted.call("service.get", service_id="tiny"))["service"]
    assert (service["status"], service["health"], service["ready_replicas"]) == ("running", "degraded", 2)
    restored = await hosted.call("service.start", service_id="tiny")
    assert restored["service"]["ready_replicas"] == 3
    assert (await hosted.call("service.scale", service_id="tiny", replicas=1))["service"]["ready_replicas"] == 1


async def test_a_request_that_is_the_end_of_two_engines_is_not_given_to_a_third(hosted: Hosted) -> None:
    await serve(hosted, replicas=3)
    before = await pids(hosted)
    asked = await ask(hosted, die=True)
    assert isinstance(asked.error, FailedPrecondition) and "seems to be the cause" in str(asked.error) and asked.error.hint
    died = asked.error.details["instances"]
    assert len(died) == len(set(died)) == 2
    assert asked.error.next == [{"unit": "engine.logs", "arguments": {"instance_id": id}} for id in died]
    await hosted.until(lambda: len(hosted.events("engine.error")) == 2)
    [untouched] = set(before) - set(died)
    assert (await pids(hosted))[untouched] == before[untouched] and psutil.pid_exists(before[untouched])
    assert (await ask(hosted, tokens=1)).error is None, "who asks for less is answered"


async def test_an_engine_that_is_alone_is_not_ended_three_times(hosted: Hosted) -> None:
    await serve(hosted)
    asked = await ask(hosted, die=True)
    assert isinstance(asked.error, FailedPrecondition) and "went away twice" in str(asked.error)
    deaths = await hosted.until(lambda: (found := hosted.events("engine.error"))[1:] and found)
    assert len(deaths) == 2


async def test_who_waits_at_an_engine_that_hangs_is_answered_elsewhere(hosted: Hosted) -> None:
    await serve(hosted, replicas=2)
    [first, _] = (await pids(hosted)).values()
    os.kill(first, signal.SIGSTOP)
    try:
        results: list[Asked] = []
        await crowd(hosted, 8, 2, results, tokens=2)
        print(f"one of two hangs: {len(results)} requests, slowest {max(each.seconds for each in results):.1f} s")
        assert not [each.error for each in results if each.error]
        dead = await hosted.until(lambda: hosted.events("engine.error"), 20)
        assert "answered no probe" in dead[-1]["payload"]["cause"]
    finally:
        if psutil.pid_exists(first):
            os.kill(first, signal.SIGCONT)
    await hosted.until(lambda: hosted.gateway.services.serving.get("tiny")["ready_replicas"] == 2, 20)


async def test_a_hung_engine_that_is_alone_is_replaced_and_the_request_is_answered(hosted: Hosted) -> None:
    await serve(hosted)
    [pid] = (await pids(hosted)).values()
    os.kill(pid, signal.SIGSTOP)
    answer = await ask(hosted, tokens=2)
    print(f"the only engine hangs: answered after {answer.seconds:.1f} s")
    assert answer.error is None and answer.heard


async def test_a_slow_engine_gets_less_to_do(hosted: Hosted) -> None:
    await serve(hosted, parallel=2, replicas=2)
    results: list[Asked] = []
    [slow, _] = (await pids(hosted)).values()
    async with anyio.create_task_group() as tasks:

        async def hamper() -> None:
            while True:  # a tenth of the time is left to it
                os.kill(slow, signal.SIGSTOP)
                await anyio.sleep(0.18)
                os.kill(slow, signal.SIGCONT)
                await anyio.sleep(0.02)

        tasks.start_soon(hamper)
        try:
            await crowd(hosted, 8, 12, results, tokens=4, pace=0.01)
        finally:
            tasks.cancel_scope.cancel()
            os.kill(slow, signal.SIGCONT)
    done = Counter(event["payload"]["instance_id"] for event in await finished(hosted, len(results)))
    print(f"one of two is slow: {dict(done)}")
    assert done["r2.llama-server-tiny"] > 1.3 * done["llama-server-tiny"]


async def finished(hosted: Hosted, count: int) -> list[dict[str, Any]]:
    return await hosted.until(lambda: (found := hosted.events("inference.request_completed"))[count - 1 :] and found)


async def limited(hosted: Hosted, times: float) -> None:
    """Let engines plan with so many times what the service `tiny` takes."""
    engines, service = hosted.gateway.services.engines, hosted.gateway.services.serving.get("tiny")
    needed = engines.needed_bytes(service["engine"], service["model_id"], service["options"])
    assert needed is not None
    engines.books.limit_bytes = int(needed * times)


async def test_two_models_that_do_not_fit_together_take_turns(hosted: Hosted) -> None:
    await serve(hosted, "tiny", idle_unload_seconds=600)
    await limited(hosted, 1.5)
    await hosted.tiny("other")
    with pytest.raises(ResourceExhausted) as refused:
        await serve(hosted, "other")
    assert {"unit": "service.stop", "arguments": {"service_id": "tiny"}} in refused.value.next
    assert refused.value.details["would_fit_without"] == ["tiny"]
    await hosted.call("service.stop", service_id="tiny")
    await hosted.call("service.start", service_id="other")
    await hosted.gateway.services.serving.put_down("other", 5, unloaded=True)
    await hosted.call("service.start", service_id="tiny")
    results: list[Asked] = []
    began = time.monotonic()

    async def client(model: str) -> None:
        for _ in range(3):
            results.append(await ask(hosted, model=model, tokens=2, pace=0.01))

    async with anyio.create_task_group() as tasks:
        for number in range(64 * LOAD):
            tasks.start_soon(client, ("tiny", "other")[number % 2])
    took, swaps = time.monotonic() - began, hosted.gateway.services.serving.residence.swaps
    print(f"{64 * LOAD} clients over two models that do not fit together: {len(results)} answers in {took:.1f} s, {swaps} swaps")
    assert [each.error for each in results] == [None] * (64 * LOAD * 3)
    assert 1 <= swaps <= took / 0.5 + 1
    assert {event["payload"]["reason"] for event in hosted.events("service.unloaded")} == {"evicted"}


async def test_a_start_makes_room_where_it_is_told_to_and_who_made_way_comes_back_if_it_fails(hosted: Hosted) -> None:
    await serve(hosted, "tiny")
    await hosted.tiny("other")
    services, options = hosted.gateway.services, {"parallel": 4, "context_length": 256}
    order = {"model_id": "other", "engine": "llama-server", "options": options}
    await limited(hosted, 1.5)
    assert (await hosted.gateway.plan("service.create", order))["changes"]["notes"] == [
        "it does not fit into the memory that is free now: it would with make_room, which unloads tiny"
    ]
    plan = await hosted.gateway.plan("service.create", {**order, "make_room": True})
    assert [each["id"] for each in plan["changes"]["stops"]] == ["tiny"]
    with pytest.raises(ResourceExhausted) as refused:
        await hosted.call("service.create", **order)
    call = next(each for each in refused.value.next if each["unit"] == "service.start")
    assert call["arguments"] == {"service_id": "other", "make_room": True}
    said = list[Mapping[str, Any]]()

    async def send(item: Mapping[str, Any]) -> None:
        said.append(item)

    started = await hosted.gateway.call(call["unit"], call["arguments"], send=send)
    assert started["service"]["status"] == "running" and services.serving.get("tiny")["unloaded"]
    assert "tiny leaves: other takes its memory" in [each["message"] for each in said]
    assert (await ask(hosted, model="tiny", tokens=1)).error is None, "the next request brings it back"
    broken = {"model_id": "other", "name": "broken", "engine": "llama-server", "options": {**options, "seed": 15}, "make_room": True}
    with pytest.raises(FailedPrecondition, match="did not start") as failed:
        await hosted.call("service.create", **broken)
    assert "tiny, which made way for it, is loaded again" in str(failed.value.hint)
    await hosted.until(lambda: services.serving.routes.ready("tiny"))
    await hosted.call("service.update", service_id="tiny", pinned=True)
    plan = await hosted.gateway.plan("service.start", {"service_id": "other", "make_room": True})
    assert plan["changes"]["notes"] == ["it does not fit into memory, whoever may be unloaded"] and plan["changes"]["stops"] == []
    with pytest.raises(ResourceExhausted) as pinned:
        await hosted.call("service.start", service_id="other", make_room=True)
    assert "would_fit_without" not in pinned.value.details and services.serving.routes.ready("tiny")


async def test_who_is_pinned_or_worth_more_does_not_give_way(hosted: Hosted) -> None:
    await serve(hosted, "other")
    await hosted.gateway.services.serving.put_down("other", 5, unloaded=True)
    await serve(hosted, "tiny", pinned=True)
    await limited(hosted, 1.5)
    refused = await ask(hosted, model="other", tokens=1)
    assert isinstance(refused.error, ResourceExhausted) and "would_fit_without" not in refused.error.details
    await hosted.call(
        "service.create", model_id="tiny", engine="llama-server", options={"parallel": 4, "context_length": 256}, pinned=False
    )
    assert (await ask(hosted, model="other", tokens=1)).error is None
    assert (await hosted.call("service.get", service_id="tiny"))["service"]["unloaded"]


async def test_a_caller_with_one_request_does_not_wait_for_another_ones_thousand(hosted: Hosted) -> None:
    await serve(hosted, parallel=2)
    many, done = 200 * LOAD, list[str]()

    async def one(name: str) -> None:
        answer = await ask(hosted, guest(name), wait=0.02)
        assert answer.error is None
        done.append(name)

    async with anyio.create_task_group() as tasks:
        for _ in range(many):
            tasks.start_soon(one, "many")
        await hosted.until(lambda: len(done) >= 10)
        before, began = len(done), time.monotonic()
        await one("one")
        after, waited = len(done) - before - 1, time.monotonic() - began
        rest = many - len([name for name in done if name == "many"])
        print(f"one beside {many}: {after} others were answered meanwhile, {rest} still waited; {waited * 1000:.0f} ms")
        assert after <= 2 * 2 + 1  # those under way, and one turn of the other caller for each seat


async def test_a_key_of_a_higher_priority_goes_first_and_starves_nobody(hosted: Hosted) -> None:
    await serve(hosted, parallel=1)
    keys = {}
    for name, more in (("desk", {"priority": "high"}), ("batch", {"priority": "low"}), ("other", {})):
        made = (await hosted.call("key.create", name=name, scopes=["inference"], **more))["key"]
        assert made["priority"] == more.get("priority", "normal")
        keys[name] = guest(made["id"])
    done = list[str]()

    async def one(name: str, wait: float) -> None:
        assert (await ask(hosted, keys[name], wait=wait)).error is None
        done.append(name)

    async with anyio.create_task_group() as tasks:
        for name, times, wait in (("other", 1, 1.5), ("batch", 8, 0.0), ("other", 7, 0.0), ("desk", 16, 0.0)):
            for _ in range(times):
                tasks.start_soon(one, name, wait)
        lane = hosted.gateway.services.serving.turns.of_service("tiny")
        await hosted.until(lambda: lane.waiting == 31)
        assert not done
    assert done[1] == "desk", "though it came last"
    turns = [place for place, name in enumerate(done) if name == "batch"]
    between = [done[before + 1 : after] for before, after in pairwise(turns)]
    assert all(each.count("desk") <= 4 and each.count("other") <= 4 for each in between), done
    assert turns[0] <= 9 and len(done) == 32


@pytest.mark.parametrize("settings", [{"inference": "queue_limit = 6\nqueue_limit_per_caller = 4\nqueue_seconds = 5"}], indirect=True)
async def test_a_queue_that_is_full_says_so_with_its_state(hosted: Hosted) -> None:
    await serve(hosted, parallel=1)
    results: dict[str, list[Asked]] = {"a": [], "b": []}

    async def one(name: str) -> None:
        results[name].append(await ask(hosted, guest(name), wait=0.3))

    async with anyio.create_task_group() as tasks:
        for name in "aaaaaaaabbbb":
            tasks.start_soon(one, name)
    [errors, others] = ([each.error for each in results[name] if each.error] for name in "ab")
    assert len(errors) == 3 and all(isinstance(error, ResourceExhausted) for error in errors)
    assert len(others) == 2 and all(isinstance(error, Unavailable) for error in others)
    for error in [*errors, *others]:
        assert error.retry_after is not None and error.details["slots"] == 1 and error.details["queue_depth"] >= 4


async def test_clients_that_leave_in_the_middle_free_their_seats(hosted: Hosted) -> None:
    await serve(hosted, parallel=50)
    count, heard = 100 * LOAD, 0

    async def leave() -> None:
        async def send(item: Mapping[str, Any]) -> None:
            nonlocal heard
            heard += 1
            if not scope.cancel_called:
                scope.cancel()

        with anyio.CancelScope() as scope:
            await hosted.gateway.call("inference.chat", {"model": "tiny", "messages": say(tokens=1000, pace=0.05)}, send=send)

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(leave)
    with within(0.5):
        answer = await ask(hosted, tokens=1)
    lane = hosted.gateway.services.serving.turns.lanes["tiny"]
    print(f"{count} left in the middle: a seat after {answer.seconds * 1000:.0f} ms")
    assert answer.error is None and (lane.seated, lane.waiting) == (0, 0)
    await hosted.until(lambda: hosted.gateway.services.serving.meters["tiny"].open == 0)


def left_of(home: Home) -> tuple[int, int, list[str]]:
    """Processes that name the home, sockets of this one, and files of instances."""
    named = [each for each in psutil.process_iter(["cmdline"]) if str(home.path) in " ".join(each.info["cmdline"] or ())]
    files = sorted(str(path.relative_to(home.path)) for path in (home.path / "instances").rglob("*"))
    return len(named), len(psutil.Process().net_connections()), files


async def test_a_service_that_starts_and_stops_leaves_nothing(hosted: Hosted, home: Home) -> None:
    await serve(hosted)
    await hosted.call("service.stop", service_id="tiny")
    before = left_of(home)
    for _ in range(4 * LOAD):
        await hosted.call("service.start", service_id="tiny")
        assert (await ask(hosted, tokens=1)).error is None
        await hosted.call("service.stop", service_id="tiny")
    await hosted.until(lambda: left_of(home)[1] <= before[1])  # a socket that is closed ends with the loop's next turn
    after = left_of(home)
    print(f"{4 * LOAD} starts and stops: {after[0]} processes, {after[1]} sockets, {len(after[2])} files, as before")
    assert (after[0], after[2]) == (0, before[2])


async def test_what_is_being_answered_may_end_before_its_service_stops(hosted: Hosted) -> None:
    await serve(hosted)
    results: list[Asked] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: crowd(hosted, 1, 1, results, tokens=5, pace=0.1))
        await hosted.until(lambda: hosted.gateway.services.serving.turns.of_service("tiny").seated)
        await hosted.call("service.stop", service_id="tiny")
    assert results[0].error is None and results[0].heard == 5


async def test_a_service_is_unloaded_when_idle_and_loaded_by_the_next_request(hosted: Hosted) -> None:
    await serve(hosted, idle_unload_seconds=1)
    [unloaded] = await hosted.until(lambda: hosted.events("service.unloaded"), 20)
    assert (unloaded["payload"]["reason"], unloaded["payload"]["service_id"]) == ("idle", "tiny")
    service = (await hosted.call("service.get", service_id="tiny"))["service"]
    assert (service["status"], service["unloaded"]) == ("stopped", True)
    answers: list[Asked] = []
    await crowd(hosted, 6, 1, answers, tokens=2)
    assert [each.error for each in answers] == [None] * 6
    await hosted.tiny("other")
    answer = await ask(hosted, model="other", tokens=1)
    assert answer.error is None
    other = (await hosted.call("service.get", service_id="other"))["service"]
    assert other["idle_unload_seconds"] == 300
