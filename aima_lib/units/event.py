"""The event domain: the log, by page, and what it explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aima_lib.errors import InvalidArgument
from aima_lib.gateway import Context
from aima_lib.infra.store import Document
from aima_lib.names import did_you_mean
from aima_lib.registry import handles
from aima_lib.services.explain import RUNS, Explanation


@handles("event.list")
async def list_events(
    ctx: Context,
    after: int | None = None,
    types: Sequence[str] | None = None,
    subject: str | None = None,
    correlation_id: str | None = None,
    limit: int = 100,
) -> Mapping[str, Any]:
    known = {unit.name for unit in ctx.registry.of("event")}
    known |= {f"{name.partition('.')[0]}.*" for name in known}
    for name in types or ():
        if name not in known:
            raise InvalidArgument(f"no event called {name!r}", hint=did_you_mean(name, known) or f"there are: {', '.join(sorted(known))}")
    log = ctx.services.events
    lagged = after is not None and after + 1 < log.first
    found = log.page(after, limit, types or (), subject, correlation_id)
    return {"events": found, "first": log.first, "last": log.last, "lagged": lagged}


@handles("event.explain")
async def explain(ctx: Context, subject: str, since: str | None = None, limit: int = 50) -> Mapping[str, Any]:
    own = None if ctx.caller.may("admin") else ctx.caller.name
    runs = ctx.services.store.find("run", limit=RUNS, newest_first=True, caller=own)

    def see(run_id: str) -> Document | None:
        found = ctx.services.store.peek("run", run_id)
        return found if found is None or own in (None, found["caller"]) else None

    return await Explanation(ctx.services, ctx.caller.may, see, runs).of(subject, since, limit)


@handles("event.log")
async def newest_events(ctx: Context) -> Mapping[str, Any]:
    log = ctx.services.events
    return {"events": log.page(None, 100), "first": log.first, "last": log.last}
