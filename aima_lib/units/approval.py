"""The approval domain: calls that wait for somebody else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aima_lib.gateway import Context
from aima_lib.infra.change import Change
from aima_lib.registry import handles, plans

Result = Mapping[str, Any]


@handles("approval.list")
async def list_approvals(ctx: Context, status: str | None = None, limit: int = 100, offset: int = 0) -> Result:
    found, total = ctx.services.approvals.list(ctx.caller, status, limit, offset)
    return {"approvals": found, "total": total}


@handles("approval.approve")
async def approve_call(ctx: Context, approval_id: str, reason: str | None = None) -> Result:
    waiting = ctx.services.approvals.find(approval_id)
    ctx.caller.need(ctx.registry[waiting["unit"]].definition["scope"], waiting["unit"])  # nobody lets pass what they may not do
    return {"approval": await ctx.services.approvals.decide(approval_id, "approved", reason, ctx.caller)}


@handles("approval.deny")
async def deny_call(ctx: Context, approval_id: str, reason: str | None = None) -> Result:
    return {"approval": await ctx.services.approvals.decide(approval_id, "denied", reason, ctx.caller)}


@plans("approval.approve", "approval.deny")
async def plan_decision(ctx: Context, given: Mapping[str, Any]) -> Change:
    return Change(stops=(("plan", ctx.services.approvals.find(given["approval_id"])["id"]),))
