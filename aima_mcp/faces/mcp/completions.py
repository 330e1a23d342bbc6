"""MCP completions: what an argument of a prompt, or a variable of a resource's URI, may be, from what lives now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mcp_types as types
from mcp.server.context import HandlerResult
from mcp.server.lowlevel import Server

from aima_lib.door import Caller, Door
from aima_lib.errors import InvalidArgument, NotFound, PermissionDenied
from aima_lib.names import did_you_mean
from aima_mcp.faces.mcp.edge import Ctx, caller_of
from aima_mcp.faces.mcp.prompts import Prompts
from aima_mcp.faces.mcp.results import COMPLETE
from aima_mcp.faces.mcp.watch import Watch

MOST = 100  # as the protocol says
UNITS = "unit"


class Completions:
    """Values from the units that a definition names under `completes`, asked as the caller."""

    def __init__(self, door: Door, prompts: Prompts) -> None:
        self._door, self._prompts = door, prompts
        resources = (unit for unit in door.registry.of("resource") if "{" in unit.definition["uriTemplate"])
        self._resources = {unit.definition["uriTemplate"]: unit for unit in resources}

    def register(self, server: Server[Watch]) -> None:
        """Let the server answer for them."""
        server.add_request_handler("completion/complete", types.CompleteRequestParams, self.complete)

    async def complete(self, ctx: Ctx, params: types.CompleteRequestParams) -> HandlerResult:
        found: dict[str, None] = {}
        for source in self._sources(params.ref, params.argument.name):
            found.update(dict.fromkeys(await self._values(source, caller_of(ctx))))
        return {**COMPLETE, "completion": fitting(list(found), params.argument.value)}

    def _sources(self, ref: types.PromptReference | types.ResourceTemplateReference, name: str) -> list[str]:
        if isinstance(ref, types.PromptReference):
            arguments = self._prompts.find(ref.name).definition["arguments"]
            known: Mapping[str, list[str]] = {argument["name"]: argument.get("completes", []) for argument in arguments}
        else:
            unit = self._resources.get(ref.uri)
            if unit is None:
                raise NotFound(f"no resource template {ref.uri!r}", hint=did_you_mean(ref.uri, self._resources))
            known = unit.definition.get("completes", {})
        if name not in known:
            raise InvalidArgument(f"there is no argument {name!r} to complete", hint=f"there are: {', '.join(known) or 'none'}")
        return known[name]

    async def _values(self, source: str, caller: Caller) -> list[str]:
        """The ids, or names, in what a unit lists; nothing where the caller may not look."""
        registry = self._door.registry
        if source == UNITS:
            return sorted(unit.name for unit in registry.of("command", "query"))
        try:
            output = await self._door.call(source, {}, caller=caller)
        except PermissionDenied:
            return []
        items: list[Mapping[str, Any]] = output[registry[source].definition["primary"]]
        return [str(item["id"] if "id" in item else item["name"]) for item in items]


def fitting(values: Sequence[str], typed: str) -> dict[str, Any]:
    """The values that hold what was typed, those that begin with it first; as many as the protocol lets through."""
    typed = typed.lower()
    found = [value for value in values if value.lower().startswith(typed)]
    found += [value for value in values if typed in value.lower() and value not in found]
    return {"values": found[:MOST], "total": len(found), "hasMore": len(found) > MOST}
