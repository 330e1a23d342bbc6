"""The emergency brake: while a home is frozen nothing is changed, by anyone, until somebody thaws it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from aima_lib.door import Caller
from aima_lib.errors import FailedPrecondition
from aima_lib.infra.clock import now
from aima_lib.infra.events import Events
from aima_lib.infra.store import Document, Store
from aima_lib.registry import Unit

# What takes away, undoes, or only lets something else pass: it must work when nothing else does.
ALWAYS = frozenset({"system.freeze", "system.thaw", "approval.approve", "approval.deny", "key.revoke", "run.cancel", "unit.call"})


class Freeze:
    """Whether this home is frozen, and what ends when it is. Kept over restarts of the host."""

    def __init__(self, store: Store, events: Events) -> None:
        self._store, self._events = store, events
        self._record = store.peek("state", "freeze")
        self._held: set[anyio.CancelScope] = set()

    @property
    def record(self) -> Document | None:
        """Since when, by whom and why; None when it is not frozen."""
        return None if self._record is None else {key: self._record[key] for key in ("at", "by", "reason")}

    def refuse(self, unit: Unit) -> None:
        """Raises FailedPrecondition for a command that would change something now."""
        if self._record is not None and _writes(unit):
            raise self.refusal(unit.name)

    def refusal(self, what: str) -> FailedPrecondition:
        """Why it is not done, or no longer done."""
        record = self.record or {"by": "somebody", "at": now(), "reason": None}
        why = f": {record['reason']}" if record["reason"] else ""
        message = f"{what} is not done: {record['by']} froze this home at {record['at']}{why}"
        return FailedPrecondition(message, hint="the owner can thaw it: aima thaw", details={"frozen": record})

    @contextmanager
    def holding(self, unit: Unit, scope: anyio.CancelScope) -> Iterator[None]:
        """Cancel `scope` when the home is frozen within the block."""
        if unit.durable or not _writes(unit):  # a run that a freeze stops is taken up again
            yield
            return
        self._held.add(scope)
        try:
            yield
        finally:
            self._held.discard(scope)

    async def freeze(self, reason: str | None, by: Caller) -> Document | None:
        """Stop every change. Again, nothing happens."""
        if self._record is None:
            self._record = {"id": "freeze", "at": now(), "by": by.name, "reason": reason}  # at once, even where the disk refuses it
            for scope in list(self._held):
                scope.cancel()
            await self._store.put("state", self._record)
            self._events.publish("system.frozen", {"by": by.name, "reason": reason}, subject=by.name)
        return self.record

    async def thaw(self, by: Caller) -> None:
        """Let things be changed again."""
        if self._record is not None:
            await self._store.delete("state", "freeze")
            self._record = None
            self._events.publish("system.thawed", {"by": by.name}, subject=by.name)


def _writes(unit: Unit) -> bool:
    return unit.kind == "command" and unit.definition["scope"] != "inference" and unit.name not in ALWAYS
