"""The run domain: long work, told apart from whoever asked for it. A caller sees its own runs; an admin sees all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aima_lib.gateway import Context
from aima_lib.infra.change import Change
from aima_lib.registry import handles, plans
from aima_lib.runs import shown


@handles("run.get")
async def get_run(ctx: Context, run_id: str) -> Mapping[str, Any]:
    return {"run": shown(ctx.runs.seen(run_id, ctx.caller))}


@handles("run.list")
async def list_runs(
    ctx: Context, unit: str | None = None, status: str | None = None, limit: int = 50, offset: int = 0
) -> Mapping[str, Any]:
    wanted = {"unit": unit, "status": status, "caller": None if ctx.caller.may("admin") else ctx.caller.name}
    found = ctx.services.store.find("run", limit=limit, offset=offset, newest_first=True, **wanted)
    return {"runs": [shown(ctx.runs.get(run["id"])) for run in found], "total": ctx.services.store.count("run", **wanted)}


@handles("run.wait")
async def wait_for_run(ctx: Context, run_id: str, timeout_seconds: float = 45) -> Mapping[str, Any]:
    ctx.runs.seen(run_id, ctx.caller)
    return {"run": shown(await ctx.runs.follow(run_id, ctx.send, timeout_seconds))}


@handles("run.cancel")
async def cancel_run(ctx: Context, run_id: str, keep: bool = False) -> Mapping[str, Any]:
    ctx.runs.seen(run_id, ctx.caller)
    return {"run": shown(await ctx.runs.cancel(run_id, keep))}


@plans("run.cancel")
async def plan_cancel(ctx: Context, given: Mapping[str, Any]) -> Change:
    run = ctx.runs.seen(given["run_id"], ctx.caller)
    return Change(stops=(("run", run["id"]),) if run["status"] == "running" else ())
