"""What happened, in order: an append-only log in the store, and followers that read it live.

An event is numbered by the log and shown to followers only once it is on disk, so a number never means two things. Publishing never
waits; what is published while the log writes is written together. The newest events stay in memory, and a follower is a cursor: one
that falls further behind than that reads on from the log. Only what the log has dropped is lost to it, and it is told so (`lagged`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from operator import itemgetter
from typing import Any

import anyio
import apsw

from aima_lib.errors import Internal
from aima_lib.infra import lineage
from aima_lib.infra.clock import now
from aima_lib.infra.lineage import Notice
from aima_lib.infra.store import Store
from aima_lib.registry import Unit

Event = dict[str, Any]
KEPT = 4096
PAGE = 500
GATHER_SECONDS = 0.1
BATCH = 512  # events that one job of the writer takes
BESIDE = 250  # bytes that an event takes in the store besides its payload, its places in the indexes among them
COLUMNS = "seq, type, time, subject, correlation_id, causation_id, payload"
INSERT = f"INSERT INTO events ({COLUMNS}, total) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
LAST = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0)"
TOTAL = "SELECT coalesce((SELECT total FROM events ORDER BY seq DESC LIMIT 1), 0)"
_written = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_seq = itemgetter("seq")
log = logging.getLogger(__name__)


class _Batch:
    """Events that are written together. Closed as soon as the writer takes it."""

    def __init__(self) -> None:
        self.events: list[tuple[Event, str, lineage.Lineage | None, Notice]] = []
        self.closed = self.sent = False


class Events:
    """The log and its followers. `types` are the event units by name."""

    def __init__(self, store: Store, types: Mapping[str, Unit]) -> None:
        self._store, self._types = store, types
        self._recent: list[Event] = []
        self._news = anyio.Event()
        self._subscribers: list[Callable[[Event], None]] = []
        self._batch, self._lock = _Batch(), threading.Lock()
        self._batch.closed = self._batch.sent = True
        self._timer: asyncio.TimerHandle | None = None
        self.counts: Counter[str] = Counter()
        self._last = int(store.read(LAST)[0][0])
        self._first = int(store.read("SELECT min(seq) FROM events")[0][0] or self._last + 1)

    @property
    def types(self) -> Collection[str]:
        """The names of all events there are."""
        return self._types

    @property
    def first(self) -> int:
        """The number of the oldest event of the log; one more than the newest where it is empty."""
        return self._first

    @property
    def last(self) -> int:
        """The number of the newest event that followers can see."""
        return self._last

    def publish(self, type: str, payload: Mapping[str, Any], *, subject: str | None = None, gather: bool = False) -> Notice:
        """Log an event, as coming of the work at hand, and show it to followers. Never waits.

        gather: one of many of its kind, which may wait a tenth of a second for the others, so that they share a commit.

        Raises:
            Internal: no such event, or a payload that breaks its schema.
        """
        unit, told = self._types.get(type), dict(payload)
        if unit is None or (error := unit.payload.first_error(told)):
            raise Internal(f"event {type} cannot be published: {'no such event' if unit is None else error}")
        event = {"seq": 0, "type": type, "time": now(), "subject": subject, "correlation_id": None, "causation_id": None, "payload": told}
        entry = (event, _written(told), lineage.current(), Notice())
        with self._lock:
            if not self._batch.closed and len(self._batch.events) < BATCH:
                self._batch.events.append(entry)
            else:
                self.flush()
                self._batch = _Batch()
                self._batch.events.append(entry)
        if not gather:
            self.flush()
        elif self._timer is None and not self._batch.sent:
            self._timer = asyncio.get_running_loop().call_later(GATHER_SECONDS, self.flush)
        return entry[3]

    def flush(self) -> None:
        """Hand what was gathered to the writer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = self._batch
        if not batch.sent:
            batch.sent = True
            self._store.submit(lambda db: self._append(db, batch)).add_done_callback(lambda done: self._shown(done, batch))

    async def settled(self) -> None:
        """Return once all that was published before is on disk, where `page` finds it. Raises Unavailable where the disk takes nothing."""
        self.flush()
        await self._store.submit(lambda _: None)  # the store writes in order

    def close(self) -> None:
        """Write down what was gathered; the store must be open still."""
        self.flush()

    def subscribe(self, subscriber: Callable[[Event], None]) -> Callable[[], None]:
        """Call `subscriber` with each event from now on, on the loop; it must not wait. Returns the way out."""
        self._subscribers.append(subscriber)
        return lambda: self._subscribers.remove(subscriber) if subscriber in self._subscribers else None

    # Following

    async def follow(self, after: int | None = None, types: Collection[str] = ()) -> AsyncIterator[Event]:
        """Events in order: those logged after number `after`, then live ones; from now on when `after` is None.

        Where the log has dropped what followed the cursor, {"type": "lagged"} comes first, which says what is missing.
        """
        async with aclosing(self.pages(after, types)) as pages:  # type: ignore[type-var]
            async for page in pages:
                for event in page:
                    yield event

    async def pages(self, after: int | None = None, types: Collection[str] = ()) -> AsyncIterator[Sequence[Event]]:
        """What `follow` gives, as many at a time as are there."""
        cursor, wanted = self._last if after is None else min(after, self._last), self._names(types)
        while True:
            news = self._news
            if cursor + 1 < self._first:
                yield [self._lagged(cursor)]
                cursor = self._first - 1
            if cursor >= self._last:
                await news.wait()
                continue
            page, cursor = self._next(cursor, wanted)
            if page:
                yield page
            await anyio.lowlevel.checkpoint()

    def _next(self, cursor: int, wanted: frozenset[str] | None) -> tuple[Sequence[Event], int]:
        """What follows the cursor, and the cursor behind it."""
        if self._recent and self._recent[0]["seq"] <= cursor + 1:
            start = bisect_right(self._recent, cursor, key=_seq)
            new = self._recent[start : start + PAGE]
            return new if wanted is None else [event for event in new if event["type"] in wanted], new[-1]["seq"]
        last = self._last
        page = self.page(cursor, PAGE, wanted or ())
        newest = page[-1]["seq"] if page else cursor
        return page, newest if len(page) == PAGE else max(last, newest)

    def _lagged(self, cursor: int) -> Event:
        missing = {"after": cursor, "first": self._first, "last": self._last}
        nobody = {"subject": None, "correlation_id": None, "causation_id": None}
        return {"seq": self._first - 1, "type": "lagged", "time": now(), **nobody, "payload": missing}

    # Reading

    def page(
        self, after: int | None, limit: int, types: Collection[str] = (), subject: str | None = None, correlation_id: str | None = None
    ) -> list[Event]:
        """A page of the log, oldest first: from number `after` on, or the newest. A type ending in `.*` means its whole domain."""
        newest = after is None
        order, names = "DESC" if newest else "ASC", sorted(self._names(types) or (self._types if subject else ()))
        values: dict[str, Any] = {"after": after or 0, "limit": limit, "subject": subject, "correlation_id": correlation_id}
        values |= {f"type{place}": name for place, name in enumerate(names)}
        if correlation_id is not None:  # an index of its own; the rest is looked at row by row
            where = "correlation_id = :correlation_id AND (:subject IS NULL OR subject = :subject)"
            where += f" AND +type IN ({', '.join(f':type{place}' for place in range(len(names)))})" if types else ""
            chosen = f"SELECT {COLUMNS} FROM events WHERE {where} AND seq > :after"
        elif names:  # the newest, or the next, of each type by the index; then of those
            about = "subject = :subject AND " if subject else ""
            each = f"SELECT seq FROM events WHERE {about}type = :type%d AND seq > :after ORDER BY seq {order} LIMIT :limit"
            some = " UNION ALL ".join(f"SELECT * FROM ({each % place})" for place in range(len(names)))
            chosen = f"SELECT {COLUMNS} FROM events WHERE seq IN ({some})"
        else:
            chosen = f"SELECT {COLUMNS} FROM events WHERE seq > :after"
        rows = self._store.read(f"{chosen} ORDER BY seq {order} LIMIT :limit", values)
        return [_event(row) for row in (rows[::-1] if newest else rows)]

    def latest(self, type: str, subject: str) -> Event | None:
        """The newest event of a type about something."""
        return next(iter(self.page(None, 1, (type,), subject)), None)

    def get(self, seq: int) -> Event | None:
        """One event, if the log still has it."""
        return next(iter(self.page(seq - 1, 1)), None) if self._first <= seq <= self._last else None

    # Forgetting

    def bytes(self) -> int:
        """About how many bytes of the store the log takes."""
        rows = self._store.read("SELECT total FROM events WHERE seq = ? OR seq = ? ORDER BY seq", (self._first, self._last))
        return int(rows[-1][0] - rows[0][0]) if rows else 0

    async def prune(self, oldest: str, most: int, most_bytes: int) -> None:
        """Drop from the beginning what is older than `oldest`, or more than so many events or bytes: little by little, for the writer has
        others to serve."""
        while self._first <= self._last:
            total = self._store.read(TOTAL)[0][0]
            rows = self._store.read("SELECT seq, time, total FROM events WHERE seq >= ? ORDER BY seq LIMIT ?", (self._first, BATCH))
            gone = None
            for seq, time, upto in rows:
                if time >= oldest and seq > self._last - most and total - upto < most_bytes:
                    break
                gone = seq
            if gone is None:
                return
            self._first = gone + 1  # before it is gone: a follower must not see a gap that nobody tells it of
            await self._store.submit(lambda db, gone=gone: db.execute("DELETE FROM events WHERE seq <= ?", (gone,)))  # type: ignore[misc]
            await anyio.sleep(0.005)

    # Writing

    def _append(self, db: apsw.Connection, batch: _Batch) -> None:
        """Write a batch, on the writer's thread. An event that cannot be written costs the others nothing, and no number."""
        with self._lock:
            batch.closed = True
        seq, total = _number(db, LAST), _number(db, TOTAL)
        for event, body, came, notice in batch.events:
            number, size = seq + 1, len(body.encode("utf-8", "replace")) + BESIDE
            whole, cause = came.ids if came else (None, None)
            whole = whole or lineage.event_id(number)
            try:
                db.execute(INSERT, (number, event["type"], event["time"], event["subject"], whole, cause, body, total + size))
            except ValueError as error:  # half a surrogate pair, say
                log.error("event %s was not logged: %s", event["type"], error)
                continue
            seq, total = number, total + size
            notice.seq, notice.correlation_id = number, whole
            event.update(seq=number, correlation_id=whole, causation_id=cause)

    def _shown(self, done: Any, batch: _Batch) -> None:
        if done.cancelled():
            return
        if error := done.exception():
            for *_, notice in batch.events:
                notice.seq = None
            log.error("%s events were not logged, from %s on: %s", len(batch.events), batch.events[0][0]["type"], error)
            return
        events = [event for event, *_ in batch.events if event["seq"]]
        if events:
            self._recent += events
            if len(self._recent) > 2 * KEPT:
                del self._recent[:-KEPT]
            self._last = events[-1]["seq"]
            news, self._news = self._news, anyio.Event()
            news.set()
        self.counts.update(event["type"] for event in events)
        for event in events:
            self._tell(event)

    def _tell(self, event: Event) -> None:
        for subscriber in list(self._subscribers):
            try:
                subscriber(event)
            except Exception:  # one subscriber's fault must not reach the publisher or the others
                log.exception("a subscriber failed on %s", event["type"])

    def _names(self, types: Collection[str]) -> frozenset[str] | None:
        """The types that are meant; None for all."""
        if not types:
            return None
        domains = {name.removesuffix(".*") for name in types if name.endswith(".*")}
        return frozenset(types) | {name for name in self._types if name.partition(".")[0] in domains}


def _number(db: apsw.Connection, sql: str) -> int:
    rows: Any = db.execute(sql).fetchall()
    return int(rows[0][0])


def _event(row: tuple[Any, ...]) -> Event:
    seq, type, time, subject, whole, cause, body = row
    about = {"subject": subject, "correlation_id": whole, "causation_id": cause}
    return {"seq": seq, "type": type, "time": time, **about, "payload": json.loads(body)}
