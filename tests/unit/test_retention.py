"""What the past may take: events and ended runs are dropped by age and by number."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import pytest

from aima_lib.catalog import past
from aima_lib.infra import store as module
from aima_lib.infra.clock import now
from aima_lib.infra.events import Events
from aima_lib.infra.retention import Retention
from aima_lib.infra.store import Store
from tests.workshop import events_of

pytestmark = pytest.mark.anyio
OLD = "2001-01-01T00:00:00.000Z"
EVENT = "INSERT INTO events (time, type, payload) VALUES (?, 'model.created', '{}')"


async def dropped(store: Store, days: float, count: int, most_bytes: int = 1 << 30) -> None:
    """One round of it."""
    done = anyio.Event()

    async def last() -> None:
        done.set()

    limits = {"retention_days": days, "retention_count": count, "retention_bytes": most_bytes}
    async with anyio.create_task_group() as tasks:
        await tasks.start(Retention(store, Events(store, {}), limits, last).run)
        with anyio.fail_after(20):
            await done.wait()
        tasks.cancel_scope.cancel()


async def test_events_are_dropped_by_age_and_by_number(store: Store) -> None:
    for moment in (OLD, *[now()] * 150):
        await store.submit(lambda db, at=moment: db.execute(EVENT, (at,)))  # type: ignore[misc]
    await dropped(store, 14, 1000)
    assert store.read("SELECT count(*), min(seq) FROM events") == [(150, 2)]
    await dropped(store, 14, 100)
    assert store.read("SELECT count(*), min(seq) FROM events") == [(100, 52)]


async def test_events_are_dropped_by_the_bytes_they_take_in_steps_that_others_get_between(store: Store, tmp_path: Path) -> None:
    log = events_of(store, tmp_path / "schemas", "model.created")
    for number in range(5000):
        log.publish("model.created", {"number": number}, subject="m")
    await store.submit(lambda db: None)
    each, waits = log.bytes() / 4999, []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(log.prune, OLD, 5000, int(each * 1000))
        while log.first == 1:
            await anyio.sleep(0)
        while log.first < 4000:
            began = time.monotonic()
            await store.submit(lambda db: None)
            waits.append(time.monotonic() - began)
    assert log.first == 4001 and log.bytes() <= each * 1000
    assert store.read("SELECT count(*), min(seq) FROM events") == [(1000, 4001)]
    assert len(waits) >= 7, "another write came in after each step"


async def test_a_store_of_before_is_taken_over_with_its_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "migrations"
    old.mkdir()
    for file in module.MIGRATIONS.glob("*.sql"):
        if int(file.name[:4]) < 6:
            (old / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    with monkeypatch.context() as patched:
        patched.setattr(module, "MIGRATIONS", old)
        before = Store(tmp_path / "aima.db")
        for number in range(20):
            await before.submit(lambda db, n=number: db.execute(EVENT.replace("'{}'", f"""'{{"n":{n}}}'"""), (now(),)))  # type: ignore[misc]
        before.close()
    store = Store(tmp_path / "aima.db")
    log = Events(store, {})
    assert (log.first, log.last) == (1, 20)
    assert log.bytes() == 9 * (7 + 250) + 10 * (8 + 250)
    assert log.page(19, 1)[0]["correlation_id"] is None
    store.close()


async def test_runs_that_ended_are_dropped_and_those_under_way_never(store: Store) -> None:
    for id, status, finished in (("a", "succeeded", OLD), ("b", "running", None), ("c", "failed", now()), ("d", "succeeded", now())):
        await store.insert("run", {"id": id, "status": status, "finished_at": finished})
    await store.insert("model", {"id": "m", "status": "ready"})
    await dropped(store, 14, 100)
    assert [run["id"] for run in store.find("run")] == ["b", "c", "d"]
    await dropped(store, 14, 1)
    assert [run["id"] for run in store.find("run")] == ["b", "d"]
    assert store.count("model") == 1


async def test_of_recipes_that_were_applied_what_stands_and_what_is_new_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past, "MOST", 3)
    made = {"result": {"service_id": "stands"}, "state": "done"}
    rows = {"first": made | {"created_at": OLD}, "newer": made | {"created_at": OLD}}
    rows |= {"gone": {"state": "done", "result": {"service_id": "gone"}, "created_at": OLD}, "undone": {"state": "undone"}}
    rows |= {"going": {"state": "forward", "created_at": OLD}}
    rows |= {f"new{number}": {"state": "undone", "created_at": now()} for number in range(5)}
    for id, row in rows.items():
        await store.put("applied", {"id": id, **row})
    await store.put("service", {"id": "stands"})
    await past.prune(store, 14)
    assert store.ids("applied") == {"newer", "going", "new2", "new3", "new4"}
