"""The device domain: what hardware there is and how it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aima_lib.gateway import Context
from aima_lib.infra.change import Change
from aima_lib.registry import handles, plans

Result = Mapping[str, Any]


@handles("device.detect")
async def detect_devices(ctx: Context) -> Result:
    return {"devices": await ctx.services.devices.detect(), "sources": ctx.services.devices.sources()}


@handles("device.info")
async def device_info(ctx: Context, device_id: str | None = None) -> Result:
    devices = await ctx.services.devices.known()
    return {"devices": devices if device_id is None else [ctx.services.devices.device(device_id)]}


@handles("device.metrics")
async def device_metrics(
    ctx: Context, device_id: str | None = None, window_seconds: float = 300, resolution_seconds: float | None = None
) -> Result:
    return await ctx.services.devices.metrics(device_id, window_seconds, resolution_seconds)


@handles("device.health")
async def device_health(ctx: Context, device_id: str | None = None) -> Result:
    return await ctx.services.devices.health(device_id)


@handles("device.all")
async def all_devices(ctx: Context) -> Result:
    return {"devices": await ctx.services.devices.known()}


@handles("device.info_by_id")
async def one_device(ctx: Context, device_id: str) -> Result:
    await ctx.services.devices.known()
    return ctx.services.devices.device(device_id)


@handles("device.metrics_by_id")
async def metrics_of_one(ctx: Context, device_id: str) -> Result:
    return await ctx.services.devices.metrics(device_id)


@handles("device.health_by_id")
async def health_of_one(ctx: Context, device_id: str) -> Result:
    return await ctx.services.devices.health(device_id)


@plans("device.detect")
async def plan_detection(ctx: Context, given: Mapping[str, Any]) -> Change:  # noqa: ARG001
    return Change()
