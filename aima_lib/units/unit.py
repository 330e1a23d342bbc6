"""The unit domain: AIMA describing itself, so that a short list of tools reaches all of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from aima_lib.gateway import Context
from aima_lib.infra.change import Change
from aima_lib.registry import Unit, handles, plans
from aima_lib.runs import outcome_of

WAIT_SECONDS = 45


@handles("unit.search")
async def search_units(ctx: Context, query: str, limit: int = 10) -> Mapping[str, Any]:
    words = re.findall(r"[a-z0-9]+", query.lower())
    allowed = [unit for unit in ctx.registry.of("command", "query") if ctx.caller.may(unit.definition["scope"])]
    ranked = sorted(allowed, key=lambda unit: (-_score(unit, words), unit.name))
    keys = ("name", "kind", "title", "description")
    return {"units": [{key: unit.definition[key] for key in keys} for unit in ranked[:limit] if _score(unit, words) > 0]}


@handles("unit.describe")
async def describe_unit(ctx: Context, name: str) -> Mapping[str, Any]:
    return {"unit": ctx.gateway.find(name).definition}


@handles("unit.call")
async def call_unit(
    ctx: Context, name: str, arguments: Mapping[str, Any] | None = None, plan: bool = False, token: str | None = None
) -> Mapping[str, Any]:
    unit, given = ctx.gateway.find(name), arguments or {}
    if plan:
        return {"name": name, "result": None, "plan": await ctx.gateway.plan(name, given, caller=ctx.caller)}
    if not unit.durable:
        return {"name": name, "result": await ctx.call(name, given, token)}
    run = await ctx.gateway.start(name, given, caller=ctx.caller, key=ctx.key, token=token)
    seen = await ctx.runs.follow(run["id"], _nowhere, WAIT_SECONDS)
    if seen["status"] == "running":
        return {"name": name, "result": None, "run": {"id": seen["id"], "status": "running", "progress": seen["progress"]}}
    return {"name": name, "result": outcome_of(seen)}


@plans("unit.call")
async def plan_call(ctx: Context, given: Mapping[str, Any]) -> Change:
    return await ctx.gateway.foreseen(given["name"], given.get("arguments"), ctx.caller)


async def _nowhere(item: Mapping[str, Any]) -> None:
    """unit.call has no stream of its own: a stream item's shape would be the other unit's."""


def _score(unit: Unit, words: list[str]) -> float:
    """How well a unit answers these words: its name counts most, then its title, what it says first, the rest, its arguments."""
    fields = (
        (unit.name.replace(".", " ").replace("_", " "), 3.0),
        (str(unit.definition["title"]), 2.0),
        (str(unit.definition["description"]).partition(". ")[0], 1.5),
        (str(unit.definition["description"]), 1.0),
        (" ".join(unit.definition["inputSchema"]["properties"]), 0.5),
    )
    texts = [(re.findall(r"[a-z0-9]+", text.lower()), weight) for text, weight in fields]
    return sum(max((weight for text, weight in texts if any(_alike(word, other) for other in text)), default=0.0) for word in words)


def _alike(word: str, other: str) -> bool:
    """Whether two words are one but for an ending: model and models, pull and pulled."""
    short, long = sorted((word, other), key=len)
    return word == other or (len(short) > 2 and long.startswith(short) and len(long) - len(short) <= 3)
