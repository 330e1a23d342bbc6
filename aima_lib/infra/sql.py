"""The store for those who would rather ask in SQL: stdlib connections that can read and nothing else."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import apsw


def reading(path: Path) -> sqlite3.Connection:
    """A connection to a store that another process hosts: live, and read-only.

    Never to one that this process hosts: SQLite's locks belong to the process, and the stdlib's SQLite, another copy than the store's,
    would let go of the store's when it closes the file. `copy_of` is for those.
    """
    db = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
    db.execute("PRAGMA query_only = ON")
    return db


def copy_of(path: Path, folder: Path) -> Path:
    """A copy of a store as it is at this moment, in `folder`. Blocking."""
    made = folder / "aima.db"
    source = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        for _ in source.execute("VACUUM INTO ?", (str(made),)):
            pass
    finally:
        source.close()
    return made


@contextmanager
def folder() -> Iterator[Path]:
    """Where a copy lies while it is opened. It is unlinked under its connection, and goes with it."""
    with tempfile.TemporaryDirectory(prefix="aima-sql-", ignore_cleanup_errors=True) as path:
        yield Path(path)
