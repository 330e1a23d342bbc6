"""Ways to watch a resource, made alike: open, then `update` returns once word of a change has come."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import anyio
import httpx
import httpx2
from anyio.from_thread import BlockingPortal
from mcp import types
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from tests.world import HostProcess

SECONDS = 30


class HttpWatch:
    """GET /resources?uri= as an event stream: the content at once, and again after each change."""

    def __init__(self, stack: ExitStack, client: httpx.Client, uri: str) -> None:
        stream = client.stream("GET", "/resources", params={"uri": uri}, headers={"Accept": "text/event-stream"}, timeout=SECONDS)
        response = stack.enter_context(stream)
        assert response.status_code == 200, response.read()
        self._events = sse(response)
        self.first = self.update()

    def update(self) -> Any:
        kind, data = next(self._events)
        assert kind == "resource", (kind, data)
        return data


def sse(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    """(event, data) of a stream of server-sent events. Heartbeats do not make a silence shorter."""
    kind, end = "message", time.monotonic() + SECONDS
    for line in response.iter_lines():
        assert time.monotonic() < end, "nothing but heartbeats came"
        field, _, value = line.partition(": ")
        if field == "event":
            kind = value
        elif field == "data":
            yield kind, value if value == "[DONE]" else json.loads(value)
            end = time.monotonic() + SECONDS
        elif not line:
            kind = "message"


class ListenWatch:
    """subscriptions/listen, as 2026-07-28 has it."""

    def __init__(self, stack: ExitStack, portal: BlockingPortal, client: Client, uri: str) -> None:
        async def opened() -> Any:
            return client.listen(resource_subscriptions=[uri])

        self._portal = portal
        self._subscription = stack.enter_context(portal.wrap_async_context_manager(portal.call(opened)))
        self._uri = uri

    def update(self) -> None:
        async def news() -> Any:
            with anyio.fail_after(SECONDS):
                return await anext(aiter(self._subscription))

        assert self._portal.call(news).uri == self._uri


class SubscribeWatch:
    """resources/subscribe and the notifications of a handshake session."""

    def __init__(self, stack: ExitStack, portal: BlockingPortal, host: HostProcess) -> None:
        self._told: queue.Queue[str] = queue.Queue()
        self._portal = portal

        async def hear(message: Any) -> None:
            if isinstance(message, types.ResourceUpdatedNotification):
                self._told.put(str(message.params.uri))

        async def made() -> tuple[httpx2.AsyncClient, Any]:
            return httpx2.AsyncClient(headers=host.headers, timeout=120, trust_env=False), None

        http, _ = portal.call(made)
        stack.enter_context(portal.wrap_async_context_manager(http))

        async def connected() -> Client:
            return Client(streamable_http_client(f"{host.url}/mcp", http_client=http), mode="legacy", message_handler=hear)

        self.client = stack.enter_context(portal.wrap_async_context_manager(portal.call(connected)))

    def subscribe(self, uri: str) -> None:
        """Watch this one too."""
        self._portal.call(partial(self.client.session.subscribe_resource, uri))

    def unsubscribe(self, uri: str) -> None:
        """Watch it no more, and forget what was told."""
        self._portal.call(partial(self.client.session.unsubscribe_resource, uri))
        while not self._told.empty():
            self._told.get()

    def told(self) -> str:
        """The next URI that is said to have changed."""
        return self._told.get(timeout=SECONDS)

    def update(self, uri: str) -> None:
        assert self.told() == uri
