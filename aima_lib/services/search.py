"""Models elsewhere that fit some words, and whether they fit this machine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio

from aima_lib.errors import AimaError
from aima_lib.services.pulling import Pulling
from aima_lib.sources.base import Hit, Query
from aima_lib.sources.roster import SEARCHES

AT_ONCE = 6
Estimate = Callable[..., Awaitable[dict[str, Any]]]


class SearchService:
    """Asks every source that can be searched at once. `estimate` is ModelService's."""

    def __init__(self, pulling: Pulling, estimate: Estimate) -> None:
        self._pulling, self._estimate = pulling, estimate

    async def search(self, query: Query, source: str | None) -> dict[str, Any]:
        """results and unavailable: a source that fails is named, and the others answer.

        Raises:
            FailedPrecondition: the host is offline.
            AimaError: none of the sources answered; the first one's reason.
        """
        kinds = [source] if source else list(SEARCHES)
        found: dict[str, list[Hit]] = {}
        failed: dict[str, AimaError] = {}

        async def ask(kind: str) -> None:
            try:
                found[kind] = (await self._pulling.search(kind, query))[: query.limit]
            except AimaError as error:
                failed[kind] = error

        async with anyio.create_task_group() as group:
            for kind in kinds:
                group.start_soon(ask, kind)
        if not found:
            raise failed[kinds[0]]
        hits = _in_turn([found[kind] for kind in kinds if kind in found])[: query.limit]
        unavailable = [{"source": kind, "reason": str(error)} for kind, error in failed.items()]
        return {"results": await self._judged(hits), "unavailable": unavailable}

    async def _judged(self, hits: list[Hit]) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = [{} for _ in hits]
        limit = anyio.CapacityLimiter(AT_ONCE)

        async def judge(place: int, hit: Hit) -> None:
            async with limit:
                results[place] = _shown(hit) | await self._fit(hit)

        async with anyio.create_task_group() as group:
            for place, hit in enumerate(hits):
                group.start_soon(judge, place, hit)
        return results

    async def _fit(self, hit: Hit) -> dict[str, Any]:
        """Size, and whether it fits: of what model.pull would take of it."""
        try:
            found = await self._estimate(repo=hit.repo, source=hit.source)
        except AimaError as error:
            return {"size_bytes": None, "fits": None, "device_id": None, "reason": str(error)}
        verdict = _best(found["fits"])
        return {"size_bytes": found["disk_bytes"], **verdict}


def _in_turn(lists: list[list[Hit]]) -> list[Hit]:
    """The first of each, then the second of each."""
    longest = max(map(len, lists), default=0)
    return [hits[place] for place in range(longest) for hits in lists if place < len(hits)]


def _best(fits: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The device it fits on, else the one that says most."""
    order = {True: 0, None: 1, False: 2}
    if not fits:
        return {"fits": None, "device_id": None, "reason": "this machine has no device that could run it"}
    best = min(fits, key=lambda fit: order[fit["fits"]])
    return {"fits": best["fits"], "device_id": best["device_id"], "reason": best["reason"]}


def _shown(hit: Hit) -> dict[str, Any]:
    keys = ("repo", "source", "type", "format", "downloads", "license", "updated_at")
    return {key: getattr(hit, key) for key in keys}
