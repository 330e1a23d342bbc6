"""Where state lives: one SQLite file of JSON documents, written by one thread that commits in groups.

Reads are short and stay on the caller's thread (microseconds; a thread hop costs fifty times more). A write returns when it is on
disk: WAL with `synchronous=FULL`, so that a power cut loses nothing that was acknowledged. Writes that wait at the same moment
share one commit.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import apsw

from aima_lib.errors import AimaError, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from aima_lib.names import did_you_mean, nearest

T = TypeVar("T")
Document = dict[str, Any]
Job = Callable[[apsw.Connection], Any]
MIGRATIONS = Path(__file__).parent / "migrations"
GROUP = 512
NAMED = 1000  # of so many, the newest, the nearest are named
# The unit that lists the documents of a kind.
LISTED_BY = {kind: f"{kind}.list" for kind in ("model", "service", "run", "key", "secret", "pipeline", "app", "benchmark")}
LISTED_BY |= {"instance": "engine.list", "plan": "approval.list", "slot": "resource.allocations"}


class Store:
    """JSON documents by kind and id, and the writer behind them. Close it when done.

    Raises:
        FailedPrecondition: the file is damaged, or of a newer AIMA.
        ResourceExhausted: the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._writer = _connect(path)
            self._refuse_damage()
            self._migrate()
            self._reader = _connect(path)
        except (apsw.Error, OSError) as error:
            if (told := _translated(error)) is error:
                raise
            raise told from error
        self.changes: Counter[str] = Counter()  # by kind: moves whenever a document of it may have changed
        self._touched: set[str] = set()  # the writer's
        self._watchers: list[Callable[[set[str]], None]] = []
        self._jobs: queue.SimpleQueue[tuple[Job, asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="aima-store", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Commit what waits, fold the log into the file, close."""
        self._jobs.put(None)
        self._thread.join()
        self._reader.close()
        self._writer.close()

    # Reading

    def get(self, kind: str, id: str) -> Document:
        """The document.

        Raises:
            NotFound: there is none; the nearest ids are named.
        """
        found = self.peek(kind, id)
        if found is None:
            raise self.missing(kind, id)
        return found

    def peek(self, kind: str, id: str) -> Document | None:
        """The document, or None."""
        for (body,) in self._reader.execute("SELECT body FROM documents WHERE kind = ? AND id = ?", (kind, id)):
            return _loads(str(body))
        return None

    def find(self, kind: str, *, limit: int = -1, offset: int = 0, newest_first: bool = False, **equal: Any) -> list[Document]:
        """The documents whose top-level fields equal these (a None is no condition), oldest first."""
        where, values = _conditions(kind, equal)
        order = "DESC" if newest_first else "ASC"
        rows = self.read(f"SELECT body FROM documents WHERE {where} ORDER BY rowid {order} LIMIT ? OFFSET ?", (*values, limit, offset))
        return [_loads(body) for (body,) in rows]

    def count(self, kind: str, **equal: Any) -> int:
        """How many documents `find` would see without a limit."""
        where, values = _conditions(kind, equal)
        if not values and (known := self.read("SELECT count FROM document_counts WHERE kind = ?", (kind,))):
            return int(known[0][0])
        return int(self.read(f"SELECT count(*) FROM documents WHERE {where}", values)[0][0])

    def ids(self, kind: str, prefix: str = "") -> set[str]:
        """The ids of a kind that begin so."""
        rows = self.read("SELECT id FROM documents WHERE kind = ? AND id >= ? AND id < ?", (kind, prefix, f"{prefix}\U0010ffff"))
        return {str(row[0]) for row in rows}

    def read(self, sql: str, values: tuple[Any, ...] | Mapping[str, Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a SELECT. For tables that are not documents.

        Raises:
            InvalidArgument: a value is a number that SQLite cannot hold.
        """
        try:
            return list(self._reader.execute(sql, values))
        except OverflowError as error:
            raise InvalidArgument("a number has more than 63 bits") from error

    def missing(self, kind: str, id: str, **equal: Any) -> NotFound:
        """The error that says so and names what is near, among the documents whose fields equal these."""
        where, values = _conditions(kind, equal)
        ids = [row[0] for row in self.read(f"SELECT id FROM documents WHERE {where} ORDER BY rowid DESC LIMIT {NAMED}", values)][::-1]
        unit = LISTED_BY.get(kind)
        hint = did_you_mean(id, ids) or (f"there are: {', '.join(ids[-5:])}" if ids else f"there is no {kind} yet")
        calls = [{"unit": unit, "arguments": {}}] if unit else []
        return NotFound(f"no {kind} called {id!r}", hint=hint, next=calls, details={"nearest": nearest(id, ids)})

    # Writing

    async def insert(self, kind: str, document: Mapping[str, Any]) -> None:
        """Add a document.

        Raises:
            AlreadyExists: its id is taken.
        """
        sql = "INSERT INTO documents VALUES (?, ?, ?)"
        try:
            await self.submit(lambda db: self._touching(db, kind).execute(sql, (kind, document["id"], _dumps(document))))
        except apsw.ConstraintError as error:
            raise AlreadyExists(f"there is a {kind} called {document['id']!r} already") from error

    async def put(self, kind: str, document: Mapping[str, Any]) -> None:
        """Add or replace a document."""
        sql = "INSERT INTO documents VALUES (?, ?, ?) ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body"
        await self.submit(lambda db: self._touching(db, kind).execute(sql, (kind, document["id"], _dumps(document))))

    async def update(self, kind: str, id: str, **changes: Any) -> Document:
        """Merge `changes` into a document, atomically; returns the whole.

        Raises:
            NotFound: it is gone.
        """

        def merge(db: apsw.Connection) -> Document | None:
            for (body,) in db.execute("SELECT body FROM documents WHERE kind = ? AND id = ?", (kind, id)).fetchall():
                merged = _loads(str(body)) | changes
                self._touching(db, kind).execute("UPDATE documents SET body = ? WHERE kind = ? AND id = ?", (_dumps(merged), kind, id))
                return merged
            return None

        merged = await self.submit(merge)
        if merged is None:
            raise self.missing(kind, id)
        return merged

    async def delete(self, kind: str, id: str) -> bool:
        """Remove a document; says whether it was there."""

        def remove(db: apsw.Connection) -> bool:
            self._touching(db, kind).execute("DELETE FROM documents WHERE kind = ? AND id = ?", (kind, id))
            return bool(db.changes())

        return await self.submit(remove)

    def submit(self, job: Callable[[apsw.Connection], T]) -> asyncio.Future[T]:
        """Queue a write; the future is done once it is on disk. Jobs run in the order they were queued."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put((job, future))
        return future

    def watch(self, watcher: Callable[[set[str]], None]) -> None:
        """Call `watcher` with the kinds whose documents may have changed, on the loop; it must not wait."""
        self._watchers.append(watcher)

    # The writer's thread

    def _touching(self, db: apsw.Connection, kind: str) -> apsw.Connection:
        """The connection, to change a document of this kind by."""
        self._touched.add(kind)
        return db

    def _write(self) -> None:
        while (first := self._jobs.get()) is not None:
            group, last = [first], False
            while len(group) < GROUP and not self._jobs.empty():
                if (following := self._jobs.get()) is None:
                    last = True
                    break
                group.append(following)
            self._commit(group)
            if last:
                return

    def _commit(self, group: list[tuple[Job, asyncio.Future[Any]]]) -> None:
        outcomes: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = []
        try:
            self._writer.execute("BEGIN")
            for job, future in group:
                outcomes.append((future, *self._attempt(job)))
                if not self._writer.in_transaction:
                    raise apsw.FullError("the transaction was given up")  # a full disk makes SQLite drop the whole group
            self._writer.execute("COMMIT")
        except apsw.Error as error:  # nothing of the group is on disk
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            if len(group) > 1:  # one write that does not fit must not cost the others
                for single in group:
                    self._commit([single])
                return
            lost = (outcomes[0][2] if outcomes else None) or _translated(error)
            outcomes = [(future, None, lost) for _, future in group]
        touched, self._touched = self._touched, set()
        try:
            group[0][1].get_loop().call_soon_threadsafe(self._settle, outcomes, touched)
        except RuntimeError:  # the loop is closed: nobody waits any more, and what was committed stays
            return

    def _attempt(self, job: Job) -> tuple[Any, BaseException | None]:
        """One job inside the group's transaction, in a savepoint: its failure leaves the others."""
        db = self._writer
        db.execute("SAVEPOINT job")
        try:
            outcome = job(db)
            outcome = list(outcome) if isinstance(outcome, apsw.Cursor) else outcome
        except (apsw.Error, AimaError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            if db.in_transaction:
                db.execute("ROLLBACK TO job")
                db.execute("RELEASE job")
            return None, _translated(error)
        db.execute("RELEASE job")
        return outcome, None

    def _settle(self, outcomes: list[tuple[asyncio.Future[Any], Any, BaseException | None]], touched: set[str]) -> None:
        """On the loop: the group is on disk."""
        self.changes.update(touched)
        for watcher in self._watchers if touched else ():
            watcher(touched)
        for future, value, error in outcomes:
            if future.cancelled():
                continue
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

    # Opening

    def _refuse_damage(self) -> None:
        try:
            verdict = [row[0] for row in self._writer.execute("PRAGMA integrity_check(3)")]
        except (apsw.CorruptError, apsw.NotADBError) as error:
            verdict = [str(error)]
        if verdict != ["ok"]:
            raise FailedPrecondition(
                f"{self.path} is damaged: {'; '.join(verdict)}",
                hint=f"move {self.path.name} aside and start again: models on disk can be imported anew with model.import",
            )

    def _migrate(self) -> None:
        db = self._writer
        db.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
        versions = list(db.execute("SELECT max(version) FROM schema_version"))
        current = versions[0][0] or 0
        files = {int(path.name[:4]): path for path in sorted(MIGRATIONS.glob("[0-9]*.sql"))}
        if current > max(files):
            raise FailedPrecondition(
                f"{self.path} was written by a newer AIMA (schema {current})", hint="upgrade AIMA, or use another home"
            )
        for number, path in files.items():
            if number > current:
                with db:
                    for _ in db.execute(path.read_text(encoding="utf-8")):
                        pass
                    db.execute("INSERT INTO schema_version VALUES (?)", (number,))


def _connect(path: Path) -> apsw.Connection:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)  # nobody else may read what is in it
    os.close(descriptor)
    db = apsw.Connection(str(path))
    db.set_busy_timeout(5_000)
    try:
        for _ in db.execute("PRAGMA journal_mode=WAL"):
            pass
        db.execute("PRAGMA synchronous=FULL")
    except (apsw.NotADBError, apsw.CorruptError):
        pass  # the integrity check that follows says it in our words
    return db


def _translated(error: Exception) -> Exception:
    if isinstance(error, apsw.FullError | apsw.IOError) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return ResourceExhausted(f"the disk refused a write to the store: {error}", hint="free some space in the home, then call again")
    return error


def _conditions(kind: str, equal: Mapping[str, Any]) -> tuple[str, tuple[Any, ...]]:
    given = {key: value for key, value in equal.items() if value is not None}
    assert kind.isidentifier()  # it stands in the text: an index of one kind is not found by a value that is bound later
    clauses = [f"kind = '{kind}'", *(f"json_extract(body, '$.{key}') = ?" for key in given)]
    return " AND ".join(clauses), tuple(given.values())


def _dumps(document: Mapping[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)


def _loads(body: str) -> Document:
    document: Document = json.loads(body)
    return document
