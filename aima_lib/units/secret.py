"""The secret domain: what AIMA needs to reach others, written and never read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aima_lib.gateway import Context
from aima_lib.infra.change import Change
from aima_lib.registry import handles, plans

Result = Mapping[str, Any]


@handles("secret.put")
async def put_secret(ctx: Context, name: str, value: str) -> Result:
    return {"secret": await ctx.services.secrets.put(name, value)}


@handles("secret.list")
async def list_secrets(ctx: Context) -> Result:
    return {"secrets": ctx.services.secrets.list()}


@handles("secret.delete")
async def delete_secret(ctx: Context, name: str) -> Result:
    await ctx.services.secrets.delete(name)
    return {"deleted": name}


@plans("secret.put")
async def plan_put(ctx: Context, given: Mapping[str, Any]) -> Change:  # noqa: ARG001
    return Change(creates=(("secret", given["name"]),))


@plans("secret.delete")
async def plan_delete(ctx: Context, given: Mapping[str, Any]) -> Change:
    secret = ctx.services.secrets.find(given["name"])
    return Change(deletes=(("secret", given["name"]),), saw={"since": secret["updated_at"]})
