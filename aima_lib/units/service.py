"""Handlers of service.*"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aima_lib.gateway import Context
from aima_lib.registry import handles

Result = Mapping[str, Any]


@handles("service.create")
async def create_service(
    ctx: Context, model_id: str, name: str | None = None, engine: str | None = None, options: Mapping[str, Any] | None = None
) -> Result:
    return {"service": await ctx.services.serving.create(model_id, name, engine, options, ctx.send)}


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
