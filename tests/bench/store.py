"""Commits of the store against bare apsw with the same durability: `python tests/bench/store.py`.

Each writes 1 KB documents with synchronous=FULL; the store pays for its thread, its queue and its futures, and gains from groups.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio
import apsw

from aima_lib.infra.store import Store

COUNT = 2_000
BODY = {"text": "x" * 1000}


def bare(path: Path, group: int) -> float:
    """Commits a second of apsw alone, `group` rows a commit."""
    db = apsw.Connection(str(path))
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        list(db.execute(f"PRAGMA {pragma}"))
    db.execute("CREATE TABLE documents (kind TEXT, id TEXT, body TEXT, UNIQUE (kind, id))")
    began = time.perf_counter()
    for start in range(0, COUNT, group):
        with db:
            for number in range(start, start + group):
                db.execute("INSERT INTO documents VALUES (?, ?, ?)", ("bench", str(number), json.dumps(BODY)))
    return COUNT / (time.perf_counter() - began)


async def ours(path: Path, group: int) -> float:
    """The same through the store, `group` callers waiting side by side."""
    store = Store(path)
    began = time.perf_counter()
    for start in range(0, COUNT, group):
        async with anyio.create_task_group() as tasks:
            for number in range(start, start + group):
                tasks.start_soon(partial(store.put, "bench", {"id": str(number), **BODY}))
    took = time.perf_counter() - began
    store.close()
    return COUNT / took


def in_a_folder(measure: Callable[[Path, int], float], group: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return measure(Path(folder) / "bench.db", group)


def main() -> None:
    print("rows at once   apsw rows/s   store rows/s   store/apsw")
    for group in (1, 10, 100):
        plain = in_a_folder(bare, group)
        store = in_a_folder(lambda path, size: anyio.run(ours, path, size), group)
        print(f"{group:12}   {plain:11,.0f}   {store:12,.0f}   {store / plain:10.2f}")


if __name__ == "__main__":
    main()
