"""What the past may take: events and ended runs are dropped by age and by number."""

from __future__ import annotations

import anyio
import pytest

from aima_lib.infra.clock import now
from aima_lib.infra.retention import Retention
from aima_lib.infra.store import Store

pytestmark = pytest.mark.anyio
OLD = "2001-01-01T00:00:00.000Z"
EVENT = "INSERT INTO events (time, type, payload) VALUES (?, 'model.created', '{}')"


async def dropped(store: Store, days: float, count: int) -> None:
    """One round of it."""
    async with anyio.create_task_group() as tasks:
        await tasks.start(Retention(store, {"retention_days": days, "retention_count": count}).run)
        await anyio.wait_all_tasks_blocked()
        await store.submit(lambda db: db.execute("SELECT 1"))  # queued behind it
        tasks.cancel_scope.cancel()


async def test_events_are_dropped_by_age_and_by_number(store: Store) -> None:
    for moment in (OLD, *[now()] * 150):
        await store.submit(lambda db, at=moment: db.execute(EVENT, (at,)))  # type: ignore[misc]
    await dropped(store, 14, 1000)
    assert store.read("SELECT count(*), min(seq) FROM events") == [(150, 2)]
    await dropped(store, 14, 100)
    assert store.read("SELECT count(*), min(seq) FROM events") == [(100, 52)]


async def test_runs_that_ended_are_dropped_and_those_under_way_never(store: Store) -> None:
    for id, status, finished in (("a", "succeeded", OLD), ("b", "running", None), ("c", "failed", now()), ("d", "succeeded", now())):
        await store.insert("run", {"id": id, "status": status, "finished_at": finished})
    await store.insert("model", {"id": "m", "status": "ready"})
    await dropped(store, 14, 100)
    assert [run["id"] for run in store.find("run")] == ["b", "c", "d"]
    await dropped(store, 14, 1)
    assert [run["id"] for run in store.find("run")] == ["b", "d"]
    assert store.count("model") == 1
