"""What happened, in order: an append-only log in the store, and followers that read it live.

An event is numbered by the log and shown to followers only once it is on disk, so a number never means two things. Publishing never
waits. The newest events stay in memory; a follower is a cursor into them, and one that falls further behind than that is told so
(`lagged`) and dropped: it can follow again from its cursor, and the log replays what it missed.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Any

import anyio
import apsw

from aima_lib.errors import Internal
from aima_lib.infra.clock import now
from aima_lib.infra.store import Store
from aima_lib.registry import Unit

Event = dict[str, Any]
KEPT = 4096
PAGE = 500
GATHER_SECONDS, MOST_GATHERED = 0.1, 500
INSERT = "INSERT INTO events (time, type, subject, payload) VALUES (?, ?, ?, ?)"
log = logging.getLogger(__name__)


class Events:
    """The log and its followers. `types` are the event units by name."""

    def __init__(self, store: Store, types: Mapping[str, Unit]) -> None:
        self._store, self._types = store, types
        self._recent: deque[Event] = deque(maxlen=KEPT)
        self._news = anyio.Event()
        self._subscribers: list[Callable[[Event], None]] = []
        self._gathered: list[tuple[str, str, str | None, Mapping[str, Any]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self.counts: Counter[str] = Counter()
        rows = store.read("SELECT coalesce(max(seq), 0) FROM events")
        self._last = int(rows[0][0])

    @property
    def last(self) -> int:
        """The number of the newest event that followers can see."""
        return self._last

    def publish(self, type: str, payload: Mapping[str, Any], *, subject: str | None = None, gather: bool = False) -> None:
        """Log an event and show it to followers. Never waits.

        gather: one of many of its kind, which may wait a tenth of a second for the others, so that they share a commit.

        Raises:
            Internal: no such event, or a payload that breaks its schema.
        """
        unit = self._types.get(type)
        if unit is None or (error := unit.payload.first_error(dict(payload))):
            raise Internal(f"event {type} cannot be published: {'no such event' if unit is None else error}")
        self._gathered.append((now(), type, subject, payload))
        if not gather or len(self._gathered) >= MOST_GATHERED:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_SECONDS, self.flush)

    def flush(self) -> None:
        """Write down what was gathered, in order."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._gathered:
            return
        events, self._gathered = self._gathered, []

        def append(db: apsw.Connection) -> list[int]:
            numbers = []
            for moment, type, subject, payload in events:
                db.execute(INSERT, (moment, type, subject, json.dumps(payload, ensure_ascii=False)))
                numbers.append(db.last_insert_rowid())
            return numbers

        def show(done: asyncio.Future[list[int]]) -> None:
            if not done.cancelled() and done.exception() is None:
                for number, (moment, type, subject, payload) in zip(done.result(), events, strict=True):
                    self._show({"seq": number, "type": type, "time": moment, "subject": subject, "payload": dict(payload)})
                news, self._news = self._news, anyio.Event()
                news.set()
            elif not done.cancelled():
                log.error("%d events, the first %s, were not logged: %s", len(events), events[0][1], done.exception())

        self._store.submit(append).add_done_callback(show)

    def close(self) -> None:
        """Write down what was gathered; the store must be open still."""
        self.flush()

    def subscribe(self, subscriber: Callable[[Event], None]) -> Callable[[], None]:
        """Call `subscriber` with each event from now on, on the loop; it must not wait. Returns the way out."""
        self._subscribers.append(subscriber)
        return lambda: self._subscribers.remove(subscriber) if subscriber in self._subscribers else None

    async def follow(self, after: int | None = None, types: Collection[str] = ()) -> AsyncIterator[Event]:
        """Events in order: those logged after number `after`, then live ones; from now on when `after` is None.

        A follower that falls behind what is kept in memory gets {"type": "lagged"} with its cursor, and the end.
        """
        cursor = self._last if after is None else min(after, self._last)
        while self._is_behind(cursor):  # replay what memory no longer holds
            page = self.page(cursor, PAGE)
            for event in page:
                cursor = event["seq"]
                if _wanted(event["type"], types):
                    yield event
            if not page:
                break
        while True:
            news = self._news
            if self._is_behind(cursor):
                yield {"seq": cursor, "type": "lagged", "time": now(), "subject": None, "payload": {"after": cursor, "last": self._last}}
                return
            for event in self._newer(cursor):
                cursor = event["seq"]
                if _wanted(event["type"], types):
                    yield event
            if cursor >= self._last:
                await news.wait()
            else:
                await anyio.lowlevel.checkpoint()

    def page(self, after: int | None, limit: int, types: Collection[str] = (), subject: str | None = None) -> list[Event]:
        """A page of the log, oldest first: from number `after` on, or the newest. A type ending in `.*` means its whole domain."""
        where, values = ["seq > ?"], [after or 0]
        if types:
            where.append("(" + " OR ".join("type GLOB ?" for _ in types) + ")")
            values += list(types)  # type: ignore[arg-type]
        if subject is not None:
            where.append("subject = ?")
            values.append(subject)  # type: ignore[arg-type]
        order = "DESC" if after is None else "ASC"
        sql = f"SELECT seq, type, time, subject, payload FROM events WHERE {' AND '.join(where)} ORDER BY seq {order} LIMIT ?"
        rows = self._store.read(sql, (*values, limit))
        rows = rows[::-1] if after is None else rows
        return [{"seq": s, "type": t, "time": m, "subject": j, "payload": json.loads(p)} for s, t, m, j, p in rows]

    def _show(self, event: Event) -> None:
        self._recent.append(event)
        self._last = event["seq"]
        self.counts[event["type"]] += 1
        for subscriber in list(self._subscribers):
            try:
                subscriber(event)
            except Exception:  # one subscriber's fault must not reach the publisher or the others
                log.exception("a subscriber failed on %s", event["type"])

    def _is_behind(self, cursor: int) -> bool:
        if cursor >= self._last:
            return False
        return not self._recent or self._recent[0]["seq"] > cursor + 1

    def _newer(self, cursor: int) -> list[Event]:
        if not self._recent or cursor >= self._last:
            return []
        start = len(self._recent) - (self._last - cursor)
        return (
            [event for i, event in enumerate(self._recent) if i >= start] if start > 0 else [e for e in self._recent if e["seq"] > cursor]
        )


def _wanted(type: str, types: Collection[str]) -> bool:
    return not types or type in types or f"{type.partition('.')[0]}.*" in types
