"""Who did what: each command before it is done and after, each refusal, in a chain that shows when somebody has been at it.

Each entry carries an HMAC over itself and the entry before it, made with the secret that lies outside the store. So an entry that was
edited, moved, put in or taken out of the middle breaks the chain; and where the chain ends is also written to a file beside the store,
so that entries taken off its end are missed.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apsw
from anyio import to_thread

from aima_lib.infra import lineage
from aima_lib.infra.clock import now, stamp
from aima_lib.infra.home import Home
from aima_lib.infra.store import Document, Store

ARGUMENTS = 2000  # characters of a call's arguments that are kept
SEARCHED = 2000  # newest entries whose arguments are looked through
HEAD = "audit.head"
START = bytes(32)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log. entry: intent, outcome or refusal; intent: of an outcome, the number of its intent."""

    time: str
    entry: str
    unit: str
    caller: str
    code: str = ""
    intent: int | None = None
    run_id: str | None = None
    plan_id: str | None = None
    duration_ms: float | None = None
    arguments: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None


COLUMNS = ", ".join(field.name for field in fields(Entry))
INSERT = f"INSERT INTO audit (seq, hash, {COLUMNS}) VALUES ({', '.join('?' * (len(fields(Entry)) + 2))})"
SELECT = f"SELECT seq, hash, {COLUMNS} FROM audit"


class Audit:
    """The log of one home. `kept_days` is how long an entry stays; the chain then begins later, and says so."""

    def __init__(self, home: Home, store: Store, kept_days: float) -> None:
        self._path, self._store, self._kept = home.path / HEAD, store, timedelta(days=kept_days)
        self._secret = hmac.digest(home.secret(), b"audit", "sha256")

    # Writing

    async def intend(self, unit: str, caller: str, arguments: Mapping[str, Any], run_id: str | None, plan_id: str | None) -> int:
        """Write down what is about to be done; returns, with the entry's number, once it is on disk."""
        return await self._append(Entry(now(), "intent", unit, caller, "", None, run_id, plan_id, None, _text(arguments), *lineage.ids()))

    def note(
        self, entry: str, unit: str, caller: str, code: str, *, intent: int | None = None, run_id: str | None = None,
        duration_ms: float | None = None, arguments: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Write down an outcome or a refusal, without waiting."""
        text = None if arguments is None else _text(arguments)
        line = Entry(now(), entry, unit, caller, code, intent, run_id, None, duration_ms, text, *lineage.ids())
        self._append(line).add_done_callback(_say_failed)

    def _append(self, entry: Entry) -> asyncio.Future[int]:
        future = self._store.submit(lambda db: self._chain(db, entry))
        future.add_done_callback(self._mark)
        return future

    def _chain(self, db: apsw.Connection, entry: Entry) -> int:
        last: Any = db.execute("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetchall()
        seq, before = (int(last[0][0]), last[0][1]) if last else self._base(db)
        values = astuple(entry)
        db.execute(INSERT, (seq + 1, self._hash(before, seq + 1, values), *values))
        return seq + 1

    def _mark(self, done: asyncio.Future[int]) -> None:
        """Where the chain ends now. Not synced: a file that is behind says less, and nothing wrong."""
        if done.cancelled() or done.exception() is not None:
            return
        text = json.dumps({"seq": done.result(), "mac": self._mac(done.result())})
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
            os.pwrite(descriptor, text.ljust(128).encode(), 0)
            os.close(descriptor)
        except FileNotFoundError:
            return  # the home itself is gone
        except OSError as error:
            log.error("%s could not be written: %s", self._path, error)

    # Reading

    def list(
        self, after: int = 0, limit: int = 100, unit: str | None = None, caller: str | None = None, code: str | None = None,
        correlation_id: str | None = None,
    ) -> tuple[list[Document], int]:  # fmt: skip
        """Entries with a number above `after`, oldest first, and how many there are in all."""
        given = {"unit": unit, "caller": caller, "code": code, "correlation_id": correlation_id}
        chosen = {key: value for key, value in given.items() if value is not None}
        where = " AND ".join(["seq > ?", *(f"{key} = ?" for key in chosen)])
        rows = self._store.read(f"{SELECT} WHERE {where} ORDER BY seq LIMIT ?", (after, *chosen.values(), limit))
        total = self._store.read(f"SELECT count(*) FROM audit WHERE {where}", (after, *chosen.values()))[0][0]
        return [_document(row) for row in rows], int(total)

    def about(self, correlations: Sequence[str], ids: Sequence[str], limit: int) -> Sequence[Document]:
        """The newest calls, and how they ended if not well, that belong to these, or of late name one of these in their arguments."""
        belongs = f"correlation_id IN ({', '.join('?' * len(correlations))})"
        names = " OR ".join(["instr(arguments, ?)"] * len(ids)) or "0"
        late = f"seq > (SELECT coalesce(max(seq), 0) FROM audit) - {SEARCHED} AND ({names})"
        where = f"(entry <> 'outcome' OR code NOT IN ('ok', 'cancelled')) AND ({belongs} OR {late})"
        values = (*correlations, *(json.dumps(id) for id in ids), limit)
        return [_document(row) for row in self._store.read(f"{SELECT} WHERE {where} ORDER BY seq DESC LIMIT ?", values)]

    def usual_seconds(self, unit: str) -> float | None:
        """How long the last calls of a unit took that went well: their median. None when there was none."""
        sql = "SELECT duration_ms FROM audit WHERE unit = ? AND entry = 'outcome' AND code = 'ok' ORDER BY seq DESC LIMIT 20"
        took = sorted(float(row[0]) for row in self._store.read(sql, (unit,)))
        return round(took[len(took) // 2] / 1000, 3) if took else None

    async def verify(self) -> Document:
        """Go over the whole chain: {valid, entries, first, last, issues[]}."""
        return await to_thread.run_sync(self._verify, self._store.path)

    def _verify(self, path: Path) -> Document:
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            head = self._head()  # before the entries: those that come meanwhile may be more, never less
            seq, before = self._base(db)
            first, issues = seq + 1, list[Document]()
            for row in db.execute(f"{SELECT} ORDER BY seq"):
                issues += [_issue(number, "it is missing") for number in range(seq + 1, min(int(row[0]), seq + 11))]
                if row[1] != self._hash(before, int(row[0]), row[2:]):
                    issues.append(_issue(int(row[0]), "it was changed, or what stood before it was"))
                seq, before = int(row[0]), row[1]
                if len(issues) >= 10:
                    break
            else:
                issues += self._judge_end(head, seq)
        finally:
            db.close()
        return {"valid": not issues, "entries": seq + 1 - first, "first": first, "last": seq, "issues": issues}

    def _judge_end(self, head: Document | None, seq: int) -> Iterator[Document]:
        if head is None:
            if seq:
                yield _issue(seq, f"{HEAD}, which says where the log ends, is gone or unreadable")
        elif not hmac.compare_digest(str(head.get("mac")), self._mac(int(head["seq"]))):
            yield _issue(seq, f"{HEAD}, which says where the log ends, was changed")
        elif head["seq"] > seq:
            yield _issue(seq + 1, f"it is missing, as is all up to {head['seq']}")

    # Forgetting

    async def prune(self) -> None:
        """Drop what is older than is kept, and remember where the chain begins from now on."""
        oldest = stamp(datetime.now(UTC) - self._kept)
        await self._store.submit(lambda db: self._prune(db, oldest))

    def _prune(self, db: apsw.Connection, oldest: str) -> None:
        """From the beginning on, and only what is as it was written: a hand that wants entries gone must not have them dropped as old."""
        start = seq, hash = self._base(db)
        for row in db.execute(f"{SELECT} ORDER BY seq"):
            if str(row[2]) >= oldest:
                break
            if row[0] != seq + 1 or row[1] != self._hash(hash, seq + 1, row[2:]):
                log.error("entry %s of the audit log is not as it was written: nothing from there on is dropped", row[0])
                break
            seq, hash = seq + 1, row[1]
        if (seq, hash) != start:
            base = {"id": "base", "seq": seq, "hash": hash.hex(), "mac": self._mac(seq, hash)}
            db.execute(
                "INSERT INTO documents VALUES ('audit', 'base', ?) ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body",
                (json.dumps(base),),
            )
            db.execute("DELETE FROM audit WHERE seq <= ?", (seq,))

    def _base(self, db: apsw.Connection) -> tuple[int, bytes]:
        """The number and hash before the first entry."""
        for (body,) in db.execute("SELECT body FROM documents WHERE kind = 'audit' AND id = 'base'").fetchall():
            base = json.loads(str(body))
            hash = bytes.fromhex(base["hash"])
            if hmac.compare_digest(base["mac"], self._mac(base["seq"], hash)):
                return int(base["seq"]), hash
        return 0, START

    def _head(self) -> Document | None:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) and isinstance(found.get("seq"), int) else None
        except (OSError, ValueError):
            return None

    def _hash(self, before: bytes, seq: int, values: tuple[Any, ...]) -> bytes:
        told = values if values[-2:] != (None, None) else values[:-2]  # as entries were hashed before they told what they belong to
        text = json.dumps([seq, *told], ensure_ascii=False, separators=(",", ":"))
        return hmac.digest(self._secret, before + text.encode("utf-8", "surrogatepass"), "sha256")

    def _mac(self, seq: int, hash: bytes = b"head") -> str:
        return hmac.digest(self._secret, f"{seq} ".encode() + hash, "sha256").hex()


def _text(arguments: Mapping[str, Any]) -> str:
    text = json.dumps(arguments, ensure_ascii=True, separators=(",", ":"))
    return text if len(text) <= ARGUMENTS else text[:ARGUMENTS] + "…"


def _document(row: tuple[Any, ...]) -> Document:
    return {"seq": row[0], **dict(zip((field.name for field in fields(Entry)), row[2:], strict=True)), "code": row[6] or None}


def _issue(seq: int, message: str) -> Document:
    return {"seq": seq, "message": message}


def _say_failed(done: asyncio.Future[Any]) -> None:
    if not done.cancelled() and (error := done.exception()):
        log.error("an entry of the audit log could not be written: %s", error)
