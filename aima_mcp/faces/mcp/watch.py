"""Who watches which resource, in both eras of MCP, and the door's events turned into word of what changed.

Handshake sessions subscribe to one URI at a time and hear on their connection; 2026-07-28 clients keep a `subscriptions/listen`
stream. Both only ever hear that a URI changed, so a slow client costs others nothing: what it has not read yet is told once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from typing import Any, cast

import anyio
import mcp_types as types
from anyio.abc import TaskGroup
from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.session import ServerSession
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ResourceUpdated

from aima_lib.door import Caller, Door
from aima_lib.errors import AimaError, NotFound
from aima_lib.registry import Unit

RETRY_SECONDS = 1.0
log = logging.getLogger(__name__)


class Watch:
    """The subscriptions of one server: it follows the door's events from the first of them on."""

    def __init__(self, door: Door, caller: Caller, tasks: TaskGroup) -> None:
        self._door, self.caller, self._tasks = door, caller, tasks
        self._bus = InMemorySubscriptionBus()
        self._streams = ListenHandler(self._bus)
        self._listened: Counter[str] = Counter()
        self._sessions: dict[Connection, _Subscriber] = {}
        self._opening = anyio.Lock()
        self._follows = False

    async def listen(
        self, ctx: ServerRequestContext[Any, Any], params: types.SubscriptionsListenRequestParams, caller: Caller
    ) -> types.SubscriptionsListenResult:
        """Serve one 2026-07-28 stream of changes until its client leaves."""
        uris = params.notifications.resource_subscriptions or []
        for uri in uris:
            self._allow(uri, caller, must_exist=False)
        self._listened.update(uris)
        try:
            await self._follow_from_now()
            return await self._streams(ctx, params)
        finally:
            self._listened.subtract(uris)
            self._listened += Counter()  # drop those nobody listens to any more

    async def subscribe(self, ctx: ServerRequestContext[Any, Any], uri: str, caller: Caller) -> None:
        """Tell a handshake session each time `uri` changes.

        Raises:
            NotFound: no resource has that URI.
        """
        self._allow(uri, caller, must_exist=True)
        # The SDK gives handlers no public way to their connection, whose exit stack is where it wants clean-up registered.
        connection = ctx.session._connection
        subscriber = self._sessions.get(connection)
        if subscriber is None:
            subscriber = self._sessions[connection] = _Subscriber(ctx.session)
            connection.exit_stack.callback(self._forget, connection)
            self._tasks.start_soon(subscriber.run)
        subscriber.uris.add(uri)
        await self._follow_from_now()

    def unsubscribe(self, ctx: ServerRequestContext[Any, Any], uri: str) -> None:
        """Stop telling a handshake session about `uri`."""
        if subscriber := self._sessions.get(ctx.session._connection):
            subscriber.uris.discard(uri)

    def close(self) -> None:
        """End every listen stream, with its result."""
        self._streams.close()

    def _forget(self, connection: Connection) -> None:
        self._sessions.pop(connection).scope.cancel()

    def _allow(self, uri: str, caller: Caller, *, must_exist: bool) -> None:
        found = self._door.registry.resource(uri)
        if found is None and must_exist:
            raise NotFound(f"no resource at {uri!r}", hint="resources/list and resources/templates/list name them")
        if found is not None:
            caller.need(found[0].definition["scope"], uri)

    async def _follow_from_now(self) -> None:
        async with self._opening:
            if not self._follows:
                newest = await self._door.call("event.list", {"limit": 1})
                self._tasks.start_soon(self._follow, newest["last"])
                self._follows = True

    async def _follow(self, cursor: int) -> None:
        while True:
            try:
                events = cast(AsyncGenerator[Mapping[str, Any], None], self._door.follow(cursor))
                async with aclosing(events):
                    async for event in events:
                        cursor = event["seq"]
                        await self._tell(event)
            except AimaError as error:
                log.warning("events cannot be followed: %s", error)
            await anyio.sleep(RETRY_SECONDS)  # a host that was away, or a backlog: the cursor says where to go on

    async def _tell(self, event: Mapping[str, Any]) -> None:
        for uri in self._watched():
            found = self._door.registry.resource(uri)
            if found is None or not concerns(*found, event):
                continue
            for subscriber in self._sessions.values():
                subscriber.tell(uri)
            await self._bus.publish(ResourceUpdated(uri))

    def _watched(self) -> Collection[str]:
        return set(self._listened).union(*(subscriber.uris for subscriber in self._sessions.values()))


def concerns(resource: Unit, variables: Mapping[str, str], event: Mapping[str, Any]) -> bool:
    """Whether `event` may have changed the resource at these variables. In doubt it has: reading again costs little."""
    causes = resource.definition["updatedBy"]
    if event["type"] == "lagged":  # what happened is lost
        return True
    if "*" not in causes and event["type"] not in causes:
        return False
    domain = event["type"].partition(".")[0]
    for name, value in variables.items():
        told = event["payload"].get(name)
        if told is None and name == f"{domain}_id":
            told = event["subject"]
        if told is not None and told != value:
            return False
    return True


class _Subscriber:
    """One handshake session: what it watches, and what it has yet to hear."""

    def __init__(self, session: ServerSession) -> None:
        self._session = session
        self.uris: set[str] = set()
        self.scope = anyio.CancelScope()
        self._news: dict[str, None] = {}
        self._wake = anyio.Event()

    def tell(self, uri: str) -> None:
        if uri in self.uris:
            self._news[uri] = None
            self._wake.set()

    async def run(self) -> None:
        with self.scope:
            while True:
                await self._wake.wait()
                self._wake = anyio.Event()
                news, self._news = self._news, {}
                for uri in news:
                    await self._session.send_resource_updated(uri)
