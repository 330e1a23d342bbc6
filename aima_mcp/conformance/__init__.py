"""The official conformance suite's fixtures beside the real units: `aima serve --conformance`, hidden, loopback only.

The suite calls tools, prompts and resources of fixed names. Here they stand in front of the server's own handlers: a fixture's name is
answered by the fixture, everything else by AIMA as it is. Nothing of this is imported without the flag.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import mcp_types as types
from mcp.server.context import HandlerResult, ServerRequestContext
from mcp.server.lowlevel import Server

from aima_mcp.conformance import asking, content, tasks, tools

Ctx = ServerRequestContext[Any, Any]
Handler = Callable[[Ctx, Any], Awaitable[HandlerResult]]
Answers = Callable[[Any], "Handler | None"]


def extend(server: Server[Any]) -> None:
    """Put the fixtures in front of a server's handlers."""
    fixtures = {**tools.TOOLS, **asking.TOOLS, **tasks.TOOLS}
    _add_to_list(server, "tools/list", "tools", [tools.listed(name) for name in fixtures])
    _add_to_list(server, "prompts/list", "prompts", content.PROMPTS)
    _add_to_list(server, "resources/list", "resources", content.RESOURCES)
    _add_to_list(server, "resources/templates/list", "resourceTemplates", content.TEMPLATES)
    _stand_before(server, "tools/call", lambda params: fixtures.get(params.name))
    _stand_before(server, "prompts/get", lambda params: content.prompt if params.name in content.NAMES else None)
    _stand_before(server, "resources/read", lambda params: content.read if content.has(str(params.uri)) else None)
    for method, own in (("tasks/get", tasks.get), ("tasks/update", tasks.update), ("tasks/cancel", tasks.cancel)):
        _stand_before(server, method, partial(_task, own))
    for method in ("resources/subscribe", "resources/unsubscribe"):
        _stand_before(server, method, lambda params: _nothing if str(params.uri).startswith("test://") else None)
    _stand_before(server, "completion/complete", lambda params: _no_values if getattr(params.ref, "name", None) in content.NAMES else None)
    server.add_request_handler("logging/setLevel", types.SetLevelRequestParams, _nothing)
    server.get_tool_input_schema = tools.HEADED.get


def _stand_before(server: Server[Any], method: str, fixture: Answers) -> None:
    entry = server.get_request_handler(method)
    assert entry is not None
    own = entry.handler

    async def answer(ctx: Ctx, params: Any) -> HandlerResult:
        return await (fixture(params) or own)(ctx, params)

    server.add_request_handler(method, entry.params_type, answer)


def _add_to_list(server: Server[Any], method: str, key: str, more: list[dict[str, Any]]) -> None:
    entry = server.get_request_handler(method)
    assert entry is not None
    own = entry.handler

    async def answer(ctx: Ctx, params: Any) -> HandlerResult:
        result = await own(ctx, params)
        assert isinstance(result, Mapping)
        return {**result, key: [*result[key], *more]}

    server.add_request_handler(method, entry.params_type, answer)


def _task(handler: Handler, params: Any) -> Handler | None:
    return handler if tasks.has(params.task_id) else None


async def _nothing(_ctx: Ctx, _params: Any) -> HandlerResult:
    return {}


async def _no_values(_ctx: Ctx, _params: Any) -> HandlerResult:
    return {"resultType": "complete", "completion": {"values": [], "total": 0, "hasMore": False}}
