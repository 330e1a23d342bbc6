"""Runs a pipeline: everything at once that can be, each call on record before it is made and after, and undone where the run fails.

A `Flow` is one run in one process. It begins from what the journal holds: nothing at first, and after a crash whatever was done. The
first half goes forward until each step is settled or one fails for good; the second undoes, last call first, what has a compensation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from aima_lib.errors import AimaError, Cancelled, DeadlineExceeded, Internal, InvalidArgument
from aima_lib.flows.calls import Calls, Uncertain
from aima_lib.flows.document import Call, Pipeline, Step
from aima_lib.flows.expression import evaluate, truth
from aima_lib.flows.journal import WHOLE, FlowRow, Journal, Key, Record
from aima_lib.flows.reference import resolve
from aima_lib.flows.telling import Telling
from aima_lib.infra.clock import now

MAX_PARALLEL = 8
MOST_ITEMS = 10_000


class Group:
    """A step with for_each: its items, and what came of each."""

    def __init__(self, items: list[Any], whole: Record) -> None:
        self.items, self.whole = items, whole
        self.outputs: list[Any] = [None] * len(items)
        self.pending: deque[int] = deque()
        self.left, self.running = len(items), 0
        self.failed: Record | None = None


class Flow:
    """One run. `given` is its input; `primary` the main output field of each step's unit."""

    def __init__(
        self, row: FlowRow, pipeline: Pipeline, journal: Journal, given: Mapping[str, Any], primary: Mapping[str, str], telling: Telling
    ) -> None:
        self.row, self.pipeline, self.telling = row, pipeline, telling
        self._journal, self._primary = journal, dict(primary)
        self.steps = {step.id: step for step in pipeline.steps}
        self.records: dict[Key, Record] = {record.key: record for record in journal.records(row)}
        self._scope: dict[str, Any] = {"input": given, "steps": {}, "run": {"id": row.run_id}, "config": pipeline.constants}
        self._values: dict[str, Any] = self._scope["steps"]
        self._ordinal = max((record.ordinal or 0 for record in self.records.values()), default=0)
        self._limit = int(pipeline.config.get("max_parallel", MAX_PARALLEL))
        self._busy = 0
        self._groups: dict[str, Group] = {}
        self._ready: deque[Step] = deque()  # all that they wait for is there
        self._queue: deque[Step] = deque()  # they have calls that can be made
        self._fallbacks = pipeline.fallbacks
        self._held: set[str] = set()
        self._failed_over: set[str] = set()
        self._fresh: set[Key] = set()  # rows of calls that begin now
        self._missing, self._after = _order(pipeline)
        self._calls: Calls | None = None
        self._tasks: TaskGroup | None = None
        self.failure: AimaError | None = None

    # Forward

    async def forward(self, calls: Calls, seconds: float | None) -> None:
        """Go on until every step is settled, or one fails for good: then `failure` says why, and the journal that it is to be undone.

        seconds: how long that may take.
        """
        self._calls = calls
        try:
            with anyio.fail_after(seconds):
                async with anyio.create_task_group() as self._tasks:
                    self._ready.extend(step for step in self.pipeline.steps if not self._missing[step.id])
                    await self._write([])
        except TimeoutError:
            self._fail(DeadlineExceeded(f"the run took longer than the {self.pipeline.config['timeout_seconds']:g} s of its pipeline"))
            await self._journal.write(self.row, ())
        except ExceptionGroup as group:  # nothing could be written down, say: that is no failure of a step, and nothing is undone
            raise next((error for error in group.exceptions if isinstance(error, AimaError)), group) from group
        finally:
            self._tasks = None
        await anyio.lowlevel.checkpoint_if_cancelled()  # all of its calls may have ended by a cancel before anybody waited for them
        if self.failure is None and self.row.state != "done":
            raise Internal(f"run {self.row.run_id} came to a stop before its end: {sorted(set(self.steps) - set(self._values))}")

    async def _advance(self, ended: Record) -> None:
        """A call has ended: settle what that settles, and begin what can begin now; all of it in one transaction."""
        made = [ended]
        self._take(ended, made)
        await self._write(made)

    async def _write(self, made: list[Record]) -> None:
        begun = self._begun(made)
        rows = {record.key: record for record in (*made, *(record for _, record, _ in begun))}
        if not rows:
            return
        writing, ended = self._journal.write(self.row, rows.values()), [record for record in rows.values() if record.is_final]
        for record in rows.values():
            self.telling.progress(record, None)
        assert self._tasks is not None
        if self.failure is not None:
            self._tasks.cancel_scope.cancel()
        # They need not wait for the disk: the store writes in order, and the gateway calls no handler of a command before its own entry in
        # the audit log, or the run's row, is on disk. What neither has may be done again.
        for step, record, item in begun:
            self._tasks.start_soon(self._work, step, record, item)
        with anyio.CancelScope(shield=True):  # what is done is done: a cancel that comes now must not lose its record
            await writing
        for record in ended:  # an event must not be on disk before its row is: the call would be made again, and told again
            self.telling.hear(record)

    def _begun(self, made: list[Record]) -> list[tuple[Step, Record, Any]]:
        """The calls that begin now; what ends without a call is added to `made`."""
        begun: list[tuple[Step, Record, Any]] = []
        self._fresh.clear()
        while self.failure is None:
            while self._ready:
                self._open(self._ready.popleft(), made)
            begun += self._picked(made)
            if not self._ready:
                break
        self._finish_if_done()
        if self.failure is None:
            return begun
        for _, record, _ in begun:  # no call is made of these, and none is on record
            if record.key in self._fresh:
                del self.records[record.key]
        return []

    def _finish_if_done(self) -> None:
        if len(self._values) < len(self.steps) or self.failure is not None or self.row.state != "forward":
            return
        try:
            self.result()  # what it says must be there
            self.row.state = "done"
        except InvalidArgument as error:
            self._fail(InvalidArgument(f"output: {error}", hint=error.hint))

    def result(self) -> Any:
        """What the run gives back, once every step is settled."""
        return resolve(self.pipeline.result, self._scope, self._primary)

    async def _work(self, step: Step, record: Record, item: Any) -> None:
        assert self._calls is not None
        try:
            scope = self._scope if record.item == WHOLE else self._scope | {"item": item}
            output = await self._calls.made(step, Call(step.type, step.input), record, scope, self._primary)
            _end(record, "succeeded", output)
        except Uncertain as doubt:
            _end(record, "unknown", None, doubt.error)
        except AimaError as error:
            _end(record, "failed", None, error.as_dict())
        self._busy -= 1
        await self._advance(record)

    def _picked(self, made: list[Record]) -> Iterator[tuple[Step, Record, Any]]:
        """The calls that have a place now. Steps take turns."""
        while self._queue and self._busy < self._limit and self.failure is None:
            step = self._queue.popleft()
            group, place, item = self._groups.get(step.id), WHOLE, None
            if group is not None:
                if not group.pending or group.failed is not None or group.running >= _width(step):
                    continue
                place = group.pending.popleft()
                item = group.items[place]
                group.running += 1
                self._queue.append(step)
            record = self._recorded(step, place)
            if record.status == "unknown":
                made.append(record)
                self._take(record, made)
                continue
            self._busy += 1
            yield step, record, item

    def _recorded(self, step: Step, place: int) -> Record:
        """The row of a call that is about to be made: a new one, or that of the call that was cut off."""
        assert self._calls is not None
        record = self.records.get((step.id, place, False))
        if record is None:
            record = self.records[(step.id, place, False)] = Record(step.id, place, started_at=now())
            record.status = "waiting" if step.approval else "started"
            self._fresh.add(record.key)
        elif record.status == "started" and step.on_unknown != "retry" and self._calls.in_doubt(Call(step.type, step.input), record):
            _end(record, "unknown", None, _doubt(step, step.type))
        return record

    # What follows from a call that has ended

    def _take(self, record: Record, made: list[Record]) -> None:
        self._ordinal += 1
        record.ordinal = self._ordinal
        step = self.steps[record.step]
        if record.item == WHOLE:
            self._conclude(step, record, made)
            return
        group = self._groups[step.id]
        group.running -= 1
        self._count(step, group, record)
        if group.pending and step not in self._queue:
            self._queue.append(step)
        self._close(group, made)

    def _count(self, step: Step, group: Group, record: Record) -> None:
        """Add what came of one item."""
        group.left -= 1
        if record.status == "succeeded":
            group.outputs[record.item] = record.output
        elif not _goes_on(step, record) and group.failed is None:
            group.failed = record

    def _close(self, group: Group, made: list[Record]) -> None:
        """The step is done once each item is, or once one failed and no other is under way."""
        if group.running or (group.left and group.failed is None) or group.whole.is_final:
            return
        if group.failed is not None:
            _end(group.whole, group.failed.status, None, group.failed.error)
        else:
            _end(group.whole, "succeeded", group.outputs)
        made.append(group.whole)
        self._take(group.whole, made)

    def _conclude(self, step: Step, record: Record, made: list[Record]) -> None:
        """What a step that has ended means for the others."""
        if record.status in ("succeeded", "skipped") or _goes_on(step, record):
            self._settle(step, record.output, made)
        elif record.status == "failed" and step.fallback is not None:
            self._failed_over.add(step.fallback)
            if step.fallback in self._held:
                self._held.discard(step.fallback)
                self._ready.append(self.steps[step.fallback])
        else:
            error = AimaError.from_dict(record.error or {})
            item = f", item {record.item}" if record.item >= 0 else ""
            told = type(error)(
                f"step {step.id}{item}: {error}", hint=error.hint, next=error.next, details=error.details | {"step": step.id}
            )
            self._fail(told)

    def _settle(self, step: Step, value: Any, made: list[Record]) -> None:
        """The step has its output for good: whoever waited for it alone can begin."""
        self._values[step.id] = value
        for id in self._after[step.id]:
            self._missing[id] -= 1
            if not self._missing[id] and id not in self._values:
                self._ready.append(self.steps[id])
        if step.fallback is not None and step.fallback not in self._failed_over and step.fallback not in self._values:
            self._settle_unneeded(self.steps[step.fallback], made)
        if step.id in self._failed_over:
            first = self.steps[self._fallbacks[step.id]]
            self._stand_in(step, first)
            self._settle(first, value, made)

    def _stand_in(self, step: Step, first: Step) -> None:
        """What refers to the first step means the one that ran instead."""
        self._primary.pop(first.id, None)
        if step.id in self._primary:
            self._primary[first.id] = self._primary[step.id]

    def _settle_unneeded(self, step: Step, made: list[Record]) -> None:
        """The first step went well, or the run goes on without it."""
        self._held.discard(step.id)
        if (step.id, WHOLE, False) not in self.records:
            record = self.records[(step.id, WHOLE, False)] = Record(step.id, status="skipped", attempts=0, finished_at=now())
            made.append(record)
        self._settle(step, None, made)

    def _open(self, step: Step, made: list[Record]) -> None:
        """All that the step waits for is there."""
        known = self.records.get((step.id, WHOLE, False))
        if step.id in self._values:
            return
        if step.id in self._fallbacks and step.id not in self._failed_over:
            self._held.add(step.id)
            return
        if known is not None and known.is_final:
            if step.for_each is not None and known.status == "succeeded":
                known.output = self._outputs(step.id)
            self._conclude(step, known, made)
            return
        try:
            if known is None and step.condition is not None and not truth(evaluate(step.condition, self._scope, self._primary)):
                self._end_early(step, "skipped", None, made)
            elif step.for_each is None:
                self._queue.append(step)
            else:
                self._spread(step, self._items(step), known, made)
        except InvalidArgument as error:
            self._end_early(step, "failed", error, made)

    def _end_early(self, step: Step, status: str, error: AimaError | None, made: list[Record]) -> None:
        """A step that makes no call."""
        record = self.records[(step.id, WHOLE, False)] = Record(step.id, attempts=0, started_at=now())
        _end(record, status, None, error.as_dict() if error else None)
        made.append(record)
        self._take(record, made)

    def _spread(self, step: Step, items: list[Any], known: Record | None, made: list[Record]) -> None:
        whole = known or Record(step.id, started_at=now())
        if known is None:
            self.records[whole.key] = whole
            made.append(whole)
        group = self._groups[step.id] = Group(items, whole)
        for place in range(len(items)):
            record = self.records.get((step.id, place, False))
            if record is not None and record.is_final:
                self._count(step, group, record)
            else:
                group.pending.append(place)
        self._queue.append(step)
        self._close(group, made)

    def _items(self, step: Step) -> list[Any]:
        """What the step goes over. Raises InvalidArgument where that is no list, or a very long one."""
        assert step.for_each is not None
        items = resolve(step.for_each.items, self._scope, self._primary)
        if not isinstance(items, list):
            raise InvalidArgument(f"for_each of the step {step.id} is no list")
        if len(items) > MOST_ITEMS:
            raise InvalidArgument(f"for_each of the step {step.id} has {len(items)} items, and may have {MOST_ITEMS}")
        return items

    def _outputs(self, id: str) -> list[Any]:
        found = {
            record.item: record.output for record in self.records.values() if record.step == id and record.item >= 0 and not record.undo
        }
        return [found[place] for place in sorted(found)]

    def _fail(self, error: AimaError) -> None:
        if self.failure is None:
            self.failure = error
            self.row.state, self.row.cause = "undoing", error.as_dict()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A call that waits for a person takes nobody's place."""
        self._busy -= 1
        if self._tasks is not None and self._queue and self.failure is None:
            self._tasks.start_soon(self._write, [])
        try:
            yield
        finally:
            self._busy += 1

    # Backward

    async def unwind(self, calls: Calls) -> tuple[list[str], list[str]]:
        """End what the run has under way, then make each compensation, last call first.

        Returns the steps that are undone now, in that order, and those that have a compensation and may still have to be undone.
        """
        if self.row.state == "forward":
            self._fail(Cancelled(f"run {self.row.run_id} was cancelled"))
        await self._end_all(calls)
        self.restore()
        done = [record for record in self.records.values() if record.status == "succeeded" and not record.undo]
        for record in sorted(done, key=lambda record: -(record.ordinal or 0)):
            step = self.steps[record.step]
            if step.compensate is not None and (record.item >= 0) == (step.for_each is not None):
                await self._undo(calls, step, step.compensate, record)
        undone = sorted((record for record in self.records.values() if record.undo), key=lambda record: record.ordinal or 0)
        open_ = [record.step for record in undone if record.status != "succeeded"]
        for record in self.records.values():
            if record.status == "unknown" and not record.undo and self.steps[record.step].compensate is not None:
                open_.append(record.step)
        return [record.step for record in undone if record.status == "succeeded"], open_

    async def _end_all(self, calls: Calls) -> None:
        """Nothing goes on: runs that steps began are cancelled; of what was cut off it is written down whether it may have been done."""
        ended = [record for record in self.records.values() if not record.is_final and not record.undo]
        for record in ended:
            step = self.steps[record.step]
            if record.approval_id is not None:
                await calls.withdraw(record.approval_id)
            if step.for_each is not None and record.item == WHOLE:
                _end(record, "cancelled")
            else:
                await self._cut_off(calls, step, record)
            if record.status == "succeeded":
                self._ordinal += 1
                record.ordinal = self._ordinal
        await self._journal.write(self.row, ended)
        for record in ended:
            self.telling.hear(record)

    async def _cut_off(self, calls: Calls, step: Step, record: Record) -> None:
        """What became of a call that was under way: a run may have come to its end just before it could be cancelled."""
        call = Call(step.type, step.input)
        child = await calls.end(call, record)
        if child is not None and child["status"] == "succeeded":
            _end(record, "succeeded", child["result"])
        elif calls.left_open(call, record, child, step.compensate is not None):
            _end(record, "unknown", None, _doubt(step, step.type))
        else:
            _end(record, "cancelled")

    def restore(self) -> None:
        """The outputs of what is on record: compensations may refer to them, and so does what the run gives back."""
        for step in self.pipeline.steps:
            record = self.records.get((step.id, WHOLE, False))
            if record is not None and record.is_final and step.id not in self._values:
                many = step.for_each is not None and record.status == "succeeded"
                self._values[step.id] = self._outputs(step.id) if many else record.output
        for other, first in self._fallbacks.items():
            record = self.records.get((other, WHOLE, False))
            if record is not None and record.status == "succeeded":
                self._stand_in(self.steps[other], self.steps[first])
                self._values[first] = self._values[other]

    async def _undo(self, calls: Calls, step: Step, call: Call, done: Record) -> None:
        record = self.records.get((step.id, done.item, True))
        if record is None:
            record = Record(step.id, done.item, True, started_at=now())
            self.records[record.key] = record
            await self._journal.write(self.row, [record])
        elif record.is_final:
            return
        elif record.status == "started" and step.on_unknown != "retry" and calls.in_doubt(call, record):
            _end(record, "unknown", None, _doubt(step, call.type))
        if not record.is_final:
            scope = self._scope | {"steps": self._values | {step.id: done.output}}
            try:
                if done.item >= 0:
                    scope["item"] = self._items(step)[done.item]
                _end(record, "succeeded", await calls.made(step, call, record, scope, self._primary))
            except Uncertain as doubt:
                _end(record, "unknown", None, doubt.error)
            except AimaError as error:
                _end(record, "failed", None, error.as_dict())
        self._ordinal += 1
        record.ordinal = self._ordinal
        with anyio.CancelScope(shield=True):
            await self._journal.write(self.row, [record])
        self.telling.hear(record)


def _order(pipeline: Pipeline) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Of each step, how many it waits for, and who waits for it. A step does not wait for the one that it stands in for."""
    missing, after = {}, {step.id: list[str]() for step in pipeline.steps}
    for step in pipeline.steps:
        needs = step.needs - {pipeline.fallbacks.get(step.id)}
        missing[step.id] = len(needs)
        for need in needs:
            after[need].append(step.id)
    return missing, after


def _width(step: Step) -> int:
    assert step.for_each is not None
    return step.for_each.max_parallel or MOST_ITEMS


def _goes_on(step: Step, record: Record) -> bool:
    """Whether the run goes on though the call did not succeed."""
    return (step.on_error if record.status == "failed" else step.on_unknown) == "continue"


def _end(record: Record, status: str, output: Any = None, error: Mapping[str, Any] | None = None) -> None:
    record.status, record.output, record.error, record.finished_at = status, output, error, now()


def _doubt(step: Step, unit: str) -> Mapping[str, Any]:
    error = AimaError.from_dict(
        {
            "code": "failed_precondition",
            "message": f"{unit} of the step {step.id} was cut off: whether it was done is unknown",
            "hint": "look at what it left; on_unknown of the step says what should happen after a crash",
        }
    )
    return error.as_dict()
