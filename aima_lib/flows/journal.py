"""What a run of a pipeline has done, on disk: one row for the run, one for each of its calls.

A call has a row before it is made and another status after, so whoever goes on after a crash knows what was done, what was not, and
what may have been. What belongs together (a call that ended and those that begin because of it) shares one transaction.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import apsw

from aima_lib.infra.clock import now, stamp
from aima_lib.infra.store import Document, Store

WHOLE = -1  # the item of a row that is a step's own; those of for_each are counted from 0
FINAL = frozenset({"succeeded", "failed", "skipped", "cancelled", "unknown"})
COLUMNS = "step, item, undo, status, attempts, ordinal, approval_id, started_at, finished_at, output, error"
UPSERT = f"INSERT OR REPLACE INTO steps (flow, {COLUMNS}) VALUES ({', '.join('?' * 12)})"
Key = tuple[str, int, bool]


@dataclass(slots=True)
class Record:
    """One call of a run, or a step with for_each as a whole.

    status: started (under way, or cut off), retrying (its last attempt failed), waiting (for an approval), or one of FINAL. ordinal: its
    place among the calls that ended. undo: it is the compensation of the step. cached: its output came from an earlier call.
    """

    step: str
    item: int = WHOLE
    undo: bool = False
    status: str = "started"
    attempts: int = 1
    ordinal: int | None = None
    approval_id: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    output: Any = None
    error: Mapping[str, Any] | None = None

    @property
    def key(self) -> Key:
        return self.step, self.item, self.undo

    @property
    def is_final(self) -> bool:
        return self.status in FINAL


@dataclass(slots=True)
class FlowRow:
    """A run of a pipeline. state: forward, undoing or done; cause: the error it is undone for."""

    seq: int
    run_id: str
    pipeline_id: str
    version: int
    depth: int
    state: str
    cause: Mapping[str, Any] | None
    began_at: str


class Journal:
    """The rows of every run of a pipeline in a home's store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # Runs and their calls

    def find(self, run_id: str) -> FlowRow | None:
        """The run's row, if it has one yet."""
        sql = "SELECT seq, run_id, pipeline_id, version, depth, state, cause, began_at FROM flows WHERE run_id = ?"
        for seq, run, pipeline, version, depth, state, cause, began in self._store.read(sql, (run_id,)):
            return FlowRow(seq, run, pipeline, version, depth, state, None if cause is None else json.loads(cause), began)
        return None

    async def begin(self, run_id: str, pipeline_id: str, version: int, depth: int) -> FlowRow:
        """Write down which version a run runs."""
        sql = "INSERT INTO flows (run_id, pipeline_id, version, depth, state, began_at) VALUES (?, ?, ?, ?, 'forward', ?)"
        moment = now()

        def insert(db: apsw.Connection) -> int:
            db.execute(sql, (run_id, pipeline_id, version, depth, moment))
            return db.last_insert_rowid()

        return FlowRow(await self._store.submit(insert), run_id, pipeline_id, version, depth, "forward", None, moment)

    def records(self, flow: FlowRow) -> list[Record]:
        """What the run has done so far, in the order in which it ended."""
        rows = self._store.read(f"SELECT {COLUMNS} FROM steps WHERE flow = ? ORDER BY ordinal, started_at", (flow.seq,))
        return [_record(row) for row in rows]

    def write(self, flow: FlowRow, records: Iterable[Record]) -> asyncio.Future[None]:
        """Write these rows, and the state of the run, in one transaction; the future is done once they are on disk."""
        rows = [(flow.seq, *_row(record)) for record in records]
        cause = None if flow.cause is None else json.dumps(flow.cause)
        state = flow.state

        def put(db: apsw.Connection) -> None:
            db.executemany(UPSERT, rows)
            if state != "forward":
                db.execute("UPDATE flows SET state = ?, cause = ? WHERE seq = ?", (state, cause, flow.seq))

        return self._store.submit(put)

    # Versions of pipelines

    async def add_version(self, pipeline_id: str, digest: str, document: Mapping[str, Any], creator: Mapping[str, Any] | None) -> int:
        """Keep a document; returns the number of its version. The same document as the newest adds none."""
        text, made = json.dumps(document), None if creator is None else json.dumps(creator)
        moment = now()

        def insert(db: apsw.Connection) -> int:
            sql = "SELECT version, digest, creator FROM pipeline_versions WHERE pipeline_id = ? ORDER BY version DESC LIMIT 1"
            newest: Any = db.execute(sql, (pipeline_id,)).fetchall()
            if newest and newest[0][1:] == (digest, made):
                return int(newest[0][0])
            version = int(newest[0][0]) + 1 if newest else 1
            values = (pipeline_id, version, digest, text, made, moment)
            db.execute("INSERT INTO pipeline_versions VALUES (?, ?, ?, ?, ?, ?)", values)
            return version

        return await self._store.submit(insert)

    def version(self, pipeline_id: str, version: int) -> tuple[str, Document | None] | None:
        """The document of a version, as JSON, and who made it."""
        sql = "SELECT document, creator FROM pipeline_versions WHERE pipeline_id = ? AND version = ?"
        for document, creator in self._store.read(sql, (pipeline_id, version)):
            return str(document), None if creator is None else json.loads(creator)
        return None

    # What was computed before

    def cached(self, digest: str) -> Document | None:
        """The output that is kept under this digest, if it is still fresh."""
        for (output,) in self._store.read("SELECT output FROM step_cache WHERE digest = ? AND expires_at > ?", (digest, now())):
            found: Document = json.loads(output)
            return found
        return None

    def keep(self, digest: str, output: Mapping[str, Any], seconds: float) -> asyncio.Future[None]:
        """Keep an output for so long; what is stale goes."""
        text, until = json.dumps(output), stamp(datetime.now(UTC) + timedelta(seconds=seconds))

        def put(db: apsw.Connection) -> None:
            db.execute("DELETE FROM step_cache WHERE expires_at <= ?", (now(),))
            db.execute("INSERT OR REPLACE INTO step_cache VALUES (?, ?, ?)", (digest, text, until))

        return self._store.submit(put)

    # How far triggers have come

    def cursors(self) -> dict[tuple[str, str], str]:
        """Pipeline and place of a trigger → the last moment or event it has seen."""
        return {(pipeline, place): cursor for pipeline, place, cursor in self._store.read("SELECT * FROM trigger_cursors")}

    def move(self, pipeline_id: str, cursors: Mapping[str, str], gone: Sequence[str] = ()) -> asyncio.Future[None]:
        """Where the triggers of a pipeline are now; and which there are no more."""

        def put(db: apsw.Connection) -> None:
            db.executemany("INSERT OR REPLACE INTO trigger_cursors VALUES (?, ?, ?)", [(pipeline_id, *pair) for pair in cursors.items()])
            db.executemany("DELETE FROM trigger_cursors WHERE pipeline_id = ? AND place = ?", [(pipeline_id, place) for place in gone])

        return self._store.submit(put)


def _row(record: Record) -> tuple[Any, ...]:
    # The output of a step with for_each is that of its items: it is not written down twice.
    output = None if record.output is None or isinstance(record.output, list) else json.dumps(record.output)
    error = None if record.error is None else json.dumps(record.error)
    return (
        record.step, record.item, int(record.undo), record.status, record.attempts, record.ordinal, record.approval_id,
        record.started_at, record.finished_at, output, error,
    )  # fmt: skip


def _record(row: tuple[Any, ...]) -> Record:
    step, item, undo, status, attempts, ordinal, approval_id, started_at, finished_at, output, error = row
    read = (None if text is None else json.loads(text) for text in (output, error))
    return Record(step, item, bool(undo), status, attempts, ordinal, approval_id, started_at, finished_at, *read)
