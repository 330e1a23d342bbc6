"""How much of the past is kept: events, and runs that have ended; and, by its own clock, what the audit log holds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import apsw

from aima_lib.infra.clock import stamp
from aima_lib.infra.store import Store

EVERY_SECONDS = 3600.0
RUNS = """DELETE FROM documents WHERE kind = 'run' AND json_extract(body, '$.status') <> 'running' AND (
  json_extract(body, '$.finished_at') < ?
  OR rowid <= (SELECT rowid FROM documents WHERE kind = 'run' ORDER BY rowid DESC LIMIT 1 OFFSET ?))"""


class Retention:
    """Drops what is older, or more, than the owner wants to keep."""

    def __init__(self, store: Store, limits: Mapping[str, Any], *also: Callable[[], Awaitable[None]]) -> None:
        self._store, self._limits, self._also = store, limits, also

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Do so once an hour until cancelled."""
        task_status.started()
        while True:
            await self._store.submit(self._drop)
            for other in self._also:
                await other()
            await anyio.sleep(EVERY_SECONDS)

    def _drop(self, db: apsw.Connection) -> None:
        oldest = stamp(datetime.now(UTC) - timedelta(days=float(self._limits["retention_days"])))
        most = int(self._limits["retention_count"])
        db.execute("DELETE FROM events WHERE time < ? OR seq <= (SELECT max(seq) FROM events) - ?", (oldest, most))
        db.execute(RUNS, (oldest, most))
