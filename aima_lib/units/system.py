"""The system domain: AIMA about itself."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Mapping
from typing import Any

from aima_lib import __version__
from aima_lib.errors import AimaError
from aima_lib.gateway import Context
from aima_lib.infra.change import Change
from aima_lib.infra.clock import now
from aima_lib.registry import Unit, handles, plans

STARTED_AT, STARTED = now(), time.monotonic()
LOW_DISK_BYTES = 5 * 2**30
NOBODY = "no-such-thing-1"


@handles("system.info")
async def describe_system(ctx: Context) -> Mapping[str, Any]:
    services = ctx.services
    host = services.home.host()
    kinds = {"models": "model", "services": "service", "instances": "instance"}
    counts = {name: services.store.count(kind) for name, kind in kinds.items()}
    counts |= {"units": len(ctx.registry.of("command", "query")), "running_runs": services.store.count("run", status="running")}
    return {
        "version": __version__,
        "home": str(services.home.path),
        "pid": os.getpid(),
        "url": host.url if host else None,
        "started_at": STARTED_AT,
        "uptime_seconds": round(time.monotonic() - STARTED, 3),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "frozen": services.freeze.record,
        "counts": counts | {"events": services.events.last},
    }


@handles("system.doctor")
async def check_system(ctx: Context) -> Mapping[str, Any]:
    units = [await _probe(ctx, unit) for unit in ctx.registry.of("command", "query") if unit.name != "system.doctor"]
    units.append({"name": "system.doctor", "status": "exercised", "reason": "this call", "code": "ok"})
    checks = [await _check_devices(ctx), await _check_engines(ctx), await _check_docker(ctx), _check_disk(ctx), _check_frozen(ctx)]
    broken = [unit["name"] for unit in units if unit["status"] == "broken"]
    return {"healthy": not broken and all(check["status"] != "failed" for check in checks), "checks": checks, "units": units}


async def _probe(ctx: Context, unit: Unit) -> dict[str, Any]:
    """Call a unit so that nothing changes: a query as it is or about nobody, a command with an argument it must refuse."""
    if unit.kind == "command":
        arguments, expected = {NOBODY: True}, {"invalid_argument"}
    else:
        schema = unit.definition["inputSchema"]
        arguments = {key: _filler(schema["properties"][key]) for key in schema.get("required", [])}
        expected = {"ok"} | ({"not_found", "invalid_argument"} & set(unit.definition["errors"]))
    try:
        await ctx.gateway.call(unit.name, arguments, caller=ctx.caller)
        code, said = "ok", "it answered"
    except AimaError as error:
        code, said = error.code, str(error)
    status = "exercised" if code in expected else "unavailable" if code in ("unavailable", "permission_denied") else "broken"
    return {"name": unit.name, "status": status, "reason": f"called with {arguments or 'nothing'}: {said}", "code": code}


def _filler(spec: Mapping[str, Any]) -> Any:
    types = spec.get("type", "string")
    kind = types[0] if isinstance(types, list) else types
    return {"string": NOBODY, "integer": 1, "number": 1, "boolean": False, "array": [], "object": {}}[kind]


async def _check_devices(ctx: Context) -> dict[str, Any]:
    devices = ctx.services.devices
    gpus = [str(device["name"]) for device in await devices.known() if device["type"] == "gpu"]
    if gpus:
        return {"name": "devices", "status": "ok", "message": f"GPU: {', '.join(gpus)}"}
    reasons = "; ".join(str(source["reason"]) for source in devices.sources() if source["reason"])
    return {"name": "devices", "status": "warning", "message": f"no GPU: models run on the CPU ({reasons})"}


async def _check_engines(ctx: Context) -> dict[str, Any]:
    engines = await ctx.services.engines.list_engines()
    ready = [engine["name"] for engine in engines if engine["installed"] and engine["formats"] != ["remote"]]  # of those, their start tells
    if ready:
        return {"name": "engines", "status": "ok", "message": f"installed: {', '.join(ready)}"}
    return {
        "name": "engines",
        "status": "failed",
        "message": "no engine is installed: pip install 'aima[llamacpp]', or put llama-server on PATH",
    }


async def _check_docker(ctx: Context) -> dict[str, Any]:
    """A machine without Docker is well, unless something here is meant to be a container."""
    state = await ctx.services.docker.state()
    if state["available"]:
        return {"name": "docker", "status": "ok", "message": f"Docker {state['version']} answers at {state['socket']}"}
    wanted = bool(ctx.services.config["engines"]["images"])
    message = f"{state['reason']}: {state['hint']}" if wanted and state["hint"] else str(state["reason"])
    return {
        "name": "docker",
        "status": "warning" if wanted else "ok",
        "message": message if wanted else f"{message}; nothing here needs it",
    }


def _check_disk(ctx: Context) -> dict[str, Any]:
    free = shutil.disk_usage(ctx.services.home.path).free
    status = "ok" if free > LOW_DISK_BYTES else "warning"
    return {"name": "disk", "status": status, "message": f"{free / 2**30:.1f} GiB free in {ctx.services.home.path}"}


def _check_frozen(ctx: Context) -> dict[str, Any]:
    if record := ctx.services.freeze.record:
        return {"name": "frozen", "status": "warning", "message": f"{record['by']} froze this home at {record['at']}: aima thaw"}
    return {"name": "frozen", "status": "ok", "message": "changes are let through"}


@handles("system.freeze")
async def freeze_home(ctx: Context, reason: str | None = None) -> Mapping[str, Any]:
    record = await ctx.services.freeze.freeze(reason, ctx.caller)
    await ctx.runs.suspend()
    return {"frozen": record}


@handles("system.thaw")
async def thaw_home(ctx: Context) -> Mapping[str, Any]:
    await ctx.services.freeze.thaw(ctx.caller)
    await ctx.runs.recover()
    return {"frozen": None}


@plans("system.freeze")
async def plan_freeze(ctx: Context, given: Mapping[str, Any]) -> Change:  # noqa: ARG001
    return Change(stops=_running(ctx))


@plans("system.thaw")
async def plan_thaw(ctx: Context, given: Mapping[str, Any]) -> Change:  # noqa: ARG001
    frozen = ctx.services.freeze.record
    return Change(starts=_running(ctx) if frozen else (), saw={"frozen": frozen})


def _running(ctx: Context) -> tuple[tuple[str, str], ...]:
    return tuple(("run", run["id"]) for run in ctx.services.store.find("run", status="running"))
