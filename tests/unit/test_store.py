"""The store: what is acknowledged is on disk, writes share commits, and a damaged file is refused instead of used."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import anyio
import apsw
import pytest

from aima_lib.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from aima_lib.infra.store import MIGRATIONS, Store

pytestmark = pytest.mark.anyio

ACKNOWLEDGE = """
import asyncio, sys
from pathlib import Path
from aima_lib.infra.store import Store

async def main():
    store = Store(Path(sys.argv[1]))
    for number in range(100_000):
        await store.insert("model", {"id": f"m{number}"})
        print(number, flush=True)

asyncio.run(main())
"""


async def test_a_document_lives_from_insert_to_delete(store: Store) -> None:
    await store.insert("model", {"id": "tiny", "size_bytes": 5})
    assert store.get("model", "tiny") == {"id": "tiny", "size_bytes": 5}
    assert await store.update("model", "tiny", name="Tiny") == {"id": "tiny", "size_bytes": 5, "name": "Tiny"}
    await store.put("model", {"id": "tiny", "size_bytes": 6})
    assert store.get("model", "tiny") == {"id": "tiny", "size_bytes": 6}
    assert await store.delete("model", "tiny") is True
    assert await store.delete("model", "tiny") is False
    assert store.peek("model", "tiny") is None


async def test_documents_are_found_by_their_fields_oldest_first(store: Store) -> None:
    for name, format in (("c", "gguf"), ("a", "onnx"), ("b", "gguf")):
        await store.insert("model", {"id": name, "format": format})
    assert [doc["id"] for doc in store.find("model")] == ["c", "a", "b"]
    assert [doc["id"] for doc in store.find("model", newest_first=True, limit=2)] == ["b", "a"]
    assert [doc["id"] for doc in store.find("model", format="gguf", offset=1)] == ["b"]
    assert [doc["id"] for doc in store.find("model", format=None)] == ["c", "a", "b"]
    assert store.count("model") == 3
    assert store.count("model", format="gguf") == 2
    assert store.count("service") == 0


async def test_a_missing_document_names_the_nearest(store: Store) -> None:
    for name in ("qwen-0.5b", "qwen-1.5b", "gemma"):
        await store.insert("model", {"id": name})
    with pytest.raises(NotFound, match=r"no model called 'qwen-0.6b'") as raised:
        store.get("model", "qwen-0.6b")
    assert "qwen-0.5b" in str(raised.value.hint)
    assert raised.value.next == [{"unit": "model.list", "arguments": {}}]
    with pytest.raises(NotFound):
        await store.update("model", "gone", name="x")


async def test_writes_that_wait_together_share_a_commit(store: Store) -> None:
    commits = 0

    def count() -> bool:
        nonlocal commits
        commits += 1
        return False

    store._writer.set_commit_hook(count)
    async with anyio.create_task_group() as tasks:
        for number in range(200):
            tasks.start_soon(store.insert, "model", {"id": str(number)})
    assert store.count("model") == 200
    assert commits < 100


async def test_one_failing_write_of_a_group_leaves_the_others(store: Store) -> None:
    await store.insert("model", {"id": "taken"})
    refused = []

    async def insert(name: str) -> None:
        try:
            await store.insert("model", {"id": name})
        except AlreadyExists as error:
            refused.append(str(error))

    async with anyio.create_task_group() as tasks:
        for name in ("a", "taken", "b", "taken", "c"):
            tasks.start_soon(insert, name)
    assert sorted(doc["id"] for doc in store.find("model")) == ["a", "b", "c", "taken"]
    assert refused == ["there is a model called 'taken' already"] * 2


async def test_a_failing_write_leaves_nothing_of_itself(store: Store) -> None:
    def half(db: apsw.Connection) -> None:
        db.execute("INSERT INTO documents VALUES ('model', 'half', '{}')")
        raise ValueError("midway")

    whole = store.submit(lambda db: db.execute("INSERT INTO documents VALUES ('model', 'whole', '{}')"))
    with pytest.raises(ValueError, match="midway"):
        await store.submit(half)
    await whole
    assert store.peek("model", "half") is None
    assert store.peek("model", "whole") == {}


async def test_parallel_updates_lose_nothing(store: Store) -> None:
    await store.insert("run", {"id": "one"})

    async def update(number: int) -> None:
        await store.update("run", "one", **{f"field_{number}": number})

    async with anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(update, number)
    assert store.get("run", "one") == {"id": "one", **{f"field_{number}": number for number in range(100)}}


async def test_a_full_disk_is_told_as_such_and_the_store_goes_on(store: Store) -> None:
    await store.insert("model", {"id": "before"})
    [(pages,)] = await store.submit(lambda db: db.execute("PRAGMA page_count").fetchall())
    await store.submit(lambda db: list(db.execute(f"PRAGMA max_page_count = {pages + 2}")))
    with pytest.raises(ResourceExhausted, match="refused a write"):
        await store.insert("model", {"id": "huge", "text": "x" * 100_000})
    await store.submit(lambda db: list(db.execute("PRAGMA max_page_count = 1000000")))
    await store.insert("model", {"id": "after"})
    assert [doc["id"] for doc in store.find("model")] == ["before", "after"]


async def test_what_was_written_is_there_after_reopening_and_is_the_owners_only(tmp_path: Path) -> None:
    path = tmp_path / "aima.db"
    first = Store(path)
    await first.insert("model", {"id": "Größe", "text": "日本語 \U0001f600"})
    first.close()
    second = Store(path)
    assert second.get("model", "Größe")["text"] == "日本語 \U0001f600"
    second.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_kill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "aima.db"
    with subprocess.Popen([sys.executable, "-c", ACKNOWLEDGE, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        acknowledged = [process.stdout.readline() for _ in range(50)]
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += process.stdout.readlines()
    last = int(next(line for line in reversed(acknowledged) if line.endswith("\n")))
    after = Store(path)
    assert after.count("model") >= last + 1
    assert after.peek("model", f"m{last}") is not None
    after.close()


@pytest.mark.parametrize("damage", ["not a database at all" * 100, None], ids=["foreign", "flipped"])
async def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: str | None) -> None:
    path = tmp_path / "aima.db"
    store = Store(path)
    for number in range(200):
        await store.insert("model", {"id": f"model-{number}", "text": "x" * 100})
    store.close()
    content = bytearray(path.read_bytes())
    if damage is None:
        for offset in range(4096 * 3, len(content), 4096):
            content[offset : offset + 8] = bytes(byte ^ 0xFF for byte in content[offset : offset + 8])
    else:
        content[:] = damage.encode()
    path.write_bytes(content)
    with pytest.raises(FailedPrecondition, match=r"aima\.db is damaged") as raised:
        Store(path)
    assert raised.value.hint
    assert "move aima.db aside" in raised.value.hint


async def test_a_store_of_a_newer_aima_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "aima.db"
    store = Store(path)
    await store.submit(lambda db: db.execute("INSERT INTO schema_version VALUES (9999)"))
    store.close()
    with pytest.raises(FailedPrecondition, match=r"newer AIMA \(schema 9999\)"):
        Store(path)


async def test_opening_again_migrates_nothing_twice(tmp_path: Path) -> None:
    for _ in range(2):
        store = Store(tmp_path / "aima.db")
        versions = store.read("SELECT version FROM schema_version")
        store.close()
    assert len(versions) == len(set(versions))


async def test_a_number_sqlite_cannot_hold_is_the_callers_fault_and_stops_nobody(store: Store) -> None:
    with pytest.raises(InvalidArgument, match="63 bits"):
        store.find("model", offset=2**70)
    with pytest.raises(OverflowError):
        await store.submit(lambda db: db.execute("DELETE FROM events WHERE seq <= ?", (2**70,)))
    with anyio.fail_after(20):
        await store.insert("model", {"id": "after"})


async def test_a_write_that_refuses_leaves_nothing_and_the_next_goes_on(store: Store) -> None:
    def refuse(db: apsw.Connection) -> None:
        db.execute("INSERT INTO documents VALUES ('model', 'half', '{}')")
        raise ResourceExhausted("no more")

    with anyio.fail_after(10), pytest.raises(ResourceExhausted, match="no more"):
        await store.submit(refuse)
    with anyio.fail_after(10):
        await store.insert("model", {"id": "next"})
    assert [doc["id"] for doc in store.find("model")] == ["next"]


async def test_models_of_before_get_the_fields_that_are_read_now(tmp_path: Path) -> None:
    path = tmp_path / "aima.db"
    db = apsw.Connection(str(path))
    db.execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
    for migration in sorted(MIGRATIONS.glob("000[1-8]*.sql")):
        db.execute(migration.read_text(encoding="utf-8"))
    db.execute("INSERT INTO schema_version VALUES (8)")
    body = '{"id": "old", "capabilities": ["chat"], "warnings": ["kept"]}'
    db.execute("INSERT INTO documents VALUES ('model', 'old', ?)", (body,))
    db.close()
    store = Store(path)
    try:
        found = store.get("model", "old")
    finally:
        store.close()
    added = {"active_parameters": None, "modalities": [], "chat_template": None}
    assert found == {"id": "old", "capabilities": ["chat"], "warnings": ["kept"], **added}
