"""Handlers of benchmark.*"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aima_lib.catalog import benchmark
from aima_lib.gateway import Context
from aima_lib.infra.change import Change
from aima_lib.registry import handles, plans

Result = Mapping[str, Any]


@handles("benchmark.run")
async def run_benchmark(
    ctx: Context,
    model: str,
    prompts: Sequence[str] | None = None,
    requests: int | None = None,
    max_tokens: int = 64,
    concurrency: int = 1,
) -> Result:
    chosen = prompts or benchmark.PROMPTS
    return {"benchmark": await benchmark.run(ctx, model, chosen, requests or len(chosen), max_tokens, concurrency)}


@handles("benchmark.list")
async def list_benchmarks(ctx: Context, model_id: str | None = None, engine: str | None = None, limit: int = 20, offset: int = 0) -> Result:
    equal = {"model_id": model_id, "engine": engine}
    rows = ctx.services.store.find("benchmark", limit=limit, offset=offset, newest_first=True, **equal)
    return {"benchmarks": rows, "total": ctx.services.store.count("benchmark", **equal)}


@plans("benchmark.run")
async def plan_run(ctx: Context, given: Mapping[str, Any]) -> Change:
    benchmark.service_of(ctx, given["model"])
    return Change()
