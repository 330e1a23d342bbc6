"""The vector domain: what was embedded, kept and found again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aima_lib.gateway import Context
from aima_lib.infra.change import Change
from aima_lib.registry import handles, plans

Result = Mapping[str, Any]


@handles("vector.put")
async def put_vectors(
    ctx: Context,
    collection: str,
    embeddings: list[list[float]],
    documents: list[str] | None = None,
    ids: list[str] | None = None,
    metadatas: list[dict[str, Any]] | None = None,
) -> Result:
    kept, named = await ctx.services.vectors.put(collection, embeddings, documents, ids, metadatas)
    return {"collection": kept, "ids": named}


@handles("vector.search")
async def search_vectors(
    ctx: Context,
    collection: str,
    embedding: list[float],
    limit: int = 10,
    min_score: float = -1,
    filter: dict[str, Any] | None = None,
) -> Result:
    return {"matches": await ctx.services.vectors.search(collection, embedding, limit, min_score, filter or {})}


@handles("vector.list")
async def list_collections(ctx: Context, limit: int = 100, offset: int = 0) -> Result:
    collections, total = ctx.services.vectors.page(limit, offset)
    return {"collections": collections, "total": total}


@handles("vector.delete")
async def delete_vectors(
    ctx: Context, collection: str, ids: list[str] | None = None, filter: dict[str, Any] | None = None, whole: bool = False
) -> Result:
    return {"deleted": await ctx.services.vectors.delete(collection, ids, filter, whole)}


@plans("vector.put")
async def plan_put(ctx: Context, given: Mapping[str, Any]) -> Change:
    known = ctx.services.vectors.peek(given["collection"])
    return Change() if known else Change(creates=(("vector_collection", given["collection"]),))


@plans("vector.delete")
async def plan_delete(ctx: Context, given: Mapping[str, Any]) -> Change:
    known = ctx.services.vectors.get(given["collection"])
    gone = [("vector", id) for id in given.get("ids") or ()] or [("vector_collection", given["collection"])]
    return Change(deletes=tuple(gone[:100]), freed_bytes=None, saw={"since": known["updated_at"]})
