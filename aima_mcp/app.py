"""Every face on one ASGI app: /mcp, /units, /resources, /events, /v1, /openapi.json, /health, /caller, /metrics and /shutdown."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
from starlette.types import Receive, Scope, Send

from aima_lib import __version__
from aima_lib.door import AGENT, OWNER
from aima_lib.errors import AimaError, InvalidArgument, NotFound, Unavailable
from aima_lib.gateway import Gateway
from aima_lib.infra import trace
from aima_mcp.faces import http, openai, strict_json
from aima_mcp.faces.at_mcp import AtMcp
from aima_mcp.faces.http import metrics, negotiated, openapi, refuse_method
from aima_mcp.faces.http.entrance import METADATA, Entrance
from aima_mcp.faces.http.exchange import MIB, NOBODY, ClientLeft, Cut, Exchange
from aima_mcp.faces.http.problem import Refused, status_of

log = logging.getLogger(__name__)
GRACE_SECONDS = 0.6
Answer = Callable[[Exchange], Awaitable[None]]


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
        self._open: set[Exchange] = set()
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
        self._below: dict[str, Answer] = {"units": units.units, "mcp": self._speak_mcp}
        self._openai = openai.build(gateway)

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """What must run while requests are answered; a mounted app's own lifespan would not."""
        async with self._mcp.lifespan():
            yield

    async def close(self) -> None:
        """End what is open: endless streams now, calls after a short grace. Runs stay as they are, for the next host."""
        self._closing = True
        self._mcp.end_streams()
        for exchange in list(self._open):
            if exchange.endless:
                exchange.cancel()
        if self._open:
            with anyio.move_on_after(GRACE_SECONDS):
                await self._quiet.wait()
        for exchange in list(self._open):
            exchange.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            raise NotImplementedError(f"no {scope['type']} here")
        exchange = Exchange(scope, receive, send)
        self._open.add(exchange)
        try:
            await self._answer(exchange)
        except (Cut, ClientLeft):
            pass
        except asyncio.CancelledError:
            if not exchange.is_cut:
                raise
        finally:
            self._open.discard(exchange)
            if self._closing and not self._open:
                self._quiet.set()
        if exchange.is_cut and not (exchange.finished or exchange.has_left):
            await self._cut(exchange)

    async def _answer(self, exchange: Exchange) -> None:
        try:
            if self._closing:
                raise Refused(503, _ending(), {"connection": "close"})
            visit = self._entrance.known(exchange)
            if visit is None:
                exchange.extra = self._entrance.check(exchange.headers)
                if await self._welcome(exchange):
                    return
                visit = await self._entrance.visit(exchange, keyless=self._keyless and exchange.path == "/mcp")
            exchange.caller, exchange.extra, exchange.is_json = visit.caller, visit.extra, visit.is_json
            trace.enter(visit.trace)
            with self._keys.holding(visit.caller, exchange):
                if visit.deadline == math.inf:
                    await self._route(exchange)
                    return
                timer = asyncio.get_running_loop().call_at(visit.deadline, exchange.cancel)
                try:
                    await self._route(exchange)
                finally:
                    timer.cancel()
        except Refused as refused:
            await _refuse(exchange, refused.error, refused.status, refused.headers)
        except AimaError as error:
            await _refuse(exchange, error, status_of(error), self._entrance.refusal(error, exchange.caller))

    async def _welcome(self, exchange: Exchange) -> bool:
        """Answer what needs no key; whether this was such."""
        if exchange.method == "OPTIONS" and "origin" in exchange.headers:
            await exchange.start(204, self._entrance.preflight(exchange.headers))
            await exchange.write(b"", more=False)
        elif exchange.path == "/health":
            refuse_method(exchange, "GET", "HEAD")
            await exchange.reply_json({"status": "ok", "version": __version__}, headers={"cache-control": "no-store"})
        elif self._oauth is not None and exchange.path in (METADATA, f"{METADATA}/mcp"):
            refuse_method(exchange, "GET", "HEAD")
            await exchange.reply_json(self._oauth.metadata(), headers={"cache-control": "max-age=300"})
        else:
            return False
        return True

    async def _route(self, exchange: Exchange) -> None:
        path = exchange.path
        first = path.split("/", 2)[1] if path.startswith("/") else ""
        if first == "v1":  # shields itself where it must: what asks an engine holds no shield
            await self._openai(exchange)
        elif answer := self._exact.get(path) or self._below.get(first):
            with exchange.shielding():
                await answer(exchange)
        else:
            known = [*self._exact, "/units/{domain}/{action}", "/v1", "/mcp", "/mcp/{profile}", "/health"]
            raise NotFound(f"nothing at {path[:200]}", hint=f"there are: {', '.join(known)}")

    async def _speak_mcp(self, exchange: Exchange) -> None:
        caller = AGENT if exchange.caller == OWNER else exchange.caller
        scope = {**exchange.scope, "headers": _as_loopback(exchange.scope["headers"]), "state": {"caller": caller}}
        await self._mcp.asgi(scope, exchange.receive, exchange.send)

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

    async def _cut(self, exchange: Exchange) -> None:
        """The end of a request that the end of the host, or of its key, cut off: a reply when none was begun, else the end of its body."""
        gone = _ending() if self._closing or exchange.caller is NOBODY else self._entrance.ended(exchange.caller)
        with anyio.CancelScope(shield=True), anyio.move_on_after(GRACE_SECONDS):
            if not exchange.started:
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


async def _refuse(exchange: Exchange, error: AimaError, status: int, headers: Mapping[str, str]) -> None:
    if exchange.started:  # too late for a status: the connection ends instead
        log.error("%s %s failed after its reply had begun: %s%s", exchange.method, exchange.path, error, trace.words())
        raise error
    if exchange.path.startswith("/v1/"):
        await openai.reply_error(exchange, error, status, headers)
    else:
        await exchange.reply_problem(error, status, headers)
