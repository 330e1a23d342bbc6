"""Plans: what a caller was told a call would change, and the one-time token that lets just that call pass.

A token is bound to who asked, to the arguments, and to the world the plan saw. It can be told again but not guessed: it is made from the
plan's id with the secret that lies outside the store, and whether it was used is decided by the store, once.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import apsw

from aima_lib.door import AGENT, OWNER, Caller
from aima_lib.errors import FailedPrecondition, PermissionDenied, ResourceExhausted
from aima_lib.infra.change import Change
from aima_lib.infra.clock import now, parse, stamp
from aima_lib.infra.events import Events
from aima_lib.infra.home import Home
from aima_lib.infra.store import Document, Store
from aima_lib.names import token as word

MOST_OPEN = 100  # of one caller: asking for more is a loop, not a wish
KEPT = timedelta(days=7)
EXPIRED_SECONDS = 0.01  # stamps are cut to the millisecond
INSIDE = ("digest", "fingerprint")
CLAIM = """UPDATE documents SET body = json_set(body, '$.status', 'applied') WHERE kind = 'plan' AND id = ?
  AND json_extract(body, '$.status') = ? RETURNING id"""


class Approvals:
    """Every plan of this home. Nothing here knows a unit."""

    def __init__(self, settings: Mapping[str, Any], home: Home, store: Store, events: Events) -> None:
        self._token_life = timedelta(seconds=float(settings["token_seconds"]))
        self._request_life = timedelta(seconds=float(settings["request_seconds"]))
        self._secret, self._store, self._events = home.secret(), store, events

    async def propose(
        self,
        unit: str,
        arguments: Mapping[str, Any],
        shown: Mapping[str, Any],
        caller: Caller,
        level: str,
        change: Change,
        run_id: str | None = None,
    ) -> Document:
        """The plan of a call, with its token; the open one when the same call was planned and nothing has changed since.

        shown: the arguments without what must not be written down. run_id: the run that pauses until it is decided.

        Raises:
            ResourceExhausted: this caller has too many open ones.
        """
        asked = {"unit": unit, "digest": _digest(arguments), "caller": caller.name, "fingerprint": change.fingerprint(), "run_id": run_id}
        mine = [plan for plan in self._store.find("plan", caller=caller.name) if _status(plan) in ("open", "approved")]
        for plan in mine:
            if all(plan.get(key) == value for key, value in asked.items()) and plan["policy"] == level:
                return self.shown(plan) | {"token": self._token(plan["id"])}
        if len(mine) >= MOST_OPEN:
            raise ResourceExhausted(f"{caller.name} has {len(mine)} plans open", hint="apply some, or wait: each expires by itself")
        life = self._request_life if level == "approve" else self._token_life
        plan = {
            "id": f"plan-{word(10)}",
            **asked,
            "arguments": dict(shown),
            "policy": level,
            "status": "open",
            "changes": change.as_dict(),
            "summary": change.words(),
            "created_at": now(),
            "expires_at": stamp(datetime.now(UTC) + life),
            "decided_by": None,
            "reason": None,
        }
        await self._store.submit(_forget_old)
        await self._store.insert("plan", plan)
        if level == "approve":
            told = {"approval_id": plan["id"], "unit": unit, "caller": caller.name, "summary": plan["summary"]}
            self._events.publish("approval.requested", told, subject=plan["id"])
        return self.shown(plan) | {"token": self._token(plan["id"])}

    async def take(self, token: str, unit: str, arguments: Mapping[str, Any], caller: Caller, level: str, change: Change) -> str | None:
        """Use a token up. None when the call may pass, once; else why it may not, and nothing is used up."""
        id = token.partition(".")[0]
        plan = self._store.peek("plan", id)
        if plan is None or plan["caller"] != caller.name or not hmac.compare_digest(token.encode(), self._token(id).encode()):
            return "this token is none of yours"
        if plan["unit"] != unit or plan["digest"] != _digest(arguments):
            return f"this token is for another call: {plan['unit']} with the arguments it was planned with"
        status = _status(plan)
        if status not in ("open", "approved"):
            over = {"applied": "this token was used already", "denied": f"{plan['decided_by']} denied it"}
            return over.get(status, "this token expired")
        if level == "approve" and status != "approved":
            return "nobody has approved it yet"
        if plan["fingerprint"] != change.fingerprint():
            return "what it would change is no longer what the plan said"
        return None if await self._store.submit(lambda db: _claim(db, id, status)) else "this token was used already"

    def list(self, caller: Caller, status: str | None = None, limit: int = 100, offset: int = 0) -> tuple[Sequence[Document], int]:
        """Plans, newest first, and how many in all: a caller's own, or everybody's for an admin."""
        whose = None if caller.may("admin") else caller.name
        found = [plan for plan in self._store.find("plan", newest_first=True, caller=whose) if status in (None, _status(plan))]
        return [self.shown(plan) for plan in found[offset : offset + limit]], len(found)

    def find(self, approval_id: str) -> Document:
        """One plan. Raises NotFound."""
        return self._store.get("plan", approval_id)

    async def decide(self, approval_id: str, verdict: str, reason: str | None, by: Caller) -> Document:
        """Approve or deny a request, as somebody else than who asked.

        Raises:
            NotFound: there is none.
            PermissionDenied: it is the caller's own, or the caller is an agent.
            FailedPrecondition: it is decided, used or expired, or needs nobody's approval.
        """
        plan = self._store.get("plan", approval_id)
        own = plan["caller"] == by.name and not (by.name == OWNER.name and plan.get("run_id"))  # nobody else stands above the owner's runs
        if verdict == "approved" and own:
            raise PermissionDenied(f"{by.name} asked for {approval_id} and cannot approve it", hint="somebody else must: aima approve")
        if verdict == "approved" and by == AGENT:
            raise PermissionDenied("an agent cannot approve", hint="a person does, on the command line: aima approve")
        status = _status(plan)
        if plan["policy"] != "approve" or status != "open":
            why = f"is {status}" if plan["policy"] == "approve" else "needs nobody's approval"
            raise FailedPrecondition(f"{approval_id} {why}", next=[{"unit": "approval.list", "arguments": {"status": "open"}}])
        changes = {"status": verdict, "decided_by": by.name, "reason": reason}
        if verdict == "approved":
            changes["expires_at"] = stamp(datetime.now(UTC) + self._token_life)
        plan = await self._store.update("plan", approval_id, **changes)
        told = {"approval_id": approval_id, "unit": plan["unit"], "caller": plan["caller"], "by": by.name}
        self._events.publish(f"approval.{verdict}", told, subject=approval_id)
        return self.shown(plan)

    # For a run that pauses

    def peek(self, approval_id: str) -> Document | None:
        """The plan as it is told, or None when it was forgotten."""
        plan = self._store.peek("plan", approval_id)
        return None if plan is None else self.shown(plan)

    def was_used(self, approval_id: str) -> bool:
        """Whether the token of the plan let a call pass, or may have."""
        plan = self._store.peek("plan", approval_id)
        return plan is None or plan["status"] not in ("open", "approved", "denied")

    def token_of(self, approval_id: str) -> str:
        """The token of a plan, for the run that asked for it."""
        return self._token(approval_id)

    async def decided(self, approval_id: str) -> None:
        """Wait until somebody approved or denied it, or it expired."""
        news = anyio.Event()

        def hear(event: Document) -> None:
            if event["subject"] == approval_id and event["type"] != "approval.requested":
                news.set()

        leave = self._events.subscribe(hear)
        try:
            while (plan := self.peek(approval_id)) is not None and plan["status"] == "open" and not news.is_set():
                left = (parse(plan["expires_at"]) - datetime.now(UTC)).total_seconds()
                with anyio.move_on_after(max(left, 0) + EXPIRED_SECONDS):
                    await news.wait()
        finally:
            leave()

    async def withdraw(self, approval_id: str) -> None:
        """Nobody needs it any more: it is not asked about again."""
        plan = self._store.peek("plan", approval_id)
        if plan is not None and _status(plan) in ("open", "approved"):
            await self._store.update("plan", approval_id, expires_at=now())

    def shown(self, plan: Document) -> Document:
        """A plan as it is told: types/plan.json, less the token."""
        told = {key: value for key, value in plan.items() if key not in INSIDE} | {"status": _status(plan)}
        return told | {"run_id": plan.get("run_id")}

    def _token(self, id: str) -> str:
        made = hmac.digest(self._secret, f"token of {id}".encode(), "sha256")
        return f"{id}.{base64.urlsafe_b64encode(made).decode().rstrip('=')}"


def _status(plan: Document) -> str:
    over = plan["status"] in ("open", "approved") and plan["expires_at"] <= now()
    return "expired" if over else str(plan["status"])


def _digest(arguments: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()


def _claim(db: apsw.Connection, id: str, status: str) -> bool:
    return bool(db.execute(CLAIM, (id, status)).fetchall())


def _forget_old(db: apsw.Connection) -> None:
    before = stamp(datetime.now(UTC) - KEPT)
    db.execute("DELETE FROM documents WHERE kind = 'plan' AND json_extract(body, '$.expires_at') < ?", (before,))
