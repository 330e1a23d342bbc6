"""Handlers of service.*"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from aima_lib.errors import InvalidArgument
from aima_lib.gateway import Context
from aima_lib.infra.change import Change
from aima_lib.registry import handles, plans
from aima_lib.services.autoscale import USUAL
from aima_lib.services.containers import chosen

Result = Mapping[str, Any]


@handles("service.create")
async def create_service(
    ctx: Context,
    model_id: str,
    name: str | None = None,
    engine: str | None = None,
    options: Mapping[str, Any] | None = None,
    launcher: str | None = None,
    replicas: int | None = None,
    idle_unload_seconds: float | None = None,
    pinned: bool | None = None,
    priority: int | None = None,
    group: str | None = None,
) -> Result:
    settings = {"idle_unload_seconds": idle_unload_seconds, "pinned": pinned, "priority": priority, "group": group}
    how = chosen(options, launcher)
    return {"service": await ctx.services.serving.create(model_id, name, engine, how, ctx.send, replicas=replicas, **settings)}


@handles("service.scale")
async def scale_service(ctx: Context, service_id: str, replicas: int) -> Result:
    return {"service": await ctx.services.serving.scale(service_id, replicas, ctx.send)}


@handles("service.update")
async def update_service(
    ctx: Context,
    service_id: str,
    model_id: str | None = None,
    engine: str | None = None,
    options: Mapping[str, Any] | None = None,
    idle_unload_seconds: float | None = None,
    pinned: bool | None = None,
    priority: int | None = None,
    group: str | None = None,
    autoscale: Mapping[str, Any] | None = None,
    probe_seconds: float = 30,
    drain_seconds: float = 60,
) -> Result:
    changes = {"model_id": model_id, "engine": engine, "options": None if options is None else chosen(options)}
    held = {"idle_unload_seconds": idle_unload_seconds, "pinned": pinned, "priority": priority, "group": group}
    settings = {**held, "autoscale": _bounds(autoscale)}
    serving = ctx.services.serving
    service = await serving.update(service_id, changes, settings, ctx.send, probe_seconds=probe_seconds, drain_seconds=drain_seconds)
    return {"service": service}


@handles("service.start")
async def start_service(ctx: Context, service_id: str) -> Result:
    return {"service": await ctx.services.serving.start(service_id, ctx.send)}


@handles("service.stop")
async def stop_service(ctx: Context, service_id: str, timeout_seconds: float = 10) -> Result:
    return {"service": await ctx.services.serving.stop(service_id, timeout_seconds)}


@handles("service.delete")
async def delete_service(ctx: Context, service_id: str) -> Result:
    return {"freed_bytes": await ctx.services.serving.delete(service_id)}


@handles("service.get")
async def get_service(ctx: Context, service_id: str) -> Result:
    return {"service": ctx.services.serving.get(service_id)}


@handles("service.list")
async def list_services(ctx: Context, status: str | None = None, model_id: str | None = None, limit: int = 100, offset: int = 0) -> Result:
    services, total = ctx.services.serving.list(status, model_id, limit, offset)
    return {"services": services, "total": total}


@handles("service.status")
async def service_status(ctx: Context, service_id: str) -> Result:
    return await ctx.services.serving.status(service_id)


@handles("service.logs")
async def service_logs(ctx: Context, service_id: str, tail: int = 100, since: str | None = None) -> Result:
    return {"lines": await ctx.services.serving.logs(service_id, tail, since)}


@handles("service.all")
async def all_services(ctx: Context) -> Result:
    services, total = ctx.services.serving.list(limit=1000)
    return {"services": services, "total": total}


@handles("service.by_id")
async def service_by_id(ctx: Context, service_id: str) -> Result:
    return {"service": ctx.services.serving.get(service_id)}


@plans("service.create")
async def plan_create(ctx: Context, given: Mapping[str, Any]) -> Change:
    wanted = given["model_id"], given.get("name"), given.get("engine"), chosen(given.get("options"), given.get("launcher"))
    id, old, needed = await ctx.services.serving.foresee(*wanted)
    group = given["group"] if given.get("group") is not None else (old or {}).get("group")
    made_way = _made_way(ctx.services.serving.leaving(id, group))
    if old and old["status"] == "running":
        return made_way
    return replace(made_way, creates=() if old else (("service", id),), starts=(("service", id),), memory_bytes=needed)


@plans("service.start")
async def plan_start(ctx: Context, given: Mapping[str, Any]) -> Change:
    service = ctx.services.serving.get(given["service_id"])
    if service["status"] == "running":
        return Change()
    _, _, needed = await ctx.services.serving.foresee(service["model_id"], service["id"], service["engine"], service["options"])
    made_way = _made_way(ctx.services.serving.leaving(service["id"], service["group"]))
    return replace(made_way, starts=(("service", service["id"]),), memory_bytes=needed)


@plans("service.update")
async def plan_update(ctx: Context, given: Mapping[str, Any]) -> Change:
    changes, bounds = {key: given.get(key) for key in ("model_id", "engine", "options")}, _bounds(given.get("autoscale"))
    changes["options"] = None if changes["options"] is None else chosen(changes["options"])
    more = (f"it will have {bounds['min']} to {bounds['max']} engines as requests need them",) if bounds else ()
    found = await ctx.services.serving.foresee_update(given["service_id"], changes)
    made_way = _made_way(ctx.services.serving.leaving_to_join(given["service_id"], given.get("group")))
    if found is None:
        return replace(made_way, notes=more)
    service, needed, fits = found
    here = (("service", service["id"]),)
    if fits is False:
        note = "an old and a new engine do not fit into memory together, so each old one ends first and requests wait meanwhile"
        return replace(made_way, starts=here, stops=(*here, *made_way.stops), memory_bytes=needed, notes=(note, *more))
    unknown = () if fits else ("whether an old and a new engine fit into memory together is not known",)
    return replace(made_way, starts=here, memory_bytes=needed, notes=(*unknown, *more))


@plans("service.scale")
async def plan_scale(ctx: Context, given: Mapping[str, Any]) -> Change:
    service = ctx.services.serving.get(given["service_id"])
    more = given["replicas"] - service["desired_replicas"]
    if not service["desired_replicas"] or not more:
        return Change()
    if more < 0:
        return Change(stops=(("service", service["id"]),), freed_bytes=None)
    _, _, needed = await ctx.services.serving.foresee(service["model_id"], service["id"], service["engine"], service["options"])
    return Change(starts=(("service", service["id"]),), memory_bytes=None if needed is None else needed * more)


@plans("service.stop")
async def plan_stop(ctx: Context, given: Mapping[str, Any]) -> Change:
    service = ctx.services.serving.get(given["service_id"])
    return _ended(service) if service["status"] != "stopped" else Change()


@plans("service.delete")
async def plan_delete(ctx: Context, given: Mapping[str, Any]) -> Change:
    service = ctx.services.serving.get(given["service_id"])
    ended = _ended(service) if service["status"] != "stopped" else Change()
    return replace(ended, deletes=(("service", service["id"]),), saw={"since": service["created_at"], "model": service["model_id"]})


def _bounds(autoscale: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Bounds with what is usual filled in."""
    if autoscale is None:
        return None
    bounds = {**USUAL, **autoscale}
    if bounds["min"] > bounds["max"]:
        raise InvalidArgument(f"autoscale.min: {bounds['min']} is more than max, {bounds['max']}")
    return bounds


def _made_way(leaving: Sequence[str]) -> Change:
    """Who leaves the group of a service that is asked for."""
    return Change(stops=tuple(("service", id) for id in leaving), freed_bytes=None if leaving else 0)


def _ended(service: Mapping[str, Any]) -> Change:
    return Change(stops=(("service", service["id"]),), freed_bytes=None)
