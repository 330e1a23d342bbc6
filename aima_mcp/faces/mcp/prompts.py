"""MCP prompts: texts that send an agent off with a task, each a Markdown file beside its definition."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import mcp_types as types
from mcp.server.context import HandlerResult
from mcp.server.lowlevel import Server

from aima_lib.door import Door
from aima_lib.errors import InvalidArgument, NotFound
from aima_lib.names import did_you_mean, nearest
from aima_lib.registry import Unit
from aima_mcp.faces.mcp.edge import Ctx, refuse_cursor
from aima_mcp.faces.mcp.icons import icons
from aima_mcp.faces.mcp.outside import clean_text
from aima_mcp.faces.mcp.results import COMPLETE
from aima_mcp.faces.mcp.watch import Watch

LONGEST = 2_000
_BLANK = re.compile(r"\{([a-z_]+)\}")
_SHOWN = ("name", "description", "required")


class Prompts:
    """The prompts of the registry, by what they do: `prompt.diagnose` is `diagnose` on the wire, which no tool can be called."""

    def __init__(self, door: Door) -> None:
        self._prompts = {unit.action: unit for unit in sorted(door.registry.of("prompt"), key=lambda unit: unit.name)}

    def register(self, server: Server[Watch]) -> None:
        """Let the server answer for them."""
        server.add_request_handler("prompts/list", types.PaginatedRequestParams, self.list)
        server.add_request_handler("prompts/get", types.GetPromptRequestParams, self.get)

    async def list(self, _ctx: Ctx, params: types.PaginatedRequestParams) -> HandlerResult:
        refuse_cursor(params)
        return {**COMPLETE, "prompts": [_shown(unit) for unit in self._prompts.values()]}

    async def get(self, _ctx: Ctx, params: types.GetPromptRequestParams) -> HandlerResult:
        unit = self.find(params.name)
        content = {"type": "text", "text": text_of(unit, params.arguments or {})}
        return {**COMPLETE, "description": unit.definition["description"], "messages": [{"role": "user", "content": content}]}

    def find(self, name: str) -> Unit:
        """The prompt called `name`. Raises NotFound naming the nearest."""
        if unit := self._prompts.get(name):
            return unit
        hint = did_you_mean(name, self._prompts) or f"there are: {', '.join(self._prompts)}"
        raise NotFound(f"no prompt called {name!r}", hint=hint, details={"nearest": nearest(name, self._prompts)})


def text_of(unit: Unit, arguments: Mapping[str, str]) -> str:
    """The prompt's text with its blanks filled in, once: what an argument holds is not looked into.

    Raises:
        InvalidArgument: an argument is missing, too long, or not one of the prompt's.
    """
    known = {argument["name"]: argument for argument in unit.definition["arguments"]}
    for name, value in arguments.items():
        if name not in known:
            raise InvalidArgument(f"{unit.action} takes no {name!r}", hint=did_you_mean(name, known) or f"it takes: {', '.join(known)}")
        if len(value) > LONGEST:
            raise InvalidArgument(f"{name} has {len(value)} characters; {LONGEST} is the limit")
    for name, argument in known.items():
        if "default" not in argument and not clean_text(arguments.get(name, "")).strip():
            raise InvalidArgument(f"{unit.action} needs {name!r}", hint=argument["description"])
    given = {name: clean_text(arguments.get(name, "")).strip() or known[name].get("default", "") for name in known}
    return _BLANK.sub(lambda blank: given[blank[1]], unit.definition["text"])


def _shown(unit: Unit) -> dict[str, Any]:
    arguments = [{key: argument[key] for key in _SHOWN if key in argument} for argument in unit.definition["arguments"]]
    said = {key: unit.definition[key] for key in ("title", "description")}
    return {"name": unit.action, **said, "arguments": arguments, "icons": icons(unit.domain)}
