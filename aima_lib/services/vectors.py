"""Vectors: collections of them in the store, searched by cosine. Exact: a search looks at every vector of its collection.

With `sqlite-vec` installed (the extra `vectors`) SQLite compares them itself, 100,000 of 384 numbers in a sixth of a second; without it
Python does, some fifteen times slower. The answers are the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from array import array
from collections.abc import Mapping, Sequence
from functools import cache
from operator import mul
from typing import Any

import anyio
import anyio.to_thread
import apsw

from aima_lib.errors import InvalidArgument, NotFound, ResourceExhausted
from aima_lib.infra.clock import now
from aima_lib.infra.store import Document, Store
from aima_lib.names import did_you_mean, nearest

MOST_BYTES = 2 << 30  # embeddings of one collection: what a search reads
MOST = 1_000  # collections
COLUMNS = "name, dimensions, count, created_at, updated_at"
SEARCH = """
SELECT v.id, near.distance, v.document, v.metadata
FROM (
  SELECT rowid AS place, vec_distance_cosine(embedding, ?) AS distance FROM vectors
  WHERE collection = ? AND {facts} AND distance <= ? ORDER BY distance, id LIMIT ?
) AS near JOIN vectors AS v ON v.rowid = near.place ORDER BY near.distance, v.id
"""


class VectorService:
    """The collections of one home."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._searches = anyio.CapacityLimiter(2)  # each reads a whole collection

    async def put(
        self,
        collection: str,
        embeddings: Sequence[Sequence[float]],
        documents: Sequence[str] | None,
        ids: Sequence[str] | None,
        metadatas: Sequence[Mapping[str, Any]] | None,
    ) -> tuple[Document, list[str]]:
        """Keep vectors; returns the collection, and their ids.

        Raises:
            InvalidArgument: the lists do not fit each other, or a vector not the collection.
            ResourceExhausted: the collection, or their number, would grow too big.
        """
        named = _ids(len(embeddings), documents, ids)
        for name, given in (("documents", documents), ("metadatas", metadatas)):
            if given is not None and len(given) != len(embeddings):
                raise InvalidArgument(f"{name}: there are {len(given)} for {len(embeddings)} embeddings")
        blobs = [_blob(vector, f"embeddings.{place}") for place, vector in enumerate(embeddings)]
        if odd := next((place for place, blob in enumerate(blobs) if len(blob) != len(blobs[0])), None):
            raise InvalidArgument(f"embeddings.{odd}: it has {len(blobs[odd]) // 4} numbers, the first has {len(blobs[0]) // 4}")
        facts = [_facts(given) for given in metadatas or [{}] * len(blobs)]
        rows = [*zip(named, facts, blobs, documents or (None,) * len(blobs), strict=True)]
        return await asyncio.shield(self._store.submit(lambda db: _insert(db, collection, len(blobs[0]) // 4, rows))), named

    async def search(
        self, collection: str, embedding: Sequence[float], limit: int, min_score: float, filter: Mapping[str, Any]
    ) -> list[Document]:
        """The nearest: {id, score, document, metadata}.

        Raises:
            NotFound: there is no such collection.
            InvalidArgument: the vector is of another length.
        """
        key, known = self._find(collection)
        blob = _blob(embedding, "embedding")
        if len(embedding) != known["dimensions"]:
            raise InvalidArgument(
                f"embedding: it has {len(embedding)} numbers, those of {collection} have {known['dimensions']}",
                hint="embed what is looked for with the model that made the collection",
            )
        clauses, values = _conditions(filter)
        sql = SEARCH.format(facts=clauses)
        rows = await anyio.to_thread.run_sync(self._read, sql, (blob, key, *values, 1 - min_score + 1e-9, limit), limiter=self._searches)
        return [{"id": id, "score": 1 - far, "document": text, "metadata": json.loads(facts)} for id, far, text, facts in rows]

    def page(self, limit: int, offset: int) -> tuple[list[Document], int]:
        """Collections by name, and how many there are."""
        rows = self._store.read(f"SELECT {COLUMNS} FROM vector_collections ORDER BY name LIMIT ? OFFSET ?", (limit, offset))
        return [_shown(row) for row in rows], int(self._store.read("SELECT count(*) FROM vector_collections")[0][0])

    def get(self, collection: str) -> Document:
        """What is said of one. Raises NotFound."""
        return self._find(collection)[1]

    def peek(self, collection: str) -> Document | None:
        """What is said of one, or None."""
        rows = self._store.read(f"SELECT {COLUMNS} FROM vector_collections WHERE name = ?", (collection,))
        return _shown(rows[0]) if rows else None

    async def delete(self, collection: str, ids: Sequence[str] | None, filter: Mapping[str, Any] | None, whole: bool) -> int:
        """Delete what is named; says how many vectors that were.

        Raises:
            NotFound: there is no such collection.
            InvalidArgument: it is not said what, or more than one way.
        """
        if sum((ids is not None, filter is not None, whole)) != 1:
            raise InvalidArgument(f"say what of {collection} to delete", hint="one of ids, filter, and whole: true")
        key, _ = self._find(collection)
        clauses, values = _conditions(filter or {})

        def remove(db: apsw.Connection) -> int:
            if ids is not None:
                before = db.total_changes()
                db.executemany("DELETE FROM vectors WHERE collection = ? AND id = ?", [(key, id) for id in ids])
                gone = db.total_changes() - before
            else:
                db.execute(f"DELETE FROM vectors WHERE collection = ? AND {clauses}", (key, *values))
                gone = db.changes()
            if whole:
                db.execute("DELETE FROM vector_collections WHERE key = ?", (key,))
            else:
                db.execute("UPDATE vector_collections SET count = count - ?, updated_at = ? WHERE key = ?", (gone, now(), key))
            return gone

        return await asyncio.shield(self._store.submit(remove))

    def _find(self, collection: str) -> tuple[int, Document]:
        rows = self._store.read(f"SELECT key, {COLUMNS} FROM vector_collections WHERE name = ?", (collection,))
        if rows:
            return int(rows[0][0]), _shown(rows[0][1:])
        names = [str(row[0]) for row in self._store.read("SELECT name FROM vector_collections ORDER BY name")]
        raise NotFound(
            f"no collection called {collection!r}",
            hint=did_you_mean(collection, names) or (f"there are: {', '.join(names[:5])}" if names else "there is no collection yet"),
            next=[{"unit": "vector.list", "arguments": {}}],
            details={"nearest": nearest(collection, names)},
        )

    def _read(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """Rows, read by a connection of this thread's own: the store's is the loop's, and a whole collection takes its time."""
        db = apsw.Connection(str(self._store.path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            db.set_busy_timeout(5_000)
            if (extension := _extension()) is None:
                db.create_scalar_function("vec_distance_cosine", _distance, 2, deterministic=True)
            else:
                db.enable_load_extension(True)
                db.load_extension(extension)
                db.enable_load_extension(False)
            return list(db.execute(sql, values))
        finally:
            db.close()


@cache
def _extension() -> str | None:
    """Where sqlite-vec is, or None. Asked for at the first search: it brings numpy along, where that is installed."""
    try:
        import sqlite_vec
    except ImportError:
        return None
    return str(sqlite_vec.loadable_path())


def _insert(db: apsw.Connection, name: str, dimensions: int, rows: list[tuple[str, str, bytes, str | None]]) -> Document:
    """Add or replace vectors, in one transaction with the collection's count."""
    moment = now()
    known = db.execute("SELECT key, dimensions, count FROM vector_collections WHERE name = ?", (name,)).fetchall()
    if not known:
        if len(db.execute("SELECT key FROM vector_collections").fetchall()) >= MOST:
            raise ResourceExhausted(f"there are {MOST} collections", hint="delete one that is not wanted any more")
        known = db.execute(
            "INSERT INTO vector_collections (name, dimensions, count, created_at, updated_at) VALUES (?, ?, 0, ?, ?) RETURNING key, ?, 0",
            (name, dimensions, moment, moment, dimensions),
        ).fetchall()
    key, wanted, count = (int(str(value)) for value in known[0])
    if wanted != dimensions:
        hint = "all vectors of a collection are of one model; take another collection for another model"
        raise InvalidArgument(f"embeddings: they have {dimensions} numbers, those of {name} have {wanted}", hint=hint)
    there = sum(bool(db.execute("SELECT 1 FROM vectors WHERE collection = ? AND id = ?", (key, row[0])).fetchall()) for row in rows)
    if (count + len(rows) - there) * dimensions * 4 > MOST_BYTES:
        full = f"{name} would hold more than {MOST_BYTES} bytes of vectors"
        raise ResourceExhausted(full, hint="spread them over collections")
    db.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?, ?)", [(key, *row) for row in rows])
    counted = db.execute(
        f"UPDATE vector_collections SET count = count + ?, updated_at = ? WHERE key = ? RETURNING {COLUMNS}",
        (len(rows) - there, moment, key),
    ).fetchall()
    return _shown(counted[0])


def _ids(count: int, documents: Sequence[str] | None, ids: Sequence[str] | None) -> list[str]:
    if ids is None:
        if documents is None:
            raise InvalidArgument("ids: they are missing, and there are no documents to make them of")
        ids = [hashlib.sha256(document.encode()).hexdigest()[:16] for document in documents]
        return list(ids)
    if len(ids) != count:
        raise InvalidArgument(f"ids: there are {len(ids)} for {count} embeddings")
    if len(set(ids)) != count:
        raise InvalidArgument("ids: one is there twice")
    return list(ids)


def _blob(vector: Sequence[float], where: str) -> bytes:
    """The direction of a vector, as 32-bit floats."""
    length = math.hypot(*vector)
    if not 0 < length < math.inf:
        raise InvalidArgument(f"{where}: it has no direction", hint="a vector of zeros, or of numbers too big, is near to nothing")
    return array("f", [number / length for number in vector]).tobytes()


def _facts(given: Mapping[str, Any]) -> str:
    return json.dumps(given, ensure_ascii=False, separators=(",", ":"))


def _conditions(filter: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The facts as SQL. Values are compared as the JSON they are kept as: true is not 1."""
    clauses, values = ["true"], []
    for name, wanted in filter.items():
        choices = wanted if isinstance(wanted, list) else [wanted]
        clauses.append(f"metadata -> ? IN ({', '.join('?' * len(choices))})")
        values += [f'$."{name}"', *(_facts(choice) for choice in choices)]
    return " AND ".join(clauses), tuple(values)


def _distance(*pair: Any) -> float:
    """1 less the cosine of two vectors of length 1: what sqlite-vec gives."""
    return 1 - math.fsum(map(mul, array("f", pair[0]), array("f", pair[1])))


def _shown(row: tuple[Any, ...]) -> Document:
    return dict(zip(COLUMNS.split(", "), row, strict=True))
