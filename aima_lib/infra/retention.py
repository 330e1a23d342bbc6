"""How much of the past is kept: events, and runs that have ended; and, by its own clock, what the audit log holds."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import apsw
from anyio import to_thread

from aima_lib.infra.clock import stamp
from aima_lib.infra.events import Events
from aima_lib.infra.store import Store

EVENTS_EVERY_SECONDS, REST_EVERY_SECONDS = 10.0, 3600.0
STEP = 200
ENDED = "kind = 'run' AND json_extract(body, '$.status') <> 'running'"
OLD_RUNS = f"""SELECT rowid FROM documents WHERE {ENDED} AND (json_extract(body, '$.finished_at') < ?
  OR rowid <= (SELECT rowid FROM documents WHERE kind = 'run' ORDER BY rowid DESC LIMIT 1 OFFSET ?))"""


class Retention:
    """Drops what is older, or more, than the owner wants to keep: in small steps, for the writer has others to serve."""

    def __init__(self, store: Store, events: Events, limits: Mapping[str, Any], *also: Callable[[], Awaitable[None]]) -> None:
        self._store, self._events, self._limits, self._also = store, events, limits, also

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Do so until cancelled: events soon after there are too many, all else once an hour."""
        task_status.started()
        rested = math.inf
        while True:
            oldest = stamp(datetime.now(UTC) - timedelta(days=float(self._limits["retention_days"])))
            await self._events.prune(oldest, int(self._limits["retention_count"]), int(self._limits["retention_bytes"]))
            if rested >= REST_EVERY_SECONDS:
                rested = 0.0
                await self._drop_runs(oldest)
                for other in self._also:
                    await other()
            await anyio.sleep(EVENTS_EVERY_SECONDS)
            rested += EVENTS_EVERY_SECONDS

    async def _drop_runs(self, oldest: str) -> None:
        rows = await to_thread.run_sync(_found, self._store.path, oldest, int(self._limits["retention_count"]))
        for start in range(0, len(rows), STEP):
            step = rows[start : start + STEP]
            sql = f"DELETE FROM documents WHERE {ENDED} AND rowid IN ({', '.join('?' * len(step))})"
            await self._store.submit(lambda db, sql=sql, step=step: db.execute(sql, step))  # type: ignore[misc]


def _found(path: Path, oldest: str, most: int) -> list[int]:
    """The runs to drop. They are looked at one by one, so a thread does it, on a connection of its own."""
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return [int(row[0]) for row in db.execute(OLD_RUNS, (oldest, most))]
    finally:
        db.close()
