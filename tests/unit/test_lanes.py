"""Whose turn it is, where, and when not: the pure parts of routing, and a lane over endpoints that are only records."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from itertools import pairwise
from typing import Any

import anyio
import pytest

from aima_lib.errors import AimaError, FailedPrecondition, ResourceExhausted, Unavailable
from aima_lib.services.affinity import Affinity, marks
from aima_lib.services.breaker import FIRST_SECONDS, LONGEST_SECONDS, Breaker
from aima_lib.services.fair_queue import AHEAD, FairQueue
from aima_lib.services.lane import LEANING_TOKENS, Lane, Limits, Seat
from aima_lib.services.restarts import LONGEST_DELAY, Restarts
from aima_lib.services.routes import Endpoint

LIMITS = Limits(queue=10, queue_of_caller=5, seconds=5)


def endpoint(id: str, slots: int = 1, start: str = "1", health: str = "healthy") -> Endpoint:
    return Endpoint("http://127.0.0.1:1", "key", {"id": id, "started_at": start, "health": health, "model_id": "m"}, None, slots)


def nobody() -> AimaError | None:
    return None


def test_callers_take_turns_and_none_waits_for_more_than_one_of_each_other() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(5):
        queue.put("many", f"many{number}")
    queue.put("few", "few0")
    queue.put("other", "other0")
    queue.put("few", "few1")
    assert (len(queue), queue.of("many"), queue.callers) == (8, 5, 3)
    assert [queue.pop() for _ in range(5)] == ["many0", "few0", "other0", "many1", "few1"]
    queue.put("late", "late0")
    queue.put("many", "again", first=True)
    assert queue.remove("many", "many3") and not queue.remove("many", "many3") and not queue.remove("nobody", "x")
    assert queue.clear() == ["again", "late0", "many2", "many4"]
    with pytest.raises(IndexError):
        queue.pop()


def test_a_higher_priority_goes_first_but_no_more_than_four_times_between_two_turns_of_another() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(20):
        queue.put("low", f"low{number}", rank=0)
        queue.put("more", f"more{number}", rank=0)
    for number in range(20):
        queue.put("high", f"high{number}", rank=2)
    queue.put("mid", "mid0", rank=1)
    order = queue.clear()
    assert order[:3] == ["high0", "high1", "high2"], "whoever comes late and is worth more goes before those who wait"
    for caller in ("low", "more"):
        turns = [place for place, item in enumerate(order) if item.startswith(caller)]
        for before, after in pairwise(turns):
            between = [item.rstrip("0123456789") for item in order[before + 1 : after]]
            assert between.count("high") >= 1 or after > order.index("high19")
            assert between.count("high") <= AHEAD and between.count("mid") <= 1
            assert between.count("more" if caller == "low" else "low") <= 1
        assert turns[0] <= 2 * AHEAD
    assert [item for item in order if item.startswith("high")] == [f"high{number}" for number in range(20)]


def test_no_order_of_coming_and_going_makes_a_caller_wait_longer_than_is_said() -> None:
    for seed in range(200):
        dice, queue, waits = random.Random(seed), FairQueue[tuple[str, int]](), dict[tuple[str, int], Counter[str]]()
        ranks = {caller: dice.randrange(3) for caller in "abcdef"}
        for number in range(150):
            caller = dice.choice("abcdef")
            if dice.random() < 0.6 or not queue:
                queue.put(caller, (caller, number), rank=ranks[caller])
                waits[caller, number] = Counter()
                continue
            gone = queue.head()
            assert queue.pop() == gone
            for line in ranks:  # the next request of each caller that waits has had one more before it
                if mine := min((item for item in waits if item[0] == line and item != gone), key=lambda item: item[1], default=None):
                    waits[mine][gone[0]] += 1
                    assert waits[mine][gone[0]] <= (AHEAD if ranks[gone[0]] > ranks[line] else 1) or gone[0] == line
            del waits[gone]
        assert len(queue.clear()) == len(waits)


def test_a_breaker_opens_after_three_failures_or_one_closed_door_and_lets_one_try() -> None:
    breaker = Breaker()
    for at in (0.0, 1.0):
        breaker.failed(at)
        assert breaker.wait(at) == 0
    breaker.failed(2.0)
    assert breaker.wait(2.0) == FIRST_SECONDS and breaker.wait(2.0 + FIRST_SECONDS) == 0
    breaker.begun()
    assert breaker.wait(100.0) == math.inf, "a trial is under way"
    breaker.spared(100.0)
    assert breaker.wait(100.0) == 0, "whoever tried has left"
    breaker.begun()
    breaker.failed(100.0)
    assert breaker.wait(100.0) == 2 * FIRST_SECONDS
    for _ in range(20):
        breaker.failed(100.0)
    assert breaker.wait(100.0) == LONGEST_SECONDS
    breaker.succeeded()
    assert breaker.is_closed and breaker.wait(0.0) == 0
    breaker.failed(5.0, unreachable=True)
    assert breaker.wait(5.0) == FIRST_SECONDS


def test_a_conversation_goes_on_where_its_beginning_was_read() -> None:
    affinity = Affinity()
    talk: list[dict[str, Any]] = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    affinity.learn(marks({"messages": talk}), "a")
    affinity.learn(marks({"messages": [{"role": "user", "content": "else"}]}), "b")
    assert affinity.best(marks({"messages": [*talk, {"role": "user", "content": "three"}]})) == "a"
    assert affinity.best(marks({"messages": talk, "tools": [{"type": "function"}]})) is None
    assert affinity.best(marks({"prompt": "x" * 2000})) is None
    affinity.learn(marks({"prompt": "x" * 2000}), "c")
    assert affinity.best(marks({"prompt": "x" * 2000 + "more"})) == "c"
    assert marks({"messages": "no list"}) and marks({}) == []


@pytest.mark.anyio
async def test_a_lane_takes_the_emptiest_endpoint_but_leans_to_a_known_prompt() -> None:
    lane = Lane("s", LIMITS)
    lane.update([endpoint("a", 8), endpoint("b", 8)], nobody)
    first = await lane.enter("x", 100, [1])
    second = await lane.enter("x", 10, [2])
    assert {first.endpoint.instance["id"], second.endpoint.instance["id"]} == {"a", "b"}
    known = await lane.enter("x", 10, [1, 3])
    assert known.place is first.place, "its beginning was read there"
    first.place.tokens += LEANING_TOKENS
    assert (await lane.enter("x", 10, [1, 4])).place is second.place, "it has too much to do"
    assert (await lane.enter("x", 10, [9], [second.place.start])).place is first.place
    lane.failed(first, unreachable=True)
    assert (await lane.enter("x", 10, [1])).place is second.place, "it is left alone for a while"


@pytest.mark.anyio
async def test_a_seat_passes_on_and_a_lane_without_endpoints_waits_or_says_why() -> None:
    lane, seats = Lane("s", LIMITS), list[Seat]()

    async def enter(caller: str) -> None:
        seats.append(await lane.enter(caller, 1))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(enter, "x")
        tasks.start_soon(enter, "y")
        await anyio.wait_all_tasks_blocked()
        assert (lane.waiting, lane.seated) == (2, 0)
        lane.update([endpoint("a")], nobody)
        await anyio.wait_all_tasks_blocked()
        assert (lane.waiting, lane.seated, len(seats)) == (1, 1, 1)
        lane.leave(seats[0])
    assert len(seats) == 2 and lane.state()["under_way"] == 1
    lane.update([], lambda: FailedPrecondition("stopped"))
    assert not await lane.emptied(0.01)
    lane.leave(seats[1])
    assert await lane.emptied(1)
    waiting: list[AimaError] = []

    async def refused() -> None:
        try:
            await lane.enter("x", 1)
        except FailedPrecondition as error:
            waiting.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(refused)
        await anyio.wait_all_tasks_blocked()
        lane.update([], lambda: FailedPrecondition("stopped"))
    assert [str(error) for error in waiting] == ["stopped"]


@pytest.mark.anyio
async def test_a_seat_given_to_somebody_who_left_in_that_moment_is_free_again() -> None:
    lane = Lane("s", LIMITS)
    waiting = asyncio.ensure_future(lane.enter("x", 1))
    await anyio.wait_all_tasks_blocked()
    lane.update([endpoint("a")], nobody)
    assert lane.seated == 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (lane.seated, lane.waiting) == (0, 0)


@pytest.mark.anyio
async def test_a_full_queue_refuses_the_caller_or_everybody_and_nobody_waits_for_ever() -> None:
    lane = Lane("s", Limits(queue=3, queue_of_caller=2, seconds=0.2))
    lane.update([endpoint("a")], nobody)
    await lane.enter("x", 1)
    late: list[AimaError] = []

    async def enter(caller: str) -> None:
        try:
            await lane.enter(caller, 1)
        except Unavailable as error:
            late.append(error)

    async with anyio.create_task_group() as tasks:
        for caller in "xxy":
            tasks.start_soon(enter, caller)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(ResourceExhausted, match="2 requests of x wait") as mine:
            await lane.enter("x", 1)
        assert mine.value.details["queue_limit_of_caller"] == 2 and mine.value.retry_after is not None
        with pytest.raises(Unavailable, match="3 requests wait"):
            await lane.enter("z", 1)
    assert len(late) == 3 and "came free within" in str(late[0]) and late[0].details["slots"] == 1


@pytest.mark.anyio
async def test_a_place_is_another_once_its_process_is() -> None:
    lane = Lane("s", LIMITS)
    lane.update([endpoint("a")], nobody)
    old = await lane.enter("x", 1)
    lane.failed(old, unreachable=True)
    lane.update([endpoint("a", start="2")], nobody)
    assert (await lane.enter("x", 1)).place is not old.place
    old.scope = anyio.CancelScope()
    lane.update([endpoint("a", start="2", health="unhealthy"), endpoint("b")], nobody)
    assert (await lane.enter("x", 1)).endpoint.instance["id"] == "b"


def test_a_higher_priority_may_step_ahead_anew_after_each_turn_of_a_lower() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(3):
        queue.put("low", f"low {number}")
    for number in range(4 * AHEAD):
        queue.put("high", f"high {number}", rank=1)
    went = [queue.pop().partition(" ")[0] for _ in range(3 * AHEAD + 3)]
    turns = [place for place, who in enumerate(went) if who == "low"]
    assert [after - before - 1 for before, after in pairwise(turns)] == [AHEAD, AHEAD], went


def test_a_caller_who_leaves_the_queue_leaves_it_whole() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.put("a", "of a")
    queue.put("b", "of b")
    assert queue.remove("a", "of a") and not queue.remove("a", "of a")
    assert (queue.head(), len(queue), queue.callers) == ("of b", 1, 1)


def test_a_service_may_die_again_once_its_deaths_are_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    restarts = Restarts(limit=3, window_seconds=60)
    for number in range(3):
        assert not restarts.is_spent("s")
        restarts.note("s", f"start {number}")
        restarts.note("s", f"start {number}")
    assert restarts.is_spent("s") and restarts.attempt("s") == {"attempt": 3, "delay_seconds": 4.0}
    now[0] += 61
    assert (restarts.deaths("s"), restarts.is_spent("s")) == (0, False)
    many = Restarts(limit=100, window_seconds=600)
    for number in range(9):
        many.note("s", f"start {number}")
    assert many.attempt("s")["delay_seconds"] == LONGEST_DELAY and not many.is_due("s")
    now[0] += LONGEST_DELAY
    assert many.is_due("s")
