"""Handlers of pipeline.*"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument
from aima_lib.flows import running
from aima_lib.flows.check import check
from aima_lib.flows.diagram import mermaid
from aima_lib.flows.document import Pipeline, as_document, read
from aima_lib.flows.journal import WHOLE, Journal, Record
from aima_lib.flows.shelf import Shelf
from aima_lib.flows.source import Issue, refusal
from aima_lib.gateway import Context
from aima_lib.infra.change import Change
from aima_lib.infra.clock import parse
from aima_lib.registry import handles, plans
from aima_lib.runs import shown

Result = Mapping[str, Any]
Parts = Mapping[str, Any]


@handles("pipeline.create")
async def create_pipeline(
    ctx: Context,
    name: str | None = None,
    steps: Sequence[Parts] | None = None,
    description: str | None = None,
    input: Parts | None = None,
    output: Any = None,
    config: Parts | None = None,
    definition: str | None = None,
) -> Result:
    parts = {"name": name, "steps": steps, "description": description, "input": input, "output": output, "config": config}
    pipeline = _read(definition, parts)
    if issues := _issues(ctx, pipeline):
        raise refusal(f"{pipeline.name} would not run", issues)
    before = ctx.services.store.peek("pipeline", pipeline.name)
    made, _ = await _shelf(ctx).create(pipeline, ctx.caller)
    if before is None or before["version"] != made["version"]:
        told = {"pipeline_id": made["id"], "version": made["version"], "by": ctx.caller.name}
        ctx.services.events.publish("pipeline.created", told, subject=made["id"])
    return {"pipeline": made}


@handles("pipeline.validate")
async def validate_pipeline(
    ctx: Context,
    name: str | None = None,
    steps: Sequence[Parts] | None = None,
    description: str | None = None,
    input: Parts | None = None,
    output: Any = None,
    config: Parts | None = None,
    definition: str | None = None,
) -> Result:
    parts = {"name": name, "steps": steps, "description": description, "input": input, "output": output, "config": config}
    try:
        issues = [issue.as_dict() for issue in _issues(ctx, _read(definition, parts))]
    except AimaError as error:
        if "issues" not in error.details:
            raise
        issues = error.details["issues"]
    return {"valid": not issues, "issues": issues}


@handles("pipeline.delete")
async def delete_pipeline(ctx: Context, pipeline_id: str) -> Result:
    versions = await _shelf(ctx).delete(pipeline_id)
    ctx.services.events.publish("pipeline.deleted", {"pipeline_id": pipeline_id, "by": ctx.caller.name}, subject=pipeline_id)
    return {"pipeline_id": pipeline_id, "versions": versions}


@handles("pipeline.run", unwinds=True)
async def run_pipeline(ctx: Context, pipeline_id: str, input: Parts | None = None, wait: bool = True) -> Result:  # noqa: ARG001
    return await running.run(ctx, pipeline_id, input or {})  # whether it is waited for is the gateway's doing


@handles("pipeline.cancel")
async def cancel_pipeline(ctx: Context, run_id: str) -> Result:
    _run(ctx, run_id)
    return {"run": shown(await ctx.runs.cancel(run_id))}


@handles("pipeline.get")
async def get_pipeline(ctx: Context, pipeline_id: str, version: int | None = None) -> Result:
    return _described(ctx, pipeline_id, version)


@handles("pipeline.list")
async def list_pipelines(ctx: Context, source: str | None = None, limit: int = 100, offset: int = 0) -> Result:
    found = _shelf(ctx).list(source)
    return {"pipelines": found[offset : offset + limit], "total": len(found)}


@handles("pipeline.status")
async def pipeline_status(ctx: Context, run_id: str) -> Result:
    run = _run(ctx, run_id)
    journal = Journal(ctx.services.store)
    row = journal.find(run_id)
    told = {"run_id": run_id, "pipeline_id": run["input"]["pipeline_id"], "status": run["status"], "error": run["error"]}
    if row is None:
        return {**told, "version": None, "undoing": False, "steps": []}
    pipeline = _shelf(ctx).edition(row.pipeline_id, row.version).pipeline
    records: dict[str, list[Record]] = {step.id: [] for step in pipeline.steps}
    for record in journal.records(row):
        records[record.step].append(record)
    steps = [_step(step.id, step.type, records[step.id]) for step in pipeline.steps]
    return {**told, "version": row.version, "undoing": row.state == "undoing", "steps": steps}


@handles("pipeline.all")
async def all_pipelines(ctx: Context) -> Result:
    found = _shelf(ctx).list()
    return {"pipelines": found, "total": len(found)}


@handles("pipeline.by_id")
async def pipeline_by_id(ctx: Context, pipeline_id: str) -> Result:
    return _described(ctx, pipeline_id, None)


@plans("pipeline.create")
async def plan_create(ctx: Context, given: Parts) -> Change:
    pipeline = _read(given.get("definition"), {key: value for key, value in given.items() if key != "definition"})
    if issues := _issues(ctx, pipeline):
        raise refusal(f"{pipeline.name} would not run", issues)
    return Change(creates=(("pipeline", pipeline.name),))


@plans("pipeline.delete")
async def plan_delete(ctx: Context, given: Parts) -> Change:
    pipeline, _ = _shelf(ctx).get(given["pipeline_id"])
    if pipeline["source"] == "builtin":
        raise FailedPrecondition(f"{pipeline['id']} comes with AIMA and stays")
    return Change(deletes=(("pipeline", pipeline["id"]),), saw={"version": pipeline["version"], "made": pipeline["created_at"]})


@plans("pipeline.run")
async def plan_run(ctx: Context, given: Parts) -> Change:
    pipeline, _ = _shelf(ctx).get(given["pipeline_id"])
    return Change(starts=(("pipeline", pipeline["id"]),), saw={"version": pipeline["version"]})


@plans("pipeline.cancel")
async def plan_cancel(ctx: Context, given: Parts) -> Change:
    run = _run(ctx, given["run_id"])
    return Change(stops=(("run", run["id"]),) if run["status"] == "running" else ())


def _shelf(ctx: Context) -> Shelf:
    return Shelf(ctx.services.store, ctx.registry, ctx.services.inference.meant)


def _read(definition: str | None, parts: Parts) -> Pipeline:
    """The pipeline that the arguments describe. Raises InvalidArgument, with issues where it is none."""
    given = {key: value for key, value in parts.items() if value is not None}
    if definition is not None and given:
        raise InvalidArgument(f"definition is the whole document: {', '.join(given)} cannot be given beside it")
    if definition is None and not {"name", "steps"} <= set(given):
        raise InvalidArgument("a pipeline needs a name and steps, or a definition", hint="definition is a YAML document with both")
    return read(given if definition is None else definition)


def _issues(ctx: Context, pipeline: Pipeline) -> list[Issue]:
    shelf = _shelf(ctx)
    return check(pipeline, ctx.registry, ctx.caller, shelf.find)


def _described(ctx: Context, pipeline_id: str, version: int | None) -> Result:
    about, pipeline = _shelf(ctx).get(pipeline_id, version)
    return {"pipeline": about, "document": as_document(pipeline), "diagram": mermaid(pipeline)}


def _run(ctx: Context, run_id: str) -> Mapping[str, Any]:
    """The run, if the caller may know of it. Raises NotFound, or FailedPrecondition for one of another unit."""
    run = ctx.runs.seen(run_id, ctx.caller)
    if run["unit"] != "pipeline.run":
        call = {"unit": "run.get", "arguments": {"run_id": run_id}}
        raise FailedPrecondition(f"{run_id} is a run of {run['unit']}, not of a pipeline", hint="run.* is for those", next=[call])
    return run


def _step(id: str, unit: str, records: Sequence[Record]) -> Parts:
    """How far a step is: types/pipeline_step.json."""
    whole = next((record for record in records if record.item == WHOLE and not record.undo), None)
    items = [record for record in records if record.item != WHOLE and not record.undo]
    undone = [record.status for record in records if record.undo]
    counts = {status: sum(record.status == status for record in items) for status in {record.status for record in items}}
    told = {
        "id": id, "unit": unit, "status": "pending", "attempts": 0, "started_at": None, "finished_at": None, "duration_ms": None,
        "approval_id": None, "error": None, "items": counts or None,
    }  # fmt: skip
    if whole is not None:
        told |= {key: getattr(whole, key) for key in ("status", "attempts", "started_at", "finished_at", "approval_id", "error")}
        told["duration_ms"] = _took(whole)
    return told | {"compensation": next((status for status in undone if status != "succeeded"), undone[0] if undone else "none")}


def _took(record: Record) -> int | None:
    if record.started_at is None:
        return None
    end = parse(record.finished_at) if record.finished_at else datetime.now(UTC)
    return round((end - parse(record.started_at)).total_seconds() * 1000)
