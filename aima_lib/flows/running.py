"""A run of a pipeline from its first call to its last, in this life of the host or in several."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import anyio

from aima_lib.door import Caller
from aima_lib.errors import AimaError, Cancelled, FailedPrecondition, InvalidArgument
from aima_lib.flows.ahead import speakers
from aima_lib.flows.calls import Calls
from aima_lib.flows.document import Pipeline
from aima_lib.flows.engine import Flow
from aima_lib.flows.inputs import input_schema
from aima_lib.flows.journal import FlowRow, Journal
from aima_lib.flows.shelf import Edition, Shelf, effective
from aima_lib.flows.telling import Telling
from aima_lib.gateway import Context
from aima_lib.infra.clock import parse
from aima_lib.registry import Judge, Registry

DEEPEST = 3  # a pipeline within a pipeline within a pipeline


async def run(ctx: Context, pipeline_id: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Run a pipeline, or go on with the run, or undo it where it was cancelled. Called anew by each host that takes the run up.

    Raises:
        NotFound: there is no such pipeline.
        InvalidArgument: the input does not match its schema.
        FailedPrecondition: a unit that it calls is not here, or pipelines are nested too deep.
        PermissionDenied: a scope is lacking that one of its steps needs.
        AimaError: that of the step that failed; the details say which, and what was undone.
        Cancelled: somebody cancelled it; all is undone that can be.
    """
    assert ctx.run_id is not None
    shelf, journal = Shelf(ctx.services.store, ctx.registry), Journal(ctx.services.store)
    row = journal.find(ctx.run_id)
    fresh = row is None
    if row is None:
        if ctx.runs.is_cancelled(ctx.run_id):
            raise Cancelled(f"run {ctx.run_id} was cancelled before it began")
        depth = _depth(ctx, journal)
        row = await journal.begin(ctx.run_id, pipeline_id, await shelf.pin(pipeline_id), depth)
    else:  # perhaps in this very host, which has just now told of it: what is told once is looked for in the log
        await ctx.services.events.settled()
    edition = shelf.edition(row.pipeline_id, row.version)
    telling = Telling(row, edition.pipeline, ctx.services.events)
    caller = effective(ctx.caller, edition.creator)
    given = _filled(edition.pipeline, given)
    telling.publish_once("started", version=row.version, caller=ctx.caller.name, parent=ctx.runs.get(ctx.run_id).get("parent"))
    flow = Flow(row, edition.pipeline, journal, given, primaries(ctx.registry, edition.pipeline), telling)
    if not flow.records and row.state == "forward" and (refusal := _refusal(ctx.registry, shelf, edition, caller, given)):
        telling.publish_once("failed", status="failed", code=refusal.code, step=None, undone=[], not_undone=[])
        raise refusal
    if not fresh:
        telling.know(flow.records.values())
    creator = edition.creator.name if edition.creator else None
    failure: AimaError | None = None
    async with anyio.create_task_group() as tasks:
        calls = Calls(ctx, row, journal, caller, creator, telling.progress, flow.paused, speakers(edition.pipeline), tasks)
        tasks.start_soon(telling.report, ctx.send)
        try:
            output = await _carried_out(ctx, flow, calls)
        except AimaError as error:
            failure = error
        await ctx.send(telling.state())
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return {"run_id": row.run_id, "status": "succeeded", "output": output}


async def _carried_out(ctx: Context, flow: Flow, calls: Calls) -> Any:
    row = flow.row
    if row.state == "forward" and not ctx.runs.is_cancelled(row.run_id):
        await flow.forward(calls, _left(row, flow.pipeline))
    if row.state == "done":
        flow.restore()
        flow.telling.publish_once("completed", duration_ms=_took(row), steps=len(flow.steps))
        return flow.result()
    raise _told(flow, *await flow.unwind(calls))


def _told(flow: Flow, well: list[str], badly: list[str]) -> AimaError:
    """Why the run did not succeed, with what was undone and what could not be; published, too."""
    error = AimaError.from_dict(flow.row.cause or {})
    error.details |= {"run_id": flow.row.run_id} | ({"undone": well} if well else {}) | ({"not_undone": badly} if badly else {})
    if not error.next:
        error.next = [{"unit": "pipeline.status", "arguments": {"run_id": flow.row.run_id}}]
    status = "cancelled" if isinstance(error, Cancelled) and "step" not in error.details else "failed"
    step = error.details.get("step")
    flow.telling.publish_once("failed", status=status, code=error.code, step=step, undone=well, not_undone=badly)
    return error


def primaries(registry: Registry, pipeline: Pipeline) -> dict[str, str]:
    """Of each step, the main field of what its unit gives."""
    found = {step.id: registry[step.type].definition.get("primary") for step in pipeline.steps if step.type in registry}
    return {id: str(primary) for id, primary in found.items() if primary}


def _depth(ctx: Context, journal: Journal) -> int:
    """1 for a run that somebody asked for, 1 more for each that it is part of."""
    parent = ctx.runs.get(str(ctx.run_id)).get("parent")
    around = journal.find(parent) if parent else None
    depth = around.depth + 1 if around else 1
    if depth > DEEPEST:
        raise FailedPrecondition(f"pipelines are nested at most {DEEPEST} deep", hint="call the units of the innermost one directly")
    return depth


def _refusal(registry: Registry, shelf: Shelf, edition: Edition, caller: Caller, given: Mapping[str, Any]) -> AimaError | None:
    """Why the run cannot go well, as far as that is known before its first call."""
    pipeline = edition.pipeline
    if missing := shelf.missing(pipeline):
        return FailedPrecondition(
            f"{pipeline.name} calls what is not here: {', '.join(missing)}", hint="another version of AIMA may have it"
        )
    schema = input_schema(pipeline, registry)
    if wrong := Judge(schema).first_error(dict(given)):
        return InvalidArgument(f"input: {wrong}", hint=f"{pipeline.name} takes: {', '.join(schema['properties']) or 'nothing'}")
    try:
        for step in pipeline.steps:
            for name in (step.type, *([step.compensate.type] if step.compensate else [])):
                caller.need(registry[name].definition["scope"], f"{name}, which the step {step.id} of {pipeline.name} calls")
    except AimaError as error:
        return error
    return None


def _filled(pipeline: Pipeline, given: Mapping[str, Any]) -> dict[str, Any]:
    """The input, with the defaults of what was not given."""
    known = (pipeline.input or {}).get("properties", {})
    return {key: spec["default"] for key, spec in known.items() if isinstance(spec, dict) and "default" in spec} | dict(given)


def _left(row: FlowRow, pipeline: Pipeline) -> float | None:
    """How much time the run has left."""
    limit = pipeline.config.get("timeout_seconds")
    return None if limit is None else max(float(limit) - _took(row) / 1000, 0.0)


def _took(row: FlowRow) -> int:
    return round((datetime.now(UTC) - parse(row.began_at)).total_seconds() * 1000)
