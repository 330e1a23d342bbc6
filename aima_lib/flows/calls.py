"""One call of a pipeline's run: tried as often as its step allows, let pass by whoever must, joined where it is under way already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import anyio
from anyio.abc import TaskGroup

from aima_lib.door import Caller
from aima_lib.errors import AimaError, ApprovalRequired, DeadlineExceeded, InvalidArgument, PermissionDenied
from aima_lib.flows.ahead import SPEAKS, Ahead
from aima_lib.flows.document import Call, Step
from aima_lib.flows.journal import FlowRow, Journal, Record
from aima_lib.flows.reference import resolve
from aima_lib.gateway import Context
from aima_lib.infra.clock import now, parse
from aima_lib.infra.progress import Send
from aima_lib.infra.store import Document
from aima_lib.registry import Unit
from aima_lib.runs import outcome_of

LONGEST_BACKOFF = 3600.0


class Uncertain(Exception):
    """A call that was begun before a crash, and nobody knows whether it was done."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(error["message"])
        self.error = error


class Calls:
    """Makes the calls of one run, as a caller who may no more than whoever began the run and whoever made the pipeline."""

    def __init__(
        self,
        ctx: Context,
        flow: FlowRow,
        journal: Journal,
        caller: Caller,
        creator: str | None,
        tell: Callable[[Record, Mapping[str, Any] | None], None],
        paused: Callable[[], AbstractContextManager[None]],
        speakers: Mapping[str, Step],
        tasks: TaskGroup,
    ) -> None:
        """tell: hears the progress of a call that is a run. paused: entered while a call waits for its approval. speakers: see `ahead`;
        what they say before their turn is said in `tasks`."""
        self._ctx, self._flow, self._journal, self.caller, self._creator = ctx, flow, journal, caller, creator
        self._tell, self._paused = tell, paused
        self._services = ctx.services
        self._speakers, self._tasks = speakers, tasks
        self._ahead: dict[str, Ahead] = {}  # by the step that speaks

    async def made(self, step: Step, call: Call, record: Record, scope: Mapping[str, Any], primary: Mapping[str, str]) -> Mapping[str, Any]:
        """The output of a step's call, or of its compensation.

        Raises:
            AimaError: the last attempt failed.
            Uncertain: it cannot be known whether it was done, and the step does not want it done again.
        """
        while True:
            if record.status == "retrying":
                await self._wait_between(step, record)
            try:
                arguments = resolve(call.input, scope, primary)
                hear = None if record.undo else self._leading(step, scope, primary)
                return await self._attempt(step, call, record, arguments, hear)
            except Uncertain:
                if step.on_unknown != "retry":
                    raise
                record.attempts += 1  # another attempt is another run
            except AimaError as error:
                if record.attempts >= step.retry.attempts or not _retries(step, error):
                    raise
                record.status, record.error, record.finished_at = "retrying", error.as_dict(), now()
                await self._note(record)

    def child(self, call: Call, record: Record) -> Document | None:
        """The run that a call of a durable unit has begun, if it has."""
        unit = self._ctx.registry.get(call.type)
        return self._ctx.runs.keyed(unit.name, self._key(record), self.caller) if unit is not None and unit.durable else None

    async def end(self, call: Call, record: Record) -> Document | None:
        """The run that a call has begun, if it has: it has ended now."""
        child = self.child(call, record)
        return await self._ctx.runs.cancel(child["id"]) if child is not None else None

    async def withdraw(self, approval_id: str) -> None:
        """Nobody need approve a call any more that is not made."""
        await self._services.approvals.withdraw(approval_id)

    def in_doubt(self, call: Call, record: Record) -> bool:
        """Whether a call that was cut off may have been done, and may not be done again."""
        unit = self._ctx.registry.get(call.type)
        if unit is None or unit.durable or not self.may_have_done(call, record):
            return False  # a run is joined
        return not unit.definition["annotations"]["idempotentHint"]

    def may_have_done(self, call: Call, record: Record, undoable: bool = False) -> bool:
        """Whether a call that was cut off may have changed something."""
        unit = self._ctx.registry.get(call.type)
        if not undoable and (unit is None or unit.kind == "query" or unit.definition["scope"] == "inference"):
            return False  # to ask a model changes nothing
        return record.approval_id is None or self._services.approvals.was_used(record.approval_id)

    def left_open(self, call: Call, record: Record, child: Document | None, undoable: bool) -> bool:
        """Whether a call that was cut off for good, and the run it began if it did, may have left something.

        undoable: its step has a compensation, so that somebody says that it leaves something, whatever its unit says.
        """
        unit = self._ctx.registry.get(call.type)
        if child is not None:
            partly = undoable and unit is not None and not unit.unwinds  # it may have been done before it was stopped
            return child["status"] == "interrupted" or (child["status"] == "cancelled" and partly)
        if record.status != "started" or (unit is not None and unit.durable):
            return False  # it failed, was not let pass, or its run was never begun
        return self.may_have_done(call, record, undoable)

    def _key(self, record: Record) -> str:
        """What makes the run that this attempt begins one and the same, whoever asks for it."""
        place = f".{record.item}" if record.item >= 0 else ""
        return f"{self._flow.run_id}.{record.step}{place}.{'undo.' if record.undo else ''}{record.attempts}"

    async def _note(self, record: Record) -> None:
        with anyio.CancelScope(shield=True):
            await self._journal.write(self._flow, [record])
        self._tell(record, None)

    async def _wait_between(self, step: Step, record: Record) -> None:
        wait = min(step.retry.backoff_seconds * 2 ** (record.attempts - 1), LONGEST_BACKOFF)
        since = (parse(now()) - parse(record.finished_at or now())).total_seconds()
        await anyio.sleep(max(wait - since, 0))
        record.status, record.error, record.finished_at, record.attempts = "started", None, None, record.attempts + 1
        await self._note(record)

    def _leading(self, step: Step, scope: Mapping[str, Any], primary: Mapping[str, str]) -> Send | None:
        """What is to hear the text that this step's model says, where another step can speak it already."""
        speaker = self._speakers.get(step.id)
        if speaker is None:
            return None
        try:
            others = resolve({key: value for key, value in speaker.input.items() if key != "text"}, scope, primary)
        except InvalidArgument:
            return None  # it waits for more than the text
        ahead = self._ahead[speaker.id] = Ahead(lambda text: self._spoken(others | {"text": text}))
        self._tasks.start_soon(ahead.run)
        return ahead.hear

    async def _spoken(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        return await self._ctx.gateway.call(SPEAKS, arguments, caller=self.caller, parent=self._flow.run_id)

    async def _attempt(self, step: Step, call: Call, record: Record, arguments: Mapping[str, Any], hear: Send | None) -> Mapping[str, Any]:
        if self._creator is not None:  # nobody may more through a pipeline than its maker may
            self._services.keys.refuse_revoked(Caller(self._creator, frozenset()))
        unit = self._ctx.gateway.find(call.type)
        if (begun := self.child(call, record)) is not None:
            return await self._timely(step, call, record, lambda: self._joined(begun, record))
        digest = self._digest(unit, arguments) if step.cache_seconds and not record.undo else None
        if digest is not None:
            self.caller.need(unit.definition["scope"], unit.name)
            if (kept := self._journal.cached(digest)) is not None:
                return kept
        asks = (step.approval and not record.undo) or record.approval_id is not None or self._ctx.gateway.asks(unit, self.caller)
        while True:
            token = await self._approval(step, unit, arguments, record) if asks else None
            try:
                output = await self._timely(step, call, record, lambda token=token: self._called(unit, arguments, record, token, hear))  # type: ignore[misc]
                break
            except ApprovalRequired as refusal:
                if refusal.details.get("plan", {}).get("unit") != unit.name:
                    raise  # something inside of it asks, which our token does not help
                asks = True
        if digest is not None and step.cache_seconds:
            self._journal.keep(digest, output, step.cache_seconds)
        return output

    async def _timely(self, step: Step, call: Call, record: Record, work: Callable[[], Any]) -> Mapping[str, Any]:
        """Do it within the step's time; a run that takes longer is cancelled."""
        output: Mapping[str, Any]
        if step.timeout_seconds is None:
            output = await work()
            return output
        try:
            with anyio.fail_after(step.timeout_seconds):
                output = await work()
                return output
        except TimeoutError as error:
            if (begun := self.child(call, record)) is not None:
                await self._ctx.runs.cancel(begun["id"])
            raise DeadlineExceeded(f"{call.type} took longer than the {step.timeout_seconds:g} s of the step {step.id}") from error

    async def _called(
        self, unit: Unit, arguments: Mapping[str, Any], record: Record, token: str | None, hear: Send | None
    ) -> Mapping[str, Any]:
        frozen = self._services.freeze.record is not None
        key = self._key(record) if unit.durable else None
        send = self._sender(record) if unit.durable else hear
        try:
            ahead = None if record.undo else self._ahead.pop(record.step, None)
            if ahead is not None and not unit.input.first_error(arguments):
                parts = await ahead.whole(arguments["text"])
                if (joined := await self._services.modalities.joined(parts, self.caller)) is not None:
                    return joined
            return await self._ctx.gateway.call(
                unit.name, arguments, caller=self.caller, send=send, key=key, token=token, parent=self._flow.run_id
            )
        except AimaError:
            if self._services.freeze.record is not None and not frozen:
                await anyio.sleep_forever()  # a freeze cut it off, and suspends the run in a moment: no failure of the step
            raise

    async def _joined(self, begun: Document, record: Record) -> Mapping[str, Any]:
        run = await self._ctx.runs.follow(begun["id"], self._sender(record))
        if run["status"] == "interrupted":
            raise Uncertain(run["error"])
        if run["status"] == "running":  # suspended, as this run will be in a moment
            await anyio.sleep_forever()
        return outcome_of(run)

    def _sender(self, record: Record) -> Callable[[Mapping[str, Any]], Any]:
        async def send(item: Mapping[str, Any]) -> None:
            self._tell(record, item)

        return send

    def _digest(self, unit: Unit, arguments: Mapping[str, Any]) -> str:
        """The same for the same call by a caller who may the same."""
        models = None if self.caller.models is None else sorted(self.caller.models)
        told = [unit.name, arguments, self.caller.name, sorted(self.caller.scopes), models]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    async def _approval(self, step: Step, unit: Unit, arguments: Mapping[str, Any], record: Record) -> str:
        """The token of a plan of this call that somebody else has approved. Waits for that, however often this host dies meanwhile.

        Raises:
            PermissionDenied: it was denied.
            DeadlineExceeded: nobody said anything in time.
        """
        approvals = self._services.approvals
        while True:
            plan: Mapping[str, Any] | None = approvals.peek(record.approval_id) if record.approval_id is not None else None
            status = plan["status"] if plan else "gone"
            if plan and status == "approved":
                record.status = "started"
                await self._note(record)
                return approvals.token_of(plan["id"])
            if plan and status == "denied":
                why = f": {plan['reason']}" if plan["reason"] else ""
                raise PermissionDenied(f"{plan['decided_by']} denied {unit.name} in the step {step.id}{why}")
            if plan and status == "expired" and plan["decided_by"] is None:
                raise DeadlineExceeded(f"nobody approved {unit.name} in the step {step.id} until {plan['expires_at']}")
            if plan is None or status != "open":
                plan = await self._ctx.gateway.request(unit.name, arguments, caller=self.caller, run_id=self._flow.run_id)
                record.status, record.approval_id = "waiting", plan["id"]
                await self._note(record)
            with self._paused():
                await approvals.decided(str(record.approval_id))


def _retries(step: Step, error: AimaError) -> bool:
    if step.retry.on:
        return error.code in step.retry.on
    return bool(error.as_dict()["retryable"])
