"""MCP resources: what is addressed by URI, read, and watched."""

from __future__ import annotations

from typing import Any

import mcp_types as types
from mcp.server.context import HandlerResult
from mcp.server.lowlevel import Server

from aima_lib.door import Door
from aima_mcp.faces.mcp.edge import Ctx, caller_of, refuse_cursor
from aima_mcp.faces.mcp.icons import icons
from aima_mcp.faces.mcp.outside import capped, clean, present
from aima_mcp.faces.mcp.results import COMPLETE, compact, wire_name
from aima_mcp.faces.mcp.watch import Watch

UNTRUSTED = "io.aima/untrustedFields"


class Resources:
    """What is addressed by URI: read, and watched."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._fixed: list[tuple[str, dict[str, Any]]] = []  # each with the scope it needs
        self._templates: list[tuple[str, dict[str, Any]]] = []
        for unit in sorted(door.registry.of("resource"), key=lambda unit: unit.definition["uriTemplate"]):
            uri, scope = unit.definition["uriTemplate"], unit.definition["scope"]
            entry = {"name": wire_name(unit.name)} | {key: unit.definition[key] for key in ("title", "description", "mimeType")}
            entry["icons"] = icons(unit.domain)
            if "{" in uri:
                self._templates.append((scope, {"uriTemplate": uri, **entry}))
            else:
                self._fixed.append((scope, {"uri": uri, **entry}))

    def register(self, server: Server[Watch]) -> None:
        """Let the server answer for them."""
        server.add_request_handler("resources/list", types.PaginatedRequestParams, self.list)
        server.add_request_handler("resources/templates/list", types.PaginatedRequestParams, self.list_templates)
        server.add_request_handler("resources/read", types.ReadResourceRequestParams, self.read)
        server.add_request_handler("resources/subscribe", types.SubscribeRequestParams, self.subscribe)
        server.add_request_handler("resources/unsubscribe", types.UnsubscribeRequestParams, self.unsubscribe)
        server.add_request_handler("subscriptions/listen", types.SubscriptionsListenRequestParams, self.listen)

    async def list(self, ctx: Ctx, params: types.PaginatedRequestParams) -> HandlerResult:
        refuse_cursor(params)
        return {**COMPLETE, "resources": [entry for scope, entry in self._fixed if caller_of(ctx).may(scope)]}

    async def list_templates(self, ctx: Ctx, params: types.PaginatedRequestParams) -> HandlerResult:
        refuse_cursor(params)
        return {**COMPLETE, "resourceTemplates": [entry for scope, entry in self._templates if caller_of(ctx).may(scope)]}

    async def read(self, ctx: Ctx, params: types.ReadResourceRequestParams) -> HandlerResult:
        uri = str(params.uri)
        found = await self._door.read(uri, caller=caller_of(ctx))
        known = self._door.registry.resource(uri)
        marks = known[0].untrusted if known else None
        shown: dict[str, Any]
        if known and known[0].holds_file:  # bytes are not ours to clean
            shown = {"uri": uri, "mimeType": found["content"]["media_type"], "blob": found["content"]["content"]}
            return {**COMPLETE, "contents": [shown]}
        content = capped(marks, clean(found["content"]))
        text = compact(content).encode("utf-8", "replace").decode("utf-8")  # a file name may hold half a surrogate pair
        shown = {"uri": uri, "mimeType": found["mimeType"], "text": text}
        if names := list(dict.fromkeys(present(marks, content))):
            shown["_meta"] = {UNTRUSTED: names}
        return {**COMPLETE, "contents": [shown]}

    async def subscribe(self, ctx: Ctx, params: types.SubscribeRequestParams) -> HandlerResult:
        await ctx.lifespan_context.subscribe(ctx, str(params.uri), caller_of(ctx))
        return {}

    async def unsubscribe(self, ctx: Ctx, params: types.UnsubscribeRequestParams) -> HandlerResult:
        ctx.lifespan_context.unsubscribe(ctx, str(params.uri))
        return {}

    async def listen(self, ctx: Ctx, params: types.SubscriptionsListenRequestParams) -> HandlerResult:
        return await ctx.lifespan_context.listen(ctx, params, caller_of(ctx))
