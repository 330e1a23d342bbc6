"""Long work is a run: recorded before it starts, told apart from whoever asked for it, and taken up again after a crash."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
from anyio.abc import TaskGroup

from aima_lib.door import OWNER, Caller
from aima_lib.errors import AimaError, AlreadyExists, Cancelled, FailedPrecondition, Unauthenticated, Unavailable
from aima_lib.infra import lineage, trace
from aima_lib.infra.clock import now
from aima_lib.infra.progress import Send
from aima_lib.infra.store import Document, Store
from aima_lib.names import slug, token
from aima_lib.registry import Registry, Unit

Execute = Callable[[Unit, Mapping[str, Any], Caller, str, Send], Awaitable[Mapping[str, Any]]]
PERSIST_EVERY_SECONDS = 1.0
INSIDE = ("scopes", "models", "input_digest", "plan_id", "traceparent")
log = logging.getLogger(__name__)


class _Live:
    """A run that is under way in this process."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.done = anyio.Event()
        self.news = anyio.Event()
        self.progress: dict[str, Any] | None = None
        self.told_at: str | None = None
        self.cancelled = False  # somebody asked for it to stop, and that is on record
        self.keeps = False  # whoever did would have what it has brought kept
        self.suspended = False

    def tell(self, progress: Mapping[str, Any]) -> None:
        self.progress, self.told_at = dict(progress), now()
        news, self.news = self.news, anyio.Event()
        news.set()


class Runs:
    """Every run of this home. `open` gives it the task group in which runs live, and what executes a unit."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store, self._registry = store, registry
        self._live: dict[str, _Live] = {}
        self._tasks: TaskGroup | None = None
        self._execute: Execute | None = None

    def open(self, tasks: TaskGroup, execute: Execute) -> None:
        """Start accepting runs: they live in `tasks`, not in their callers."""
        self._tasks, self._execute = tasks, execute

    async def start(
        self,
        unit: Unit,
        arguments: Mapping[str, Any],
        caller: Caller,
        key: str | None,
        plan_id: str | None = None,
        parent: str | None = None,
    ) -> Document:
        """Record a run and set it going. With a key that was used before for the same input, that earlier run.

        parent: the run that it is part of.

        Raises:
            AlreadyExists: the key was used with another input, or by another caller.
        """
        digest = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()
        whole, cause = lineage.ids()
        run = {
            "id": _id(unit.name, key, caller),
            "unit": unit.name,
            "status": "running",
            "input": dict(arguments),
            "caller": caller.name,
            "scopes": sorted(caller.scopes),
            "models": None if caller.models is None else sorted(caller.models),
            "idempotency_key": key,
            "input_digest": digest,
            "plan_id": plan_id,
            "parent": parent,
            "attempts": 1,
            "trace_id": trace.trace_id(),
            "traceparent": trace.headers().get(trace.PARENT),
            "correlation_id": whole,
            "causation_id": cause,
            "progress": None,
            "result": None,
            "error": None,
            "created_at": now(),
            "finished_at": None,
        }
        with anyio.CancelScope(shield=True):  # a caller that leaves now must not leave a record that nobody works on
            try:
                await self._store.insert("run", run)
            except AlreadyExists:
                return self._same(run)
            self._begin(unit, run, caller)
        return run

    async def follow(self, run_id: str, send: Send, seconds: float | None = None) -> Document:
        """Pass the run's progress on until it ends, or for so many seconds; returns the run."""
        live = self._live.get(run_id)
        if live is None:
            return self._store.get("run", run_id)
        with anyio.move_on_after(seconds):
            told = None
            while not live.done.is_set():
                news = live.news
                if live.progress is not None and live.progress is not told:
                    told = live.progress
                    await send(told)
                    continue
                await news.wait()
        return self.get(run_id)

    def get(self, run_id: str) -> Document:
        """The run, with its newest progress. Raises NotFound."""
        run = self._store.get("run", run_id)
        live = self._live.get(run_id)
        return run | {"progress": live.progress, "updated_at": live.told_at} if live and live.progress else run

    def seen(self, run_id: str, caller: Caller) -> Document:
        """The run, if the caller may know of it: the caller's own, or any for an admin. Raises NotFound, of both kinds of absence alike."""
        run = self._store.peek("run", run_id)
        if run is None or not (caller.may("admin") or run["caller"] == caller.name):
            raise self._store.missing("run", run_id, caller=None if caller.may("admin") else caller.name)
        return self.get(run_id)

    async def cancel(self, run_id: str, keep: bool = False) -> Document:
        """Ask a run to stop and wait until it has. A run that has ended is left as it is. keep: what it has brought may stay."""
        run = self._store.get("run", run_id)
        live = self._live.get(run_id)
        if live is None:
            if run["status"] == "running":
                raise FailedPrecondition(f"run {run_id} is not under way in this process", hint="start the host: it takes the run up again")
            return run
        if not live.cancelled:
            try:
                with anyio.CancelScope(shield=True):  # on record first: a host that dies now must not let the run go on
                    await self._store.update("run", run_id, cancel_requested_at=now())
            finally:
                live.cancelled, live.keeps = True, keep
                live.scope.cancel()
        await live.done.wait()
        return self._store.get("run", run_id)

    def is_cancelled(self, run_id: str) -> bool:
        """Whether somebody asked this run, which is under way, to stop."""
        live = self._live.get(run_id)
        return live is not None and live.cancelled

    def keeps(self, run_id: str) -> bool:
        """Whether this run, which stops, leaves what it has brought: it goes on after a freeze, or whoever cancelled it said so."""
        live = self._live.get(run_id)
        return live is not None and (live.suspended or live.keeps)

    def keyed(self, unit: str, key: str, caller: Caller) -> Document | None:
        """The caller's run of a unit that was started with this key, or None."""
        return self._store.peek("run", _id(unit, key, caller))

    async def suspend(self) -> None:
        """Stop working on every run, as if the host had died: `recover` takes them up again."""
        working = list(self._live.values())
        for live in working:
            live.suspended = True
            live.scope.cancel()
        for live in working:
            await live.done.wait()

    async def recover(self) -> list[str]:
        """After a crash or a freeze: go on with what can go on, close the rest as interrupted. Returns the ids of those taken up.

        A run goes on with the scopes and models it was begun with, past its key's end too; not when its key has been revoked.
        """
        taken: list[tuple[Unit, Document]] = []
        for run in self._store.find("run", status="running"):
            if run["id"] in self._live:
                continue
            unit = self._registry.get(run["unit"])
            if (ended := self._ended(unit, run)) is not None:
                status, error = ended
                await self._store.update("run", run["id"], status=status, finished_at=now(), error=error.as_dict())
                continue
            assert unit is not None
            taken.append((unit, await self._store.update("run", run["id"], attempts=run["attempts"] + 1)))
        for unit, run in taken:  # all at once: one may wait for another
            models = run.get("models")
            self._begin(unit, run, Caller(run["caller"], frozenset(run["scopes"]), None if models is None else frozenset(models)))
        return [run["id"] for _, run in taken]

    def _ended(self, unit: Unit | None, run: Document) -> tuple[str, AimaError] | None:
        """How a run ends that a host left behind and nobody can go on with; None for one that goes on."""
        if (revoked := (self._store.peek("key", run["caller"]) or {}).get("revoked_at")) is not None:
            return "interrupted", Unauthenticated(f"the key {run['caller']}, which began this, was revoked at {revoked}")
        if run.get("cancel_requested_at") and not (unit and unit.unwinds):
            return "cancelled", _cancelled(run)
        if unit is None or not unit.durable or not unit.definition["annotations"]["idempotentHint"]:
            why = f"the host ended during {run['unit']}, which may not be done twice"
            again = [{"unit": run["unit"], "arguments": run["input"]}] if unit else []
            again.append({"unit": "event.explain", "arguments": {"subject": run["id"]}})
            return "interrupted", Unavailable(why, hint="look at what it left, then call it again", next=again)
        return None

    def _begin(self, unit: Unit, run: Document, caller: Caller) -> None:
        if self._tasks is None:
            raise Unavailable("this process does not host its home yet")
        live = self._live[run["id"]] = _Live()
        live.cancelled = run.get("cancel_requested_at") is not None
        self._tasks.start_soon(self._work, unit, run, caller, live, name=run["id"])

    async def _work(self, unit: Unit, run: Document, caller: Caller, live: _Live) -> None:
        """Whoever started it, or takes it up again: it belongs to what its record says."""
        parent = run.get("traceparent")
        again = {trace.PARENT: parent} if parent and run["attempts"] > 1 else trace.headers()
        with lineage.within(run["id"], run.get("correlation_id")), trace.carried(again):
            await self._do(unit, run, caller, live)

    async def _do(self, unit: Unit, run: Document, caller: Caller, live: _Live) -> None:
        assert self._execute is not None
        written = 0.0

        async def send(item: Mapping[str, Any]) -> None:
            nonlocal written
            live.tell({"completed": None, "total": None, **item})
            if time.monotonic() - written > PERSIST_EVERY_SECONDS:
                written = time.monotonic()
                await self._store.update("run", run["id"], progress=live.progress)

        outcome: dict[str, Any] = {}
        try:
            while not outcome:
                with live.scope:
                    try:
                        outcome = {"status": "succeeded", "result": dict(await self._execute(unit, run["input"], caller, run["id"], send))}
                    except AimaError as error:
                        status = "cancelled" if live.cancelled and isinstance(error, Cancelled) else "failed"
                        outcome = {"status": status, "error": error.as_dict()}
                if live.suspended or not (live.cancelled and unit.unwinds):
                    break
                live.scope = anyio.CancelScope()  # once more, to undo what it has done: just as the next host would
        finally:
            if live.cancelled and not outcome and not unit.unwinds:
                outcome = {"status": "cancelled", "error": _cancelled(run).as_dict()}
            # Without an outcome the host itself is going down, or frozen: the record stays `running`, and the next host takes it up.
            with anyio.CancelScope(shield=True):
                if outcome:
                    await self._close(run["id"], live, outcome)
                live.done.set()
                live.news.set()
                self._live.pop(run["id"], None)

    async def _close(self, run_id: str, live: _Live, outcome: Mapping[str, Any]) -> None:
        try:
            await self._store.update("run", run_id, finished_at=now(), progress=live.progress, **outcome)
        except AimaError as error:  # the disk is full, say: the run stays `running` on record, and the next host takes it up
            log.error("run %s ended as %s, which could not be recorded: %s", run_id, outcome["status"], error)

    def _same(self, run: Document) -> Document:
        earlier = self._store.get("run", run["id"])
        if earlier["caller"] != run["caller"]:
            raise AlreadyExists(f"another caller has used the idempotency key {run['idempotency_key']!r}", hint="use a new key")
        if earlier["input_digest"] != run["input_digest"]:
            raise AlreadyExists(
                f"idempotency key {run['idempotency_key']!r} was used for another {run['unit']}",
                hint="use a new key for a new call",
                next=[{"unit": "run.get", "arguments": {"run_id": run["id"]}}],
            )
        return earlier


def _cancelled(run: Document) -> Cancelled:
    key = run.get("idempotency_key")
    other = f" under another idempotency key ({key!r} is this run's)" if key else ""
    return Cancelled(f"run {run['id']} was cancelled", hint=f"the same call{other} begins anew, with whatever was kept")


def outcome_of(run: Document) -> Mapping[str, Any]:
    """The result of a run that has ended; raises its error."""
    if run["status"] == "succeeded":
        result: Mapping[str, Any] = run["result"]
        return result
    if run["error"]:
        raise AimaError.from_dict(run["error"])
    raise Unavailable(f"run {run['id']} is {run['status']}", next=[{"unit": "run.wait", "arguments": {"run_id": run["id"]}}])


def shown(run: Mapping[str, Any]) -> Document:
    """A run as it is told: types/run.json."""
    return {key: value for key, value in run.items() if key not in INSIDE}


def _id(unit: str, key: str | None, caller: Caller) -> str:
    stem = slug(unit.replace(".", "-"))
    if key is None:
        return f"{stem}-{token()}"
    if caller.name != OWNER.name:  # each caller's keys are its own: two that choose the same one must not share a run
        return f"{stem}-{hashlib.sha256(f'{caller.name} {key}'.encode()).hexdigest()[:16]}"
    readable = key if slug(key) == key else hashlib.sha256(key.encode()).hexdigest()[:12]
    return f"{stem}-{readable}"
