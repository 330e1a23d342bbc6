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
    messages = await ctx.services.media.pictured(messages, ctx.caller)
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


@plans(
    "inference.chat", "inference.complete", "inference.embed", "inference.rerank", "inference.transcribe", "inference.synthesize",
    "inference.generate_image", "inference.generate_video", "inference.detect",
)  # fmt: skip
async def plan_request(ctx: Context, given: Mapping[str, Any]) -> Change:  # noqa: ARG001
    return Change()


@handles("inference.rerank")
async def rerank(ctx: Context, model: str, query: str, documents: Sequence[str], top_n: int | None = None) -> Result:
    request = {"model": model, "query": query, "documents": documents, "top_n": top_n}
    return await ctx.services.modalities.rerank(request, ctx.caller)


@handles("inference.transcribe")
async def transcribe(
    ctx: Context, model: str, audio: str, language: str | None = None, timestamps: str = "segment", prompt: str | None = None
) -> Result:
    request = {"model": model, "audio": audio, "language": language, "timestamps": timestamps, "prompt": prompt}
    return await ctx.services.modalities.transcribe(request, ctx.caller, ctx.send)


@handles("inference.synthesize")
async def synthesize(ctx: Context, model: str, text: str, voice: str | None = None, format: str = "wav", speed: float = 1) -> Result:
    request = {"model": model, "text": text, "voice": voice, "format": format, "speed": speed}
    return await ctx.services.modalities.synthesize(request, ctx.caller)


@handles("inference.generate_image")
async def generate_image(
    ctx: Context,
    model: str,
    prompt: str,
    negative_prompt: str | None = None,
    size: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    n: int = 1,
) -> Result:
    request = {
        "model": model, "prompt": prompt, "negative_prompt": negative_prompt, "size": size, "steps": steps, "seed": seed, "n": n,
    }  # fmt: skip
    return await ctx.services.modalities.generate_image(request, ctx.caller)


@handles("inference.generate_video")
async def generate_video(
    ctx: Context,
    model: str,
    prompt: str,
    duration_seconds: float = 2,
    fps: int = 12,
    size: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    format: str | None = None,
) -> Result:
    request = {
        "model": model, "prompt": prompt, "duration_seconds": duration_seconds, "fps": fps, "size": size, "steps": steps, "seed": seed,
        "format": format,
    }  # fmt: skip
    return await ctx.services.modalities.generate_video(request, ctx.caller)


@handles("inference.detect")
async def detect(ctx: Context, model: str, image: str, threshold: float = 0.3, labels: Sequence[str] | None = None) -> Result:
    request = {"model": model, "image": image, "threshold": threshold, "labels": labels}
    return await ctx.services.modalities.detect(request, ctx.caller)


@handles("inference.voices")
async def voices(ctx: Context, model: str | None = None) -> Result:
    return {"voices": await ctx.services.modalities.voices(model, ctx.caller.models)}
