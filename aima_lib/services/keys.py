"""Keys: who may come in, as whom, until when, and what ends when a key is taken back.

The host is the only judge, so the records are kept in memory beside the store. A revoked key stays on record: its id is never given to
another, and what it did can still be told.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import anyio
import apsw

from aima_lib.door import AGENT, OWNER, Caller
from aima_lib.errors import InvalidArgument, NotFound, PermissionDenied, Unauthenticated
from aima_lib.infra.clock import now, parse, stamp
from aima_lib.infra.events import Events
from aima_lib.infra.home import Home
from aima_lib.infra.keys import SHOWN, digest, is_whole, mint
from aima_lib.infra.store import Document, Store
from aima_lib.names import did_you_mean, fresh, slug
from aima_lib.services.allowance import Allowance, Limits

FIELDS = (
    "id",
    "name",
    "scopes",
    "models",
    "profile",
    "priority",
    "prefix",
    "created_at",
    "created_by",
    "expires_at",
    "last_used_at",
    "revoked_at",
)
PRIORITIES, USUAL_PRIORITY = ("low", "normal", "high"), "normal"  # the lowest first
RESERVED = (OWNER.name, AGENT.name, "nobody")
# Whoever revokes its own key still gets the answer; everybody else's next request is refused at once.
END_SECONDS = 0.2
NOTED_SECONDS, SEEN_SECONDS = 60.0, 1.0
log = logging.getLogger(__name__)


class Work(Protocol):
    """What can be ended."""

    def cancel(self) -> object: ...


class Holding:
    """A block within which work is among what is held for a key. No generator: every request passes here."""

    __slots__ = ("_held", "_work")

    def __init__(self, held: set[Work] | None, work: Work) -> None:
        self._held, self._work = held, work

    def __enter__(self) -> None:
        if self._held is not None:
            self._held.add(self._work)

    def __exit__(self, *reason: object) -> None:
        if self._held is not None:
            self._held.discard(self._work)


class KeyService:
    """Every key of this home, and the owner's own."""

    def __init__(self, home: Home, store: Store, events: Events, allowance: Allowance) -> None:
        self._home, self._store, self._events, self._allowance = home, store, events, allowance
        self._records = {record["id"]: record for record in store.find("key")}
        for record in self._records.values():
            allowance.grant(record["id"], record.get("limits"))
        self._by_digest = {record["digest"]: record for record in self._records.values()}
        if self._records and not home.has_secret():
            log.error(
                "%s is gone: the %d keys made with it open nothing; revoke them and make new ones", home.secret_path, len(self._records)
            )
        self._secret = home.secret()
        self._held: dict[str, set[Work]] = {}
        self._noted: dict[str, float] = {}
        self._seen: dict[str, float] = {}
        self._callers: dict[str, Caller] = {}  # what a key may never changes
        self._creating = anyio.Lock()
        self.era = 0  # of what was judged before: it ends with each key that is taken back

    # Who comes in

    def caller(self, text: str) -> Caller:
        """Whose key this is.

        Raises:
            Unauthenticated: it is mistyped, nobody's, expired or revoked; the message says which.
        """
        if self._home.is_key(text):
            return OWNER
        kept = digest(self._secret, text)
        record = self._by_digest.get(kept)
        if record is None or not hmac.compare_digest(record["digest"], kept):
            if not is_whole(text):
                raise Unauthenticated("this is no whole key: its checksum does not fit", hint="it is mistyped or cut short; copy it again")
            raise Unauthenticated("nobody has this key", hint="`aima key show` prints the owner's; `aima key list` names the others")
        if ended := _ended(record):
            raise ended
        self._note_use(record)
        caller = self._callers.get(record["id"])
        if caller is None:
            models = None if record["models"] is None else frozenset(record["models"])
            caller = self._callers[record["id"]] = Caller(record["id"], frozenset(record["scopes"]), models)
        return caller

    def refuse_revoked(self, caller: Caller) -> None:
        """Raises Unauthenticated when the caller's key has been revoked since it came in."""
        record = self._records.get(caller.name)
        if record is not None and record["revoked_at"]:
            raise _revoked(record)

    def profile(self, caller: Caller) -> str | None:
        """The tools that MCP lists for this caller where nothing else says."""
        found: str | None = self._records.get(caller.name, {}).get("profile")
        return found

    def deadline(self, caller: Caller) -> float:
        """When, on the loop's clock, the caller's key expires: infinity when it does not."""
        record = self._records.get(caller.name)
        if record is None or record["expires_at"] is None:
            return math.inf
        return anyio.current_time() + (parse(record["expires_at"]) - datetime.now(UTC)).total_seconds()

    def holding(self, caller: Caller, work: Work) -> Holding:
        """Cancel `work` when the caller's key is revoked within the block."""
        return Holding(self._held.setdefault(caller.name, set()) if caller.name in self._records else None, work)

    def ended(self, caller: Caller) -> Unauthenticated:
        """Why what was held for this caller has ended."""
        record = self._records.get(caller.name)
        return (_ended(record) if record else None) or Unauthenticated(f"the key {caller.name} is no longer valid")

    # Keys

    async def create(
        self,
        name: str,
        scopes: Sequence[str],
        models: Sequence[str] | None,
        expires_at: str | None,
        by: Caller,
        limits: Limits | None = None,
        profile: str | None = None,
        priority: str | None = None,
    ) -> tuple[Document, str]:
        """Make a key; returns its record and the key itself, which is kept nowhere.

        Raises:
            InvalidArgument: expires_at is no moment to come.
            NotFound: no model or service has one of the ids.
            PermissionDenied: `by` would give more than it has.
        """
        until = self.judge(scopes, models, expires_at, by, limits, priority)
        text = mint()
        async with self._creating:
            record: Document = {
                "id": self.id_for(name),
                "name": name,
                "scopes": sorted(set(scopes)),
                "models": None if models is None else sorted(set(models)),
                "limits": dict(limits or {}),
                "profile": profile,
                "priority": priority or USUAL_PRIORITY,
                "prefix": text[:SHOWN],
                "digest": digest(self._secret, text),
                "created_at": now(),
                "created_by": by.name,
                "expires_at": until,
                "last_used_at": None,
                "revoked_at": None,
            }
            with anyio.CancelScope(shield=True):  # on disk and in memory, or in neither
                await self._store.insert("key", record)
                self._records[record["id"]] = self._by_digest[record["digest"]] = record
                self._allowance.grant(record["id"], limits)
        self._events.publish("key.created", {"key_id": record["id"], "by": by.name}, subject=record["id"])
        return self._shown(record), text

    def list(self, status: str | None = None, limit: int = 100, offset: int = 0) -> tuple[Sequence[Document], int]:
        """The keys, oldest first, and how many there are in all. `status`: active, expired or revoked."""
        found = [record for record in self._records.values() if status is None or _status(record) == status]
        return [self._shown(record) for record in found[offset : offset + limit]], len(found)

    def judge(
        self,
        scopes: Sequence[str],
        models: Sequence[str] | None,
        expires_at: str | None,
        by: Caller,
        limits: Limits | None,
        priority: str | None = None,
    ) -> str | None:
        """When such a key would end. Raises as `create` does."""
        until = None if expires_at is None else _moment_to_come(expires_at)
        self._refuse_unknown(models or ())
        self._refuse_more(by, scopes, models, until)
        self._refuse_higher(by, priority or USUAL_PRIORITY)
        self._allowance.refuse_more(by, limits)
        return until

    def id_for(self, name: str) -> str:
        """The id that the next key of this name gets."""
        return fresh(slug(name), {*RESERVED, *self._records})

    def find(self, key_id: str) -> Document:
        """One key as it is shown. Raises NotFound."""
        if key_id not in self._records:
            raise self._store.missing("key", key_id)
        return self._shown(self._records[key_id])

    async def revoke(self, key_id: str, by: Caller) -> Document:
        """Take a key back, for good: its next request is refused, what it has open ends. Again, nothing happens.

        Raises:
            NotFound: no key has that id.
        """
        record = self._records.get(key_id)
        if record is None:
            raise self._store.missing("key", key_id)
        self.era += 1
        record["revoked_at"] = record["revoked_at"] or now()  # at once, even where the disk then refuses to write it down
        asyncio.get_running_loop().call_later(END_SECONDS, self._end, key_id)
        with anyio.CancelScope(shield=True):
            known = self._store.get("key", key_id)["revoked_at"]
            if known is None:
                await self._store.update("key", key_id, revoked_at=record["revoked_at"])
                self._events.publish("key.revoked", {"key_id": key_id, "by": by.name}, subject=key_id)
        return self._shown(record)

    def _shown(self, record: Document) -> Document:
        shown = {field: record.get(field) for field in FIELDS} | {"status": _status(record), "priority": _priority(record)}
        return shown | {"limits": self._allowance.limits(record["id"]), "usage": self._allowance.usage(record["id"])}

    def _end(self, key_id: str) -> None:
        for scope in list(self._held.get(key_id, ())):
            scope.cancel()

    def _note_use(self, record: Document) -> None:
        """Remember the second; write it down once a minute, and without waiting: a request need not cost a write."""
        if time.monotonic() - self._seen.get(record["id"], -math.inf) < SEEN_SECONDS:
            return
        self._seen[record["id"]] = time.monotonic()
        record["last_used_at"] = moment = now()
        if time.monotonic() - self._noted.get(record["id"], -math.inf) < NOTED_SECONDS:
            return
        self._noted[record["id"]] = time.monotonic()
        sql = "UPDATE documents SET body = json_set(body, '$.last_used_at', ?) WHERE kind = 'key' AND id = ?"
        writing = self._store.submit(lambda db: _execute(db, sql, (moment, record["id"])))
        writing.add_done_callback(_say_failed)

    def _refuse_unknown(self, models: Sequence[str]) -> None:
        known = {document["id"] for kind in ("model", "service") for document in self._store.find(kind)}
        for model in models:
            if model not in known:
                hint = did_you_mean(model, known) or "inference.models lists what there is"
                raise NotFound(f"no model or service called {model!r}", hint=hint, next=[{"unit": "inference.models", "arguments": {}}])

    def _refuse_higher(self, by: Caller, priority: str) -> None:
        record = self._records.get(by.name)
        if record and PRIORITIES.index(priority) > PRIORITIES.index(own := _priority(record)):
            hint = f"give priority: {own}"
            raise PermissionDenied(f"{by.name} may not make a key of a higher priority than its own, {own}", hint=hint)

    def _refuse_more(self, by: Caller, scopes: Sequence[str], models: Sequence[str] | None, until: str | None) -> None:
        """A key gives no more than its maker has: no other scope, no other model, no later end."""
        for scope in scopes:
            if not by.may(scope):
                raise PermissionDenied(
                    f"{by.name} may not give the scope {scope}, which it does not have",
                    hint="ask whoever has it; exec is in no other scope, not even in admin",
                    details={"scope": scope},
                )
        if by.models is not None and (models is None or not by.models.issuperset(models)):
            allowed = sorted(by.models)
            raise PermissionDenied(
                f"{by.name} may not make a key for more models than its own",
                hint=f"give models: {', '.join(allowed)}",
                details={"models": allowed},
            )
        record = self._records.get(by.name)
        if record and record["expires_at"] and (until is None or parse(until) > parse(record["expires_at"])):
            raise PermissionDenied(
                f"{by.name} may not make a key that outlives it", hint=f"give expires_at: {record['expires_at']} or earlier"
            )


def _execute(db: apsw.Connection, sql: str, values: tuple[Any, ...]) -> None:
    db.execute(sql, values)


def _say_failed(done: asyncio.Future[Any]) -> None:
    if not done.cancelled() and (error := done.exception()):
        log.error("when a key was last used could not be written down: %s", error)


def _priority(record: Document) -> str:
    return str(record.get("priority") or USUAL_PRIORITY)


def _status(record: Document) -> str:
    if record["revoked_at"]:
        return "revoked"
    return "expired" if record["expires_at"] and parse(record["expires_at"]) <= datetime.now(UTC) else "active"


def _ended(record: Document) -> Unauthenticated | None:
    status = _status(record)
    if status == "expired":
        return Unauthenticated(f"the key {record['id']} expired at {record['expires_at']}", hint="ask the owner for a new one")
    return _revoked(record) if status == "revoked" else None


def _revoked(record: Document) -> Unauthenticated:
    return Unauthenticated(f"the key {record['id']} was revoked at {record['revoked_at']}", hint="ask the owner for a new one")


def _moment_to_come(text: str) -> str:
    try:
        moment = parse(text)
        if moment.tzinfo is None:
            raise ValueError("it names no time zone")
        if moment <= datetime.now(UTC):
            raise ValueError("it is past")
        return stamp(moment)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(f"expires_at: {text!r} is no moment to come: {error}", hint=f"write it like {now()}") from error
