"""The key domain: who else may come in, and how far."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from aima_lib.errors import NotFound
from aima_lib.gateway import Context
from aima_lib.infra.change import Change
from aima_lib.names import did_you_mean
from aima_lib.registry import SCHEMAS, handles, plans

Result = Mapping[str, Any]


@handles("key.create")
async def create_key(
    ctx: Context,
    name: str,
    scopes: Sequence[str],
    models: Sequence[str] | None = None,
    expires_at: str | None = None,
    limits: Mapping[str, float] | None = None,
    profile: str | None = None,
    priority: str = "normal",
) -> Result:
    _refuse_profile(ctx, profile)
    key, secret = await ctx.services.keys.create(name, scopes, models, expires_at, ctx.caller, limits, profile, priority)
    return {"key": key, "secret": secret}


@plans("key.create")
async def plan_key(ctx: Context, given: Mapping[str, Any]) -> Change:
    _refuse_profile(ctx, given.get("profile"))
    bounds = given.get("models"), given.get("expires_at"), ctx.caller, given.get("limits"), given.get("priority")
    ctx.services.keys.judge(given["scopes"], *bounds)
    return Change(creates=(("key", ctx.services.keys.id_for(given["name"])),))


@handles("key.list")
async def list_keys(ctx: Context, status: str | None = None, limit: int = 100, offset: int = 0) -> Result:
    keys, total = ctx.services.keys.list(status, limit, offset)
    return {"keys": keys, "total": total}


@handles("key.revoke")
async def revoke_key(ctx: Context, key_id: str) -> Result:
    return {"key": await ctx.services.keys.revoke(key_id, ctx.caller)}


@plans("key.revoke")
async def plan_revocation(ctx: Context, given: Mapping[str, Any]) -> Change:
    ctx.services.keys.find(given["key_id"])
    runs = ctx.services.store.find("run", status="running", caller=given["key_id"])
    return Change(stops=(("key", given["key_id"]), *(("run", run["id"]) for run in runs)))


def _refuse_profile(ctx: Context, profile: str | None) -> None:
    known = {*json.loads((SCHEMAS / "profiles.json").read_text(encoding="utf-8")), *ctx.services.config["mcp"]["profiles"]}
    if profile is not None and profile not in known:
        raise NotFound(f"no profile called {profile!r}", hint=did_you_mean(profile, known) or f"there are: {', '.join(sorted(known))}")
