"""What callers have used, on disk: one row for each caller and limit, written behind the requests."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

import apsw

from aima_lib.infra.store import Store
from aima_lib.services.limits import KINDS
from aima_lib.services.window import Window

SWEEP_SECONDS = 60.0
Place = tuple[str, str]  # a caller and a limit
log = logging.getLogger(__name__)


class Ledger:
    """Windows and their rows. Rows hold the wall's time, as no other clock survives the process."""

    def __init__(self, store: Store) -> None:
        self._store, self._swept = store, time.monotonic()
        self.changed: set[Place] = set()

    def load(self) -> dict[Place, Window]:
        """What the last host wrote down, as far as it counts still."""
        windows: dict[Place, Window] = {}
        wall, at = time.time(), time.monotonic()
        for caller, limit, text in self._store.read("SELECT caller, kind, slots FROM spending"):
            if kind := KINDS.get(limit):
                window = windows[caller, limit] = Window(kind.seconds)
                window.restore([(wall - end, amount) for end, amount in json.loads(text)], at)
                self.changed.add((caller, limit))  # to be dropped with the next write if nothing of it counts
        return windows

    def write(self, windows: dict[Place, Window]) -> None:
        """Write down what has changed, and forget what counts no more; nobody waits for it."""
        wall, at = time.time(), time.monotonic()
        if at - self._swept >= SWEEP_SECONDS:
            self._swept = at
            self.changed |= {place for place, window in windows.items() if not window.used(at)}
        kept, over = list[tuple[str, str, str]](), list[Place]()
        for place in self.changed:
            if slots := windows[place].slots(at):
                kept.append((*place, json.dumps([[round(wall - ago, 3), amount] for ago, amount in slots])))
            else:
                over.append(place)
                del windows[place]
        self.changed = set()
        if kept or over:
            self._store.submit(lambda db: _put(db, kept, over)).add_done_callback(_say_failed)


def _put(db: apsw.Connection, kept: list[tuple[str, str, str]], over: list[Place]) -> None:
    db.executemany("INSERT OR REPLACE INTO spending VALUES (?, ?, ?)", kept)
    db.executemany("DELETE FROM spending WHERE caller = ? AND kind = ?", over)


def _say_failed(done: asyncio.Future[Any]) -> None:
    if not done.cancelled() and (error := done.exception()):
        log.error("what callers have used could not be written down: %s", error)
