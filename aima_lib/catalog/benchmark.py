"""What a served model does under load: asked, timed, judged, and kept with the hardware and the versions it was true for."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from statistics import median
from typing import Any

import anyio

from aima_lib.catalog.machine import here
from aima_lib.errors import AimaError, FailedPrecondition, NotFound
from aima_lib.gateway import Context
from aima_lib.infra.clock import now
from aima_lib.infra.store import Document
from aima_lib.services.measurements import Measurements

PROMPTS = (
    "Explain in three sentences how a bicycle stays upright.",
    "Write a function that returns the first n prime numbers, and say what it costs.",
    "A train leaves at 9:40 and arrives at 13:05. How long does it take, and when is it half way?",
    "List five questions that a doctor asks before prescribing an antibiotic.",
    "Translate into French: the house by the river has been empty since spring.",
    "What differs between a stack and a queue? Give one use of each.",
    "Write a short, friendly reply that declines an invitation to dinner on Friday.",
    "Summarise the plot of a story about a lighthouse keeper who finds a letter.",
)
SLACK = 1.05  # engines count a token more here and there, and clocks are coarse
PACE = 1_000_000  # tokens a second that nothing reaches


@dataclass(slots=True)
class Samples:
    """What the requests showed."""

    ttft_ms: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    failures: list[AimaError] = field(default_factory=list)


async def run(ctx: Context, model: str, prompts: Sequence[str], requests: int, max_tokens: int, concurrency: int) -> Document:
    """Ask so many requests, so many at a time, and keep what came of it under the run's id.

    Raises:
        NotFound: nothing of that name is served.
        FailedPrecondition: the figures cannot be true, so they are not kept.
        AimaError: more than a tenth of the requests failed; the first of their errors.
    """
    service = service_of(ctx, model)
    await _tell(ctx, "warming", f"one request to {service['id']}, which is not counted", 0, requests)
    await _ask(ctx, service["id"], prompts[0], max_tokens, Samples())
    samples, began = Samples(), time.monotonic()
    await _all(ctx, service["id"], prompts, requests, max_tokens, concurrency, samples)
    seconds = time.monotonic() - began
    if len(samples.failures) * 10 > requests or not samples.tokens:
        raise samples.failures[0]
    asked = {"prompts": len(prompts), "prompts_digest": digest(prompts), "max_tokens": max_tokens, "concurrency": concurrency}
    figures = _figures(samples, seconds, requests, asked) | {"memory_bytes": memory_of(ctx, service)}
    if reason := impossible(figures):
        raise FailedPrecondition(f"{service['id']} was measured, and the figures cannot be true: {reason}", hint="they are not kept")
    record = {"id": str(ctx.run_id), "created_at": now(), **_what(ctx, service), "hardware": await _hardware(ctx, service), **figures}
    await ctx.services.store.put("benchmark", record)
    told = {key: record[key] for key in ("model_id", "service_id", "engine", "tokens_per_second", "concurrency")}
    ctx.services.events.publish("benchmark.completed", {"benchmark_id": record["id"], **told}, subject=record["id"])
    return record


def digest(prompts: Sequence[str]) -> str:
    """The same for the same prompts in the same order."""
    return sha256("\0".join(prompts).encode()).hexdigest()[:16]


def impossible(figures: Mapping[str, Any]) -> str | None:
    """Why figures of a benchmark cannot be true, or None."""
    speed, ttft, seconds = figures["tokens_per_second"], figures["ttft_ms"], figures["duration_seconds"]
    numbers = [speed, seconds, *ttft.values()]
    if any(not isinstance(each, int | float) or not math.isfinite(each) for each in numbers):
        return "a figure is no number"
    if figures["completion_tokens"] <= 0 or speed <= 0:
        return "not a token came"
    if speed > PACE:
        return f"{speed:g} tokens a second"
    if min(ttft.values()) <= 0:
        return f"a first token after {min(ttft.values()):g} ms"
    if figures["completion_tokens"] > figures["requests"] * figures["max_tokens"] * SLACK:
        return f"{figures['completion_tokens']} tokens, more than {figures['requests']} x {figures['max_tokens']} that were asked for"
    if max(ttft.values()) > seconds * 1000 * SLACK:
        return f"a first token after {max(ttft.values()):g} ms, in {seconds:g} s in all"
    if abs(speed * seconds - figures["completion_tokens"]) > figures["completion_tokens"] * (SLACK - 1) + 1:
        return f"{figures['completion_tokens']} tokens in {seconds:g} s are not {speed:g} a second"
    if figures["memory_bytes"] is not None and figures["memory_bytes"] <= 0:
        return "no memory was taken"
    return None


async def _all(ctx: Context, service_id: str, prompts: Sequence[str], count: int, max_tokens: int, wide: int, samples: Samples) -> None:
    """Each of `wide` callers takes the next request as soon as its last is answered."""
    left = iter(range(count))

    async def caller() -> None:
        for place in left:
            await _ask(ctx, service_id, prompts[place % len(prompts)], max_tokens, samples)
            done = len(samples.tokens) + len(samples.failures)
            await _tell(ctx, "measuring", f"{done} of {count} requests are answered", done, count)

    async with anyio.create_task_group() as callers:
        for _ in range(min(wide, count)):
            callers.start_soon(caller)


async def _ask(ctx: Context, service_id: str, prompt: str, max_tokens: int, samples: Samples) -> None:
    began = time.monotonic()
    first: list[float] = []

    async def heard(_: Mapping[str, Any]) -> None:
        if not first:
            first.append((time.monotonic() - began) * 1000)

    given = {"model": service_id, "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "temperature": 0, "seed": 1}
    try:
        answer = await ctx.gateway.call("inference.chat", given, caller=ctx.caller, send=heard, parent=ctx.run_id)
    except AimaError as error:
        samples.failures.append(error)
        return
    ttft = answer["timings"]["ttft_ms"]
    samples.ttft_ms.append(ttft if ttft is not None else first[0] if first else answer["timings"]["total_ms"])
    samples.tokens.append(answer["usage"]["completion_tokens"])
    samples.prompt_tokens += answer["usage"]["prompt_tokens"]


def _figures(samples: Samples, seconds: float, requests: int, asked: Mapping[str, Any]) -> dict[str, Any]:
    ordered, tokens = sorted(samples.ttft_ms), sum(samples.tokens)
    return {
        **asked,
        "requests": requests,
        "failures": len(samples.failures),
        "completion_tokens": tokens,
        "prompt_tokens": samples.prompt_tokens,
        "duration_seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 3),
        "ttft_ms": {"p50": round(median(ordered), 3), "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 3)},
        "memory_bytes": None,
    }


def service_of(ctx: Context, model: str) -> Document:
    """The service that a name means: its own, or the one that serves a model of that name."""
    store = ctx.services.store
    if store.peek("service", model):
        return ctx.services.serving.get(model)
    served, _ = ctx.services.serving.list(model_id=ctx.services.inference.meant(model))
    if not served:
        call = {"unit": "service.list", "arguments": {}}
        raise NotFound(f"nothing serves {model!r}", hint="service.create, or catalog.apply_recipe, serves a model", next=[call])
    return served[0]


def _what(ctx: Context, service: Mapping[str, Any]) -> dict[str, Any]:
    model = ctx.services.store.peek("model", service["model_id"]) or {}
    version = ctx.services.engines.catalog.version(service["engine"], service["options"])
    told = {"service_id": service["id"], "model_id": service["model_id"], "model_digest": model.get("digest")}
    return {**told, "engine": service["engine"], "engine_version": version, "options": dict(service["options"])}


async def _hardware(ctx: Context, service: Mapping[str, Any]) -> dict[str, Any]:
    """The machine, and the device that the service computes on."""
    machine = await here(ctx.services.devices, ctx.services.books)
    placed = (ctx.services.serving.get(service["id"])["placement"] or {}).get("device")
    device = next((each for each in machine.devices if each["id"] == placed), machine.devices[0])
    told = {"fingerprint": machine.fingerprint, "device_id": device["id"], "device": device["name"], "driver": device["driver"]}
    return {**told, "os": machine.os, "machine": machine.machine}


async def _tell(ctx: Context, phase: str, message: str, completed: int, total: int) -> None:
    await ctx.send({"phase": phase, "message": message, "completed": completed, "total": total})


def memory_of(ctx: Context, service: Mapping[str, Any]) -> int | None:
    """The most memory its engine was seen to take; None where it was not measured."""
    instance = ctx.services.store.peek("instance", service["instance_id"])
    return Measurements(ctx.services.store).peak(instance) if instance else None
