"""The one door: what every face calls, whether the host is this process or another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from aima_lib.errors import PermissionDenied
from aima_lib.infra.progress import Send
from aima_lib.registry import Registry


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what they may do. `admin` implies every scope but `exec`; `models` narrows inference to these, None to all."""

    name: str
    scopes: frozenset[str]
    models: frozenset[str] | None = None

    def may(self, scope: str) -> bool:
        """Whether this caller holds the scope."""
        return scope in self.scopes or ("admin" in self.scopes and scope != "exec")

    def need(self, scope: str, what: str) -> None:
        """Raises PermissionDenied, which names the scope, unless this caller holds it."""
        if not self.may(scope):
            raise PermissionDenied(f"{self.name} may not use {what}", hint=f"it needs the scope {scope}", details={"scope": scope})


OWNER = Caller("owner", frozenset({"admin"}))
AGENT = Caller("mcp", frozenset({"admin"}))  # whoever comes over MCP with the owner's key: what is done then is not the owner's own doing


class Door(Protocol):
    """How units are reached. Gateway is the door of the process that hosts; Attached leads to another process's."""

    @property
    def registry(self) -> Registry:
        """What can be called."""
        ...

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        caller: Caller = OWNER,
        send: Send | None = None,
        key: str | None = None,
        token: str | None = None,
    ) -> Mapping[str, Any]:
        """Call one unit and return its output; of a durable unit, the output of its run, however long that takes.

        `send` gets each stream item before the result. `key` makes a durable call idempotent: same key and input, same run. `token` is
        that of the call's plan: it lets the call pass, once, as long as what it would change is what the plan said.

        Raises:
            ApprovalRequired: the policy wants a token; its details hold the plan, with one.
            AimaError: the unit does not exist, refused the caller or the arguments, or failed.
        """
        ...

    async def start(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        caller: Caller = OWNER,
        key: str | None = None,
        token: str | None = None,
    ) -> Mapping[str, Any]:
        """Start a durable unit and return its run at once.

        Raises:
            AimaError: as `call`, for what can be known before the run starts.
        """
        ...

    async def plan(self, name: str, arguments: Mapping[str, Any] | None = None, *, caller: Caller = OWNER) -> Mapping[str, Any]:
        """What a command would change, without doing it: types/plan.json, with the token that lets just this call pass.

        Raises:
            AimaError: as `call`, for what can be known before it is done.
        """
        ...

    async def read(self, uri: str, *, caller: Caller = OWNER) -> Mapping[str, Any]:
        """What is at a resource's URI now: {uri, mimeType, content}.

        Raises:
            NotFound: no resource has that URI.
        """
        ...

    def follow(self, after: int | None = None, types: Collection[str] = (), *, caller: Caller = OWNER) -> AsyncIterator[Mapping[str, Any]]:
        """Events (types/event.json) after number `after`, then live ones; from now on without it.

        Where the log has dropped what followed `after`, {type: lagged, payload: {after, first, last}} comes first. The `seq` of the last
        that came is where to go on, also with another host of the same home: then nothing comes twice, and nothing is left out.
        """
        ...
