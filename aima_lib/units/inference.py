"""Handlers of inference.*"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aima_lib.gateway import Context
from aima_lib.infra.change import Change
from aima_lib.registry import handles, plans

Result = Mapping[str, Any]


@handles("inference.chat")
async def chat(
    ctx: Context,
    model: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: str | Mapping[str, Any] | None = None,
    response_format: Mapping[str, Any] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    max_tokens: int | None = None,
    stop: str | Sequence[str] | None = None,
    seed: int | None = None,
) -> Result:
    request = {
        "model": model, "messages": messages, "tools": tools, "tool_choice": tool_choice, "response_format": response_format,
        "temperature": temperature, "top_p": top_p, "top_k": top_k, "max_tokens": max_tokens, "stop": stop, "seed": seed,
    }  # fmt: skip
    return await ctx.services.inference.chat(request, ctx.services.allowance.account(ctx.caller), ctx.send)


@handles("inference.complete")
async def complete(
    ctx: Context,
    model: str,
    prompt: str,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    max_tokens: int = 256,
    stop: str | Sequence[str] | None = None,
    seed: int | None = None,
) -> Result:
    request = {
        "model": model, "prompt": prompt, "temperature": temperature, "top_p": top_p, "top_k": top_k, "max_tokens": max_tokens,
        "stop": stop, "seed": seed,
    }  # fmt: skip
    result = await ctx.services.inference.complete(request, ctx.services.allowance.account(ctx.caller), ctx.send)
    return {"text": result["content"], **{key: result[key] for key in ("id", "model", "finish_reason", "usage", "timings", "placement")}}


@handles("inference.embed")
async def embed(ctx: Context, model: str, input: str | Sequence[str], dimensions: int | None = None) -> Result:
    request = {"model": model, "input": input, "dimensions": dimensions}
    return await ctx.services.inference.embed(request, ctx.services.allowance.account(ctx.caller))


@handles("inference.models")
async def models(ctx: Context, type: str | None = None) -> Result:
    return {"models": await ctx.services.inference.models(type, ctx.caller.models)}


@handles("inference.available")
async def available(ctx: Context) -> Result:
    return {"models": await ctx.services.inference.models(None, ctx.caller.models)}


@plans("inference.chat", "inference.complete", "inference.embed")
async def plan_request(ctx: Context, given: Mapping[str, Any]) -> Change:  # noqa: ARG001
    return Change()
