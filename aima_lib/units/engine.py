"""Handlers of engine.*"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from aima_lib.gateway import Context
from aima_lib.infra.change import Change
from aima_lib.registry import handles, plans
from aima_lib.services.containers import chosen

Result = Mapping[str, Any]


@handles("engine.list")
async def list_engines(ctx: Context, type: str | None = None, status: str | None = None) -> Result:
    return {"engines": await ctx.services.engines.list_engines(type, status)}


@handles("engine.get")
async def get_engine(ctx: Context, name: str) -> Result:
    return {"engine": await ctx.services.engines.engine(name)}


@handles("engine.start")
async def start_engine(
    ctx: Context, name: str, model_id: str, options: Mapping[str, Any] | None = None, launcher: str | None = None, port: int | None = None
) -> Result:
    return {"instance": await ctx.services.engines.start(name, model_id, chosen(options, launcher), port, ctx.send)}


@handles("engine.install")
async def install_engine(ctx: Context, name: str, version: str | None = None, launcher: str = "process") -> Result:
    return await ctx.services.installing.install(name, version, launcher, ctx.send)


@handles("engine.stop")
async def stop_engine(
    ctx: Context, instance_id: str | None = None, name: str | None = None, force: bool = False, timeout_seconds: float = 10
) -> Result:
    return await ctx.services.engines.stop(instance_id, name, force, timeout_seconds)


@handles("engine.restart")
async def restart_engine(ctx: Context, instance_id: str) -> Result:
    return {"instance": await ctx.services.engines.restart(instance_id, ctx.send)}


@handles("engine.features")
async def engine_features(ctx: Context, name: str) -> Result:
    features = await ctx.services.engines.features(name)
    known = ctx.registry["engine.start"].definition["inputSchema"]["properties"]["options"]["properties"]
    return {"features": {**features, "option_schemas": {option: known[option] for option in features["options"]}}}


@handles("engine.logs")
async def engine_logs(ctx: Context, instance_id: str, tail: int = 100, since: str | None = None) -> Result:
    return {"lines": await ctx.services.engines.logs(instance_id, tail, since)}


@handles("engine.status")
async def engines_status(ctx: Context) -> Result:
    return {"engines": await ctx.services.engines.list_engines()}


@handles("engine.by_name")
async def engine_by_name(ctx: Context, name: str) -> Result:
    return {"engine": await ctx.services.engines.engine(name)}


@plans("engine.start")
async def plan_start(ctx: Context, given: Mapping[str, Any]) -> Change:
    id, runs, needed = ctx.services.engines.foresee(given["name"], given["model_id"], chosen(given.get("options"), given.get("launcher")))
    return Change() if runs else Change(starts=(("instance", id),), memory_bytes=needed)


@plans("engine.install")
async def plan_install(ctx: Context, given: Mapping[str, Any]) -> Change:
    fetches, size, model = await ctx.services.installing.foresee(given["name"], given.get("version"), given.get("launcher", "process"))
    things = [("engine", given["name"])] if fetches else []
    return Change(creates=(*things, *([("model", model)] if model else [])), download_bytes=size)


@plans("engine.stop")
async def plan_stop(ctx: Context, given: Mapping[str, Any]) -> Change:
    return _ended(ctx.services.engines.chosen(given.get("instance_id"), given.get("name")))


@plans("engine.restart")
async def plan_restart(ctx: Context, given: Mapping[str, Any]) -> Change:
    ended = _ended([ctx.services.engines.instance(given["instance_id"])])
    return replace(ended, starts=(("instance", given["instance_id"]),))


def _ended(instances: Sequence[Mapping[str, Any]]) -> Change:
    alive = [instance for instance in instances if instance["status"] in ("starting", "ready")]
    users = tuple(("service", instance["service_id"]) for instance in alive if instance["service_id"])
    return Change(stops=tuple(("instance", instance["id"]) for instance in alive), used_by=users, freed_bytes=None if alive else 0)
