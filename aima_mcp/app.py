"""Every face on one ASGI app: /mcp, /units, /resources, /events, /v1, /openapi.json, /health, /caller, /metrics and /shutdown."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from aima_lib import __version__
from aima_lib.door import AGENT, OWNER, Caller
from aima_lib.errors import AimaError, InvalidArgument, NotFound, Unavailable
from aima_lib.gateway import Gateway
from aima_lib.infra import trace
from aima_lib.services.oauth import Bearer
from aima_mcp.faces import http, openai, strict_json
from aima_mcp.faces.at_mcp import AtMcp
from aima_mcp.faces.http import metrics, negotiated, openapi, refuse_method
from aima_mcp.faces.http.entrance import METADATA, Entrance
from aima_mcp.faces.http.exchange import MIB, ClientLeft, Exchange, Fields
from aima_mcp.faces.http.problem import Refused, status_of

log = logging.getLogger(__name__)
GRACE_SECONDS = 0.6
Answer = Callable[[Exchange], Awaitable[None]]


class _Open:
    """A request under way: what ends it, and how far its reply is."""

    def __init__(self, send: Send, extra: Mapping[str, str], is_get: bool) -> None:
        self.scope = anyio.CancelScope()
        self.started = self.finished = self.endless = False
        self.caller: Caller | None = None
        self._send, self._is_get = send, is_get
        self._extra = _raw(extra)

    def extend(self, extra: Mapping[str, str]) -> None:
        """More headers for every reply."""
        self._extra += _raw(extra)

    async def send(self, message: Message) -> None:
        """Pass on what the face sends, with the headers every reply has, and remember how far it is."""
        if message["type"] == "http.response.start":
            self.started = True
            if self._is_get:
                self.endless = Headers(raw=message.get("headers", [])).get("content-type", "").startswith("text/event-stream")
            message = {**message, "headers": [*message.get("headers", []), *self._extra]}
        elif not message.get("more_body", False):
            self.finished = True
        await self._send(message)


class App:
    """The ASGI app of a host. `bound` is the address it listens on; `stop(stop_engines)` ends the process that serves it.

    conformance: with the official MCP suite's fixtures, and no key asked for at /mcp, since that suite has none.
    """

    def __init__(self, gateway: Gateway, bound: str, stop: Callable[[bool], None], *, conformance: bool = False) -> None:
        self._gateway, self._stop = gateway, stop
        self._keys, self._oauth = gateway.services.keys, gateway.services.oauth
        self._entrance = Entrance(self._keys, bound, gateway.services.config["server"], self._oauth)
        self._documents: dict[frozenset[str], bytes] = {}
        config = gateway.services.config
        self._kept_seconds = config["events"]["retention_days"] * 86_400
        self._mcp = AtMcp(gateway, config["mcp"]["profiles"], self._kept_seconds, self._keys.profile, _extend if conformance else None)
        self._keyless = conformance
        self._open: set[_Open] = set()
        self._closing = False
        self._quiet = anyio.Event()
        units = http.build(gateway)
        self._exact: dict[str, Answer] = {
            "/resources": units.resources,
            "/events": units.events,
            "/openapi.json": self._describe,
            "/caller": self._tell_caller,
            "/metrics": self._measure,
            "/shutdown": self._shut_down,
        }
        self._below: dict[str, Answer] = {"units": units.units, "v1": openai.build(gateway)}

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """What must run while requests are answered; a mounted app's own lifespan would not."""
        async with self._mcp.lifespan():
            yield

    async def close(self) -> None:
        """End what is open: endless streams now, calls after a short grace. Runs stay as they are, for the next host."""
        self._closing = True
        self._mcp.end_streams()
        for request in self._open:
            if request.endless:
                request.scope.cancel()
        if self._open:
            with anyio.move_on_after(GRACE_SECONDS):
                await self._quiet.wait()
        for request in self._open:
            request.scope.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            raise NotImplementedError(f"no {scope['type']} here")
        headers = Fields(scope)
        request = _Open(send, {"x-content-type-options": "nosniff"}, scope["method"] == "GET")
        self._open.add(request)
        try:
            with request.scope:
                await self._answer(scope, headers, receive, request)
        finally:
            self._open.discard(request)
            if self._closing and not self._open:
                self._quiet.set()
        if request.scope.cancelled_caught and not request.finished:
            gone = _ending() if self._closing or request.caller is None else self._entrance.ended(request.caller)
            await self._cut(scope, receive, request, gone)

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive, request: _Open) -> None:
        exchange = Exchange(scope, receive, request.send, headers)
        try:
            if self._closing:
                raise Refused(503, _ending(), {"connection": "close"})
            self._entrance.check(headers)
            request.extend(self._entrance.cross_origin(headers))
            if exchange.method == "OPTIONS" and "origin" in headers:
                await exchange.start(204, self._entrance.preflight(headers))
                await exchange.write(b"", more=False)
            elif exchange.path == "/health":
                refuse_method(exchange, "GET", "HEAD")
                await exchange.reply_json({"status": "ok", "version": __version__}, headers={"cache-control": "no-store"})
            elif self._oauth is not None and exchange.path in (METADATA, f"{METADATA}/mcp"):
                refuse_method(exchange, "GET", "HEAD")
                await exchange.reply_json(self._oauth.metadata(), headers={"cache-control": "max-age=300"})
            else:
                keyless = self._keyless and exchange.path == "/mcp"
                bearer = Bearer(OWNER, math.inf) if keyless else await self._entrance.caller(headers)
                at_mcp = exchange.path.split("/", 2)[1:2] == ["mcp"]
                caller = AGENT if bearer.caller == OWNER and at_mcp else bearer.caller
                scope.setdefault("state", {})["caller"] = request.caller = caller
                request.scope.deadline = bearer.deadline
                with self._keys.holding(caller, request.scope), trace.carried(trace.read(headers)):
                    await self._route(exchange, scope, receive, request.send)
        except ClientLeft:
            request.finished = True
        except Refused as refused:
            await _refuse(exchange, refused.error, refused.status, refused.headers)
        except AimaError as error:
            await _refuse(exchange, error, status_of(error), self._entrance.refusal(error, request.caller))

    async def _route(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        path = exchange.path
        first = path.split("/", 2)[1] if path.startswith("/") else ""
        if answer := self._exact.get(path) or self._below.get(first):
            await answer(exchange)
        elif first == "mcp":
            await self._mcp.asgi({**scope, "headers": _as_loopback(scope["headers"])}, receive, send)
        else:
            known = [*self._exact, "/units/{domain}/{action}", "/v1", "/mcp", "/mcp/{profile}", "/health"]
            raise NotFound(f"nothing at {path[:200]}", hint=f"there are: {', '.join(known)}")

    async def _describe(self, exchange: Exchange) -> None:
        refuse_method(exchange, "GET", "HEAD")
        negotiated(exchange, "application/json")
        scopes, issuer = exchange.caller.scopes, self._oauth.issuer if self._oauth else None
        if scopes not in self._documents:
            self._documents[scopes] = strict_json.write(openapi.document(self._gateway.registry, __version__, exchange.caller, issuer))
        await exchange.reply_tagged(self._documents[scopes], "application/json")

    async def _tell_caller(self, exchange: Exchange) -> None:
        refuse_method(exchange, "GET", "HEAD")
        negotiated(exchange, "application/json")
        caller = exchange.caller
        models = None if caller.models is None else sorted(caller.models)
        allowance = self._gateway.services.allowance
        said: dict[str, Any] = {"name": caller.name, "scopes": sorted(caller.scopes), "models": models}
        said |= {"limits": allowance.limits(caller.name), "usage": allowance.usage(caller.name)}
        said |= {"profile": self._keys.profile(caller), "runs_kept_seconds": self._kept_seconds}
        await exchange.reply_json(said, headers={"cache-control": "no-store"})

    async def _measure(self, exchange: Exchange) -> None:
        refuse_method(exchange, "GET", "HEAD")
        exchange.caller.need("read", "/metrics")
        negotiated(exchange, "text/plain")
        await exchange.reply(200, await metrics.text(self._gateway), metrics.MEDIA_TYPE)

    async def _shut_down(self, exchange: Exchange) -> None:
        refuse_method(exchange, "POST")
        exchange.caller.need("admin", "/shutdown")
        asked = await exchange.json(MIB)
        flag = asked.get("stop_engines", False) if isinstance(asked, dict) and set(asked) <= {"stop_engines"} else None
        if not isinstance(flag, bool):
            raise InvalidArgument("shutdown takes {stop_engines: true or false} and nothing else")
        await exchange.reply_json({"status": "stopping", "stop_engines": flag}, 202, {"connection": "close"})
        self._stop(flag)

    async def _cut(self, scope: Scope, receive: Receive, request: _Open, gone: AimaError) -> None:
        """The end of a request that the end of the host, or of its key, cut off: a reply when none was begun, else the end of its body."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(GRACE_SECONDS):
            exchange = Exchange(scope, receive, request.send)
            if not request.started:
                await _refuse(exchange, gone, gone.http_status, {"connection": "close"})
            else:
                await exchange.write(b"", more=False)


def _extend(server: Any) -> None:
    from aima_mcp.conformance import extend

    extend(server)


def _ending() -> AimaError:
    return Unavailable("the host is ending", hint="start it again; runs go on from where they were")


def _as_loopback(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Host and Origin have been judged by the address we listen on; the MCP face, which knows loopback only, need not judge again."""
    return [(b"host", b"localhost"), *((name, value) for name, value in headers if name not in (b"host", b"origin"))]


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]


async def _refuse(exchange: Exchange, error: AimaError, status: int, headers: Mapping[str, str]) -> None:
    if exchange.started:  # too late for a status: the connection ends instead
        log.error("%s %s failed after its reply had begun: %s%s", exchange.method, exchange.path, error, trace.words())
        raise error
    if exchange.path.startswith("/v1/"):
        await openai.reply_error(exchange, error, status, headers)
    else:
        await exchange.reply_problem(error, status, headers)
