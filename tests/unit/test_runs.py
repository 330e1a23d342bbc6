"""Runs: recorded before they start, told apart from their callers, taken up again after a crash."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from aima_lib.door import OWNER, Caller
from aima_lib.errors import AlreadyExists, Cancelled, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from aima_lib.infra.progress import Send, silent
from aima_lib.infra.store import Store
from aima_lib.registry import Registry, Unit
from aima_lib.runs import Runs, outcome_of
from tests.workshop import OPEN, unit, write_schemas

pytestmark = pytest.mark.anyio
DEADLINE = 20
FETCH = unit("command", "thing.fetch", durable=True, inputSchema=OPEN)
ONCE = unit("command", "thing.once", durable=True, inputSchema=OPEN, annotations={"readOnlyHint": False, "idempotentHint": False})


class Work:
    """What the runs of a test do: count, say so, and wait until they are let go."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, dict[str, Any], Caller]] = []
        self.gate = anyio.Event()
        self.failure: Exception | None = None

    async def __call__(self, unit: Unit, arguments: Mapping[str, Any], caller: Caller, run_id: str, send: Send) -> Mapping[str, Any]:
        self.begun.append((run_id, dict(arguments), caller))
        await send({"phase": "working", "message": "half way", "completed": 1, "total": 2})
        await self.gate.wait()
        if self.failure:
            raise self.failure
        return {"answer": 42}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.described(write_schemas(tmp_path / "schemas", FETCH, ONCE))


@asynccontextmanager
async def hosting(store: Store, registry: Registry, work: Work) -> AsyncIterator[Runs]:
    """One life of a host."""
    runs = Runs(store, registry)
    async with anyio.create_task_group() as tasks:
        runs.open(tasks, work)
        yield runs
        tasks.cancel_scope.cancel()


async def begun(work: Work, count: int = 1) -> None:
    with anyio.fail_after(DEADLINE):
        while len(work.begun) < count:
            await anyio.sleep(0.001)


async def test_a_run_is_on_record_before_it_works_and_ends_with_its_result(store: Store, registry: Registry) -> None:
    work, seen = Work(), []

    async def send(item: Mapping[str, Any]) -> None:
        seen.append(item["message"])
        work.gate.set()

    async with hosting(store, registry, work) as runs:
        run = await runs.start(registry["thing.fetch"], {"a": 1}, OWNER, None)
        assert store.get("run", run["id"])["status"] == "running"
        ended = await runs.follow(run["id"], send)
    assert seen == ["half way"]
    assert (ended["status"], ended["result"], ended["error"], ended["attempts"]) == ("succeeded", {"answer": 42}, None, 1)
    assert ended["progress"] == {"phase": "working", "message": "half way", "completed": 1, "total": 2}
    assert outcome_of(ended) == {"answer": 42}
    assert store.get("run", run["id"])["finished_at"]


async def test_a_caller_that_leaves_does_not_end_the_run(store: Store, registry: Registry) -> None:
    work = Work()
    async with hosting(store, registry, work) as runs:
        run = await runs.start(registry["thing.fetch"], {}, OWNER, None)
        with anyio.move_on_after(0.01):
            await runs.follow(run["id"], silent)
        assert (await runs.follow(run["id"], silent, 0))["status"] == "running"
        work.gate.set()
        assert (await runs.follow(run["id"], silent))["status"] == "succeeded"


async def test_a_caller_that_leaves_at_once_leaves_no_run_that_nobody_works_on(store: Store, registry: Registry) -> None:
    work = Work()
    work.gate.set()
    async with hosting(store, registry, work) as runs:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runs.start, registry["thing.fetch"], {}, OWNER, "left")
            await anyio.sleep(0)
            tasks.cancel_scope.cancel()
        await store.submit(lambda db: None)
        for run in store.find("run"):
            assert (await runs.follow(run["id"], silent))["status"] == "succeeded"


async def test_the_same_key_and_input_is_the_same_run(store: Store, registry: Registry) -> None:
    work, unit = Work(), registry["thing.fetch"]
    async with hosting(store, registry, work) as runs:
        found: list[str] = []

        async def start() -> None:
            found.append((await runs.start(unit, {"a": 1}, OWNER, "tuesday"))["id"])

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(start)
        assert set(found) == {"thing-fetch-tuesday"}
        work.gate.set()
        await runs.follow(found[0], silent)
        again = await runs.start(unit, {"a": 1}, OWNER, "tuesday")
        assert again["result"] == {"answer": 42}
        with pytest.raises(AlreadyExists, match="tuesday") as raised:
            await runs.start(unit, {"a": 2}, OWNER, "tuesday")
    assert raised.value.next == [{"unit": "run.get", "arguments": {"run_id": "thing-fetch-tuesday"}}]
    assert len(work.begun) == 1


async def test_a_key_that_is_no_slug_still_makes_a_readable_id(store: Store, registry: Registry) -> None:
    work = Work()
    work.gate.set()
    async with hosting(store, registry, work) as runs:
        first = await runs.start(registry["thing.fetch"], {}, OWNER, "Ключ 1/2")
        other = await runs.start(registry["thing.fetch"], {}, OWNER, "Ключ 1/3")
        assert first["id"] != other["id"]
        assert first["id"].isascii()
        assert (await runs.start(registry["thing.fetch"], {}, OWNER, "Ключ 1/2"))["id"] == first["id"]


async def test_cancel_waits_until_it_has_stopped_and_says_why(store: Store, registry: Registry) -> None:
    work = Work()
    async with hosting(store, registry, work) as runs:
        run = await runs.start(registry["thing.fetch"], {}, OWNER, None)
        await begun(work)
        ended = await runs.cancel(run["id"])
        assert (ended["status"], ended["error"]["code"]) == ("cancelled", "cancelled") and "begins anew" in ended["error"]["hint"]
        assert await runs.cancel(run["id"]) == ended
        with pytest.raises(Cancelled):
            outcome_of(ended)
        with pytest.raises(NotFound):
            await runs.cancel("thing-fetch-nobody")


async def test_a_cancel_outlives_the_host(store: Store, registry: Registry) -> None:
    work = Work()
    async with hosting(store, registry, work) as runs:
        run = await runs.start(registry["thing.fetch"], {}, OWNER, None)
        await begun(work)
        await store.update("run", run["id"], cancel_requested_at="2026-01-01T00:00:00.000Z")  # and then the host died
    later = Work()
    async with hosting(store, registry, later) as runs:
        assert await runs.recover() == []
        ended = runs.get(run["id"])
    assert (ended["status"], ended["error"]["code"]) == ("cancelled", "cancelled")
    assert later.begun == []


async def test_a_run_that_fails_keeps_its_error(store: Store, registry: Registry) -> None:
    work = Work()
    work.failure = InvalidArgument("no such repo", hint="look again", details={"repo": "x"})
    work.gate.set()
    async with hosting(store, registry, work) as runs:
        run = await runs.start(registry["thing.fetch"], {}, OWNER, None)
        ended = await runs.follow(run["id"], silent)
    assert ended["status"] == "failed"
    with pytest.raises(InvalidArgument, match="no such repo") as raised:
        outcome_of(ended)
    assert (raised.value.hint, raised.value.details) == ("look again", {"repo": "x"})


async def test_after_a_crash_what_can_go_on_goes_on_and_the_rest_is_closed(store: Store, registry: Registry) -> None:
    work, someone = Work(), Caller("someone", frozenset({"read", "write"}))
    async with hosting(store, registry, work) as runs:
        again = await runs.start(registry["thing.fetch"], {"a": 1}, someone, "k")
        never = await runs.start(registry["thing.once"], {"b": 2}, OWNER, None)
        await begun(work, 2)
    assert {store.get("run", run["id"])["status"] for run in (again, never)} == {"running"}  # the host went down, not the runs
    later = Work()
    later.gate.set()
    async with hosting(store, registry, later) as runs:
        assert await runs.recover() == [again["id"]]
        ended = await runs.follow(again["id"], silent)
        assert (ended["status"], ended["attempts"]) == ("succeeded", 2)
        closed = runs.get(never["id"])
    assert later.begun == [(again["id"], {"a": 1}, someone)]
    assert closed["status"] == "interrupted"
    explain = {"unit": "event.explain", "arguments": {"subject": never["id"]}}
    assert closed["error"]["next"] == [{"unit": "thing.once", "arguments": {"b": 2}}, explain]
    with pytest.raises(Unavailable, match=r"thing\.once, which may not be done twice"):
        outcome_of(closed)


async def test_a_run_of_another_process_cannot_be_cancelled_here(store: Store, registry: Registry) -> None:
    work = Work()
    async with hosting(store, registry, work) as runs:
        run = await runs.start(registry["thing.fetch"], {}, OWNER, None)
        await begun(work)
    with pytest.raises(FailedPrecondition, match=run["id"]):
        await Runs(store, registry).cancel(run["id"])


async def test_whoever_follows_a_run_hears_that_the_host_ends(store: Store, registry: Registry) -> None:
    work, outcomes = Work(), list[str]()
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as others, hosting(store, registry, work) as runs:
            run = await runs.start(registry["thing.fetch"], {}, OWNER, None)
            await begun(work)

            async def follow() -> None:
                outcomes.append((await runs.follow(run["id"], silent))["status"])

            others.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
    assert outcomes == ["running"], "the next host takes it up"
