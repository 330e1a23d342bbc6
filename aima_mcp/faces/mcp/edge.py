"""What every MCP handler shares: its context, who calls, and how an error leaves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any, cast

import mcp_types as types
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from aima_lib.door import Caller
from aima_lib.errors import AimaError, Internal, InvalidArgument, NotFound
from aima_lib.infra import trace
from aima_mcp.faces.mcp.watch import Watch

HANDSHAKE_NOT_FOUND = -32002
NOBODY = Caller("nobody", frozenset())
Ctx = ServerRequestContext[Watch, Any]
log = logging.getLogger(__name__)


class Edge:
    """What leaves a handler as an exception reaches the client as a protocol error, and never with text from inside."""

    def __init__(self, ctx: ServerRequestContext[Any, Any]) -> None:
        self._ctx = ctx

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None) -> None:
        if not isinstance(error, Exception) or isinstance(error, MCPError):
            return
        if isinstance(error, ValidationError):  # pydantic's own words quote what was sent
            wrong = error.errors(include_input=False, include_url=False, include_context=False)
            places = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in wrong[:3]]
            error = InvalidArgument(f"{self._ctx.method}: {'; '.join(places)}")
        if not isinstance(error, AimaError):
            log.error("%s failed%s", self._ctx.method, trace.words(), exc_info=error)
            error = Internal(f"{self._ctx.method} failed", hint="this is a bug in AIMA; its log has the trace")
        raise MCPError(self._code(error), str(error), error.as_dict() | self._place()) from None

    def _place(self) -> dict[str, Any]:
        """The URI that could not be read: the protocol wants it in the error's data."""
        uri = (self._ctx.params or {}).get("uri")
        return {"uri": uri} if self._ctx.method == "resources/read" and isinstance(uri, str) else {}

    def _code(self, error: AimaError) -> int:
        resource = self._ctx.method.startswith("resources/")
        if isinstance(error, NotFound) and resource and self._ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            return HANDSHAKE_NOT_FOUND
        return types.INVALID_PARAMS if isinstance(error, NotFound | InvalidArgument) else types.INTERNAL_ERROR


async def boundary(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """The outermost middleware. The trace is that of the request's `_meta`, else that of the headers it came with."""
    context = trace.read(cast(Mapping[str, Any], ctx.meta or {}))
    if not context and ctx.request is not None:
        context = trace.read(ctx.request.headers)
    with trace.carried(context), Edge(ctx):
        return await call_next(ctx)


def caller_of(ctx: Ctx) -> Caller:
    """Over HTTP whom the application's key check found; over stdio whom the door takes this process for."""
    if ctx.request is None:
        return ctx.lifespan_context.caller
    found = ctx.request.scope.get("state", {}).get("caller")
    return found if isinstance(found, Caller) else NOBODY


def refuse_cursor(params: types.PaginatedRequestParams) -> None:
    """Lists are one page, so there is nothing to go on with."""
    if params.cursor is not None:
        raise InvalidArgument(f"there is no page {params.cursor!r}: the list is one page", hint="leave cursor out")
