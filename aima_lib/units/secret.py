"""The secret domain: what AIMA needs to reach others, written and never read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aima_lib.gateway import Context
from aima_lib.registry import handles

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
