"""The key domain: who else may come in, and how far."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from aima_lib.errors import NotFound
from aima_lib.gateway import Context
from aima_lib.names import did_you_mean
from aima_lib.registry import SCHEMAS, handles

Result = Mapping[str, Any]


@handles("key.create")
async def create_key(
    ctx: Context,
    name: str,
    scopes: Sequence[str],
    models: Sequence[str] | None = None,
    expires_at: str | None = None,
    profile: str | None = None,
) -> Result:
    known = {*json.loads((SCHEMAS / "profiles.json").read_text(encoding="utf-8")), *ctx.services.config["mcp"]["profiles"]}
    if profile is not None and profile not in known:
        raise NotFound(f"no profile called {profile!r}", hint=did_you_mean(profile, known) or f"there are: {', '.join(sorted(known))}")
    key, secret = await ctx.services.keys.create(name, scopes, models, expires_at, ctx.caller, profile)
    return {"key": key, "secret": secret}


@handles("key.list")
async def list_keys(ctx: Context, status: str | None = None, limit: int = 100, offset: int = 0) -> Result:
    keys, total = ctx.services.keys.list(status, limit, offset)
    return {"keys": keys, "total": total}


@handles("key.revoke")
async def revoke_key(ctx: Context, key_id: str) -> Result:
    return {"key": await ctx.services.keys.revoke(key_id, ctx.caller)}
