"""Handlers of resource.*: the books of memory, and slots in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aima_lib.gateway import Context
from aima_lib.infra.change import Change
from aima_lib.names import slug
from aima_lib.registry import handles, plans
from aima_lib.services.books import USUAL_PRIORITY

Result = Mapping[str, Any]


@handles("resource.allocate")
async def allocate(
    ctx: Context,
    name: str,
    type: str,
    memory_bytes: int,
    device_id: str | None = None,
    gpu_fraction: float | None = None,
    priority: int = USUAL_PRIORITY,
    preemptible: bool = False,
    pid: int | None = None,
) -> Result:
    given = {"type": type, "memory_bytes": memory_bytes, "device_id": device_id, "gpu_fraction": gpu_fraction, "pid": pid}
    return {"slot": await ctx.services.reservations.allocate(name, {**given, "priority": priority, "preemptible": preemptible})}


@handles("resource.release")
async def release(ctx: Context, slot_id: str) -> Result:
    return {"slot": await ctx.services.reservations.release(slot_id)}


@handles("resource.update_slot")
async def update_slot(
    ctx: Context,
    slot_id: str,
    memory_bytes: int | None = None,
    status: str | None = None,
    pid: int | None = None,
    priority: int | None = None,
    preemptible: bool | None = None,
) -> Result:
    changes = {"memory_bytes": memory_bytes, "status": status, "pid": pid, "priority": priority, "preemptible": preemptible}
    return {"slot": await ctx.services.reservations.update(slot_id, changes)}


@handles("resource.status")
async def resource_status(ctx: Context) -> Result:
    return await ctx.services.occupancy.status()


@handles("resource.budget")
async def resource_budget(ctx: Context) -> Result:
    return await ctx.services.occupancy.budget()


@handles("resource.allocations")
async def resource_allocations(ctx: Context, slot_id: str | None = None, type: str | None = None) -> Result:
    return await ctx.services.occupancy.allocations(slot_id, type)


@handles("resource.can_allocate")
async def can_allocate(ctx: Context, memory_bytes: int, device_id: str | None = None, priority: int = USUAL_PRIORITY) -> Result:
    return await ctx.services.occupancy.can_allocate(memory_bytes, device_id, priority)


@handles("resource.status_now")
async def status_now(ctx: Context) -> Result:
    return await ctx.services.occupancy.status()


@handles("resource.budget_now")
async def budget_now(ctx: Context) -> Result:
    return await ctx.services.occupancy.budget()


@handles("resource.allocations_now")
async def allocations_now(ctx: Context) -> Result:
    return await ctx.services.occupancy.allocations()


@plans("resource.allocate")
async def plan_allocate(ctx: Context, given: Mapping[str, Any]) -> Change:
    id = slug(given["name"])
    if ctx.services.store.peek("slot", id):
        return Change()
    wanted, priority = given["memory_bytes"], given.get("priority", USUAL_PRIORITY)
    leaving = await ctx.services.reservations.leaving(given.get("device_id"), wanted, priority)
    return Change(creates=(("slot", id),), deletes=_slots(leaving), memory_bytes=wanted)


@plans("resource.release")
async def plan_release(ctx: Context, given: Mapping[str, Any]) -> Change:
    slot = ctx.services.store.get("slot", given["slot_id"])
    return Change(deletes=(("slot", slot["id"]),), saw={"since": slot["created_at"]}, freed_bytes=None)


@plans("resource.update_slot")
async def plan_update(ctx: Context, given: Mapping[str, Any]) -> Change:
    slot = ctx.services.store.get("slot", given["slot_id"])
    wanted = given.get("memory_bytes") or slot["memory_bytes"]
    priority = given.get("priority", slot["priority"])
    leaving = await ctx.services.reservations.leaving(slot["device_id"], wanted, priority, slot["id"])
    return Change(deletes=_slots(leaving), memory_bytes=max(0, wanted - slot["memory_bytes"]))


def _slots(ids: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple(("slot", id) for id in ids)
