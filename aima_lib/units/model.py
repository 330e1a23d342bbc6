"""The model domain: weights on disk."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from aima_lib.gateway import Context
from aima_lib.infra.change import Change
from aima_lib.infra.clock import now
from aima_lib.infra.line import Place
from aima_lib.names import slug
from aima_lib.registry import handles, plans
from aima_lib.services.estimates import USUAL_ENGINE
from aima_lib.services.limits import DOWNLOAD
from aima_lib.sources.base import Query

Result = Mapping[str, Any]


@handles("model.pull")
async def pull_model(
    ctx: Context,
    repo: str,
    source: str | None = None,
    revision: str | None = None,
    file: str | None = None,
    quantization: str | None = None,
    mirror: str | None = None,
    name: str | None = None,
    sha256: str | None = None,
    priority: int = 0,
) -> Result:
    since = ctx.runs.get(ctx.run_id)["created_at"] if ctx.run_id else now()  # a run that goes on keeps its age
    hold = partial(ctx.services.allowance.holding, ctx.caller, DOWNLOAD)
    given = (repo, source, revision, file, quantization, mirror, name, sha256)

    def pauses() -> bool:
        return ctx.run_id is not None and ctx.runs.keeps(ctx.run_id)

    place = Place(priority, since)
    return {"model": await ctx.services.models.pull(*given, send=ctx.send, hold=hold, place=place, pauses=pauses)}


@handles("model.import")
async def import_model(ctx: Context, path: str, name: str | None = None, type: str | None = None, mode: str = "link") -> Result:
    models, skipped = await ctx.services.models.import_all(path, name, type, mode, send=ctx.send)
    return {"model": models[0], "models": models, "skipped": [{"path": each.path, "reason": each.reason} for each in skipped]}


@handles("model.create")
async def create_model(ctx: Context, name: str, type: str, path: str, format: str | None = None, source: str | None = None) -> Result:
    return {"model": await ctx.services.models.create(name, type, path, format, source)}


@handles("model.delete")
async def delete_model(ctx: Context, model_id: str, force: bool = False) -> Result:
    return {"freed_bytes": await ctx.services.models.delete(model_id, force)}


@handles("model.gc")
async def collect_garbage(ctx: Context, dry_run: bool = False) -> Result:
    models = ctx.services.models
    found, freed = await (models.foresee_gc() if dry_run else models.gc())
    return {"freed_bytes": freed, "blobs": [str(path.relative_to(ctx.services.home.path)) for path in found]}


@handles("model.search")
async def search_models(
    ctx: Context, query: str, source: str | None = None, type: str | None = None, format: str | None = None, limit: int = 10
) -> Result:
    return await ctx.services.models.search(Query(query, type, format, limit), source)


@handles("model.verify")
async def verify_model(ctx: Context, model_id: str, checksum: str | None = None) -> Result:
    valid, issues = await ctx.services.models.verify(model_id, checksum, send=ctx.send)
    return {"valid": valid, "issues": issues}


@plans("model.pull")
async def plan_pull(ctx: Context, given: Mapping[str, Any]) -> Change:
    name, size, present = await ctx.services.models.foresee_pull(**given)
    return Change() if present else Change(creates=(("model", name),), download_bytes=size)


@plans("model.import", "model.create")
async def plan_intake(ctx: Context, given: Mapping[str, Any]) -> Change:  # noqa: ARG001
    stem = given.get("name") or Path(given["path"]).stem
    return Change(creates=(("model", slug(stem)),))


@plans("model.delete")
async def plan_delete(ctx: Context, given: Mapping[str, Any]) -> Change:
    model, users, freed = ctx.services.models.foresee_delete(given["model_id"], given.get("force", False))
    return Change(deletes=(("model", model["id"]),), used_by=users, freed_bytes=freed, saw={"since": model["created_at"]})


@plans("model.gc")
async def plan_gc(ctx: Context, given: Mapping[str, Any]) -> Change:
    found, freed = await ctx.services.models.foresee_gc()
    if given.get("dry_run"):
        return Change()
    return Change(deletes=tuple(("file", path.name) for path in found), freed_bytes=freed)


@plans("model.verify")
async def plan_verify(ctx: Context, given: Mapping[str, Any]) -> Change:
    ctx.services.models.get(given["model_id"])
    return Change()


@handles("model.get")
async def get_model(ctx: Context, model_id: str) -> Result:
    return {"model": ctx.services.models.get(model_id)}


@handles("model.list")
async def list_models(
    ctx: Context, type: str | None = None, status: str | None = None, format: str | None = None, limit: int = 100, offset: int = 0
) -> Result:
    models, total = ctx.services.models.list(type, status, format, limit, offset)
    return {"models": models, "total": total}


@handles("model.estimate_resources")
async def estimate_resources(
    ctx: Context,
    model_id: str | None = None,
    repo: str | None = None,
    source: str | None = None,
    revision: str | None = None,
    file: str | None = None,
    quantization: str | None = None,
    context_length: int | None = None,
    parallel: int = 1,
    cache_type: str = "f16",
    engine: str | None = None,
    device_id: str | None = None,
) -> Result:
    version = (await ctx.services.engines.catalog.find(engine or USUAL_ENGINE)).version
    return await ctx.services.models.estimate(
        model_id, repo, source, revision, file, quantization, context_length, parallel, device_id, engine, version, cache_type
    )


@handles("model.compatibility")
async def compatibility(ctx: Context) -> Result:
    return {"rows": await ctx.services.engines.catalog.compatibility(await ctx.services.devices.known())}


@handles("model.registry")
async def registry(ctx: Context) -> Result:
    models, total = ctx.services.models.list()
    blobs = {file["sha256"] or (model["id"], file["name"]): file["size_bytes"] for model in models for file in model["files"]}
    return {"models": models, "total": total, "size_bytes": sum(blobs.values())}


@handles("model.entry")
async def entry(ctx: Context, model_id: str) -> Result:
    return {"model": ctx.services.models.get(model_id)}
