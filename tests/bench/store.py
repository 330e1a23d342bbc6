"""Store commits against bare apsw, both with synchronous=FULL: `python tests/bench/store.py`. About 20 s."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import anyio
import apsw
import measure

from aima_lib.infra.store import Store

assert measure.ROOT
SECONDS = 2.5
DOCUMENT = {"name": "x" * 900, "status": "running"}


async def ours(path: Path, writers: int) -> float:
    """Documents a second, from so many tasks at once."""
    store, done = Store(path), 0
    end = time.perf_counter() + SECONDS

    async def write(writer: int) -> None:
        nonlocal done
        number = 0
        while time.perf_counter() < end:
            await store.insert("model", {"id": f"{writer}-{number}", **DOCUMENT})
            number += 1
            done += 1

    async with anyio.create_task_group() as tasks:
        for writer in range(writers):
            tasks.start_soon(write, writer)
    store.close()
    return done / SECONDS


def bare(path: Path, group: int) -> float:
    """Rows a second into the same table, so many to a commit."""
    db = apsw.Connection(str(path))
    db.execute("PRAGMA journal_mode=WAL").fetchall()
    db.execute("PRAGMA synchronous=FULL")
    db.execute(
        "CREATE TABLE documents (kind TEXT NOT NULL, id TEXT NOT NULL, body TEXT NOT NULL CHECK (json_valid(body)), UNIQUE (kind, id))"
    )
    done, end = 0, time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        with db:
            for _ in range(group):
                db.execute("INSERT INTO documents VALUES (?, ?, ?)", ("model", str(done), json.dumps({"id": str(done), **DOCUMENT})))
                done += 1
    db.close()
    return done / SECONDS


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for writers in (1, 8, 64):
            mine = await ours(Path(folder) / f"ours-{writers}.db", writers)
            for group in sorted({1, writers}):
                other = bare(Path(folder) / f"bare-{writers}-{group}.db", group)
                print(
                    f"{writers:>3} writers: {mine:>9.0f} documents/s   bare apsw, {group:>2} a commit: {other:>9.0f}/s   ratio {mine / other:>6.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    anyio.run(main)
