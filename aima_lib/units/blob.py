"""Handlers of blob.*"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from aima_lib.gateway import Context
from aima_lib.infra.change import Change
from aima_lib.registry import handles, plans

Result = Mapping[str, Any]
UNKNOWN = "application/octet-stream"


@handles("blob.create")
async def create_blob(ctx: Context, content: str, media_type: str | None = None) -> Result:
    data, told = await ctx.services.media.take(content, ctx.caller, "content")
    return {"blob": await ctx.services.media.keep(data, media_type or told or UNKNOWN, ctx.caller, "blob.create")}


@handles("blob.list")
async def list_blobs(ctx: Context, limit: int = 100, offset: int = 0) -> Result:
    blobs, total = ctx.services.media.list(ctx.caller, limit, offset)
    return {"blobs": blobs, "total": total}


@handles("blob.delete")
async def delete_blob(ctx: Context, blob_id: str) -> Result:
    return {"freed_bytes": await ctx.services.media.delete(blob_id, ctx.caller)}


@handles("blob.content")
async def blob_content(ctx: Context, blob_id: str) -> Result:
    media_type, data = await ctx.services.media.read(blob_id, ctx.caller)
    return {"media_type": media_type, "content": base64.b64encode(data).decode()}


@plans("blob.create")
async def plan_create(ctx: Context, given: Mapping[str, Any]) -> Change:  # noqa: ARG001
    return Change(creates=(("blob", "new"),))


@plans("blob.delete")
async def plan_delete(ctx: Context, given: Mapping[str, Any]) -> Change:
    size = ctx.services.media.size(given["blob_id"], ctx.caller)
    return Change() if size is None else Change(deletes=(("blob", given["blob_id"]),), freed_bytes=size)
