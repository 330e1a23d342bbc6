"""The audit domain: who did what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aima_lib.gateway import Context
from aima_lib.registry import handles

Result = Mapping[str, Any]


@handles("audit.list")
async def list_entries(
    ctx: Context,
    after: int = 0,
    limit: int = 100,
    unit: str | None = None,
    caller: str | None = None,
    code: str | None = None,
    correlation_id: str | None = None,
) -> Result:
    entries, total = ctx.services.audit.list(after, limit, unit, caller, code, correlation_id)
    return {"entries": entries, "total": total}


@handles("audit.verify")
async def verify_log(ctx: Context) -> Result:
    return await ctx.services.audit.verify()
