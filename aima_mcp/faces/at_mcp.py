"""What answers at /mcp. It is loaded with the first request there: the SDK takes longer to import than all the rest of a host,
and most hosts are never asked over it (`aima mcp` speaks MCP itself and asks its host as every client does)."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
from starlette.types import Receive, Scope, Send

from aima_lib.door import Caller, Door
from aima_mcp.faces.profiles import Own, profiles

if TYPE_CHECKING:
    from aima_mcp.faces.mcp import McpPaths


class AtMcp:
    """McpPaths, as soon as somebody asks. `extend` is given each of its servers.

    Raises:
        InvalidArgument: one of `own` names what does not exist.
    """

    def __init__(
        self,
        door: Door,
        own: Own,
        kept_seconds: float,
        profile_of: Callable[[Caller], str | None],
        extend: Callable[[Any], None] | None = None,
    ) -> None:
        profiles(door.registry, own)
        self._of = door, own, kept_seconds, profile_of
        self._asked, self._loaded, self._extend = anyio.Event(), anyio.Event(), extend
        self._paths: McpPaths | None = None

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Keeps the sessions. A session lives in the task that began it, so nothing of this is done by a request."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep)
            yield
            tasks.cancel_scope.cancel()

    async def asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As McpPaths's."""
        if self._paths is None:
            self._asked.set()
            await self._loaded.wait()
        assert self._paths is not None
        await self._paths.asgi(scope, receive, send)

    def end_streams(self) -> None:
        """As McpFace's."""
        if self._paths is not None:
            self._paths.end_streams()

    async def _keep(self) -> None:
        await self._asked.wait()
        face = await anyio.to_thread.run_sync(_imported)  # other requests are answered meanwhile
        paths = face(*self._of)
        if self._extend is not None:
            for server in paths.servers:
                self._extend(server)
        gc.freeze()  # as at the start of the host: this too lives to the end
        async with paths.lifespan():
            self._paths = paths
            self._loaded.set()
            await anyio.sleep_forever()


def _imported() -> type[McpPaths]:
    from aima_mcp.faces.mcp import McpPaths

    return McpPaths
