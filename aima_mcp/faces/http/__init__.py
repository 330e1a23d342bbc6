"""The HTTP face: every unit at /units/{domain}/{action}, resources at /resources, events at /events. Knows no unit by name."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from typing import Any

from aima_lib.errors import AimaError, InvalidArgument, NotFound
from aima_lib.gateway import Gateway
from aima_lib.registry import Unit
from aima_lib.runs import shown as told
from aima_mcp.faces import strict_json
from aima_mcp.faces.http import query, sse
from aima_mcp.faces.http.exchange import MIB, Exchange, accepted
from aima_mcp.faces.http.problem import Refused
from aima_mcp.faces.http.sse import EventStream

BODY_LIMIT = 4 * MIB
LONGEST_KEY = 255
JSON, BYTES = "application/json", "application/octet-stream"
READS = ("GET", "HEAD")
ATTACHED = {"content-disposition": "attachment"}  # whatever its maker says it is, no browser shall show it as a page of ours
NO_STORE = {"cache-control": "no-store"}


def build(gateway: Gateway) -> HttpFace:
    """The face over this host."""
    return HttpFace(gateway)


class HttpFace:
    """Answers /units/…, /resources and /events. Raises AimaError and Refused; the app turns them into problems."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._frames = sse.Frames()
        self._units = {f"/units/{unit.domain}/{unit.action}": unit for unit in gateway.registry.of("command", "query")}

    async def units(self, exchange: Exchange) -> None:
        """Call a unit: POST with JSON, or GET with a query string where the unit is a query."""
        unit = self._units.get(exchange.path) or self._gateway.find(_name(exchange.path))
        allowed = ("POST",) if unit.kind == "command" else ("POST", *READS)
        refuse_method(exchange, *allowed)
        kind = negotiated(exchange, JSON, sse.MEDIA_TYPE)
        if exchange.method in READS:
            arguments: Any = query.arguments(unit.definition["inputSchema"], exchange.query.multi_items())
        else:
            arguments = await exchange.json(BODY_LIMIT)
        key, token = _printable(exchange, "Idempotency-Key"), _printable(exchange, "Aima-Token")
        if _wants_plan(exchange):
            plan = await exchange.while_connected(lambda: self._gateway.plan(unit.name, arguments, caller=exchange.caller))
            await exchange.reply_json(plan, headers=NO_STORE)
        elif unit.durable and _prefers_async(exchange):
            await self._start(exchange, unit, arguments, key, token)
        elif kind == sse.MEDIA_TYPE and exchange.method != "HEAD":
            await self._stream(exchange, unit, arguments, key, token)
        else:
            result = await exchange.while_connected(
                lambda: self._gateway.call(unit.name, arguments, caller=exchange.caller, key=key, token=token)
            )
            await exchange.reply_json(result, headers=NO_STORE)

    async def resources(self, exchange: Exchange) -> None:
        """Read a resource, or watch it; without ?uri=, what resources there are."""
        refuse_method(exchange, *READS)
        uris = exchange.query.getlist("uri")
        if len(uris) > 1 or set(exchange.query) - {"uri"}:
            raise InvalidArgument("/resources takes one uri and nothing else", hint="GET /resources?uri=aima://devices")
        if not uris:
            negotiated(exchange, JSON)
            seen = [unit for unit in self._gateway.registry.of("resource") if exchange.caller.may(unit.definition["scope"])]
            await exchange.reply_json({"resources": [_shown(unit) for unit in seen]})
            return
        known = self._gateway.registry.resource(uris[0])
        offers = (JSON, BYTES, sse.MEDIA_TYPE) if known and known[0].holds_file else (JSON, sse.MEDIA_TYPE)
        kind = negotiated(exchange, *offers)
        if kind == sse.MEDIA_TYPE and exchange.method != "HEAD":
            await self._watch(exchange, uris[0])
            return
        found = await exchange.while_connected(lambda: self._gateway.read(uris[0], caller=exchange.caller))
        if kind == BYTES:
            content = found["content"]
            await exchange.reply_tagged(base64.b64decode(content["content"]), content["media_type"], ATTACHED)
        else:
            await exchange.reply_tagged(strict_json.write(found["content"]), JSON if known and known[0].holds_file else found["mimeType"])

    async def events(self, exchange: Exchange) -> None:
        """Follow events."""
        refuse_method(exchange, *READS)
        negotiated(exchange, sse.MEDIA_TYPE)
        if unknown := set(exchange.query) - {"after", "types"}:
            raise InvalidArgument(f"/events does not take {', '.join(sorted(unknown))}", hint="it takes: after, types")
        types = [name for text in exchange.query.getlist("types") for name in text.split(",") if name]
        after = _cursor(exchange)
        if after is None:
            after = self._gateway.services.events.last
        following = self._gateway.pages(after, types, caller=exchange.caller)
        stream = EventStream(exchange)

        async def follow() -> None:
            await stream.open(after)
            async for page in following:
                await stream.write([self._frames.of(event) for event in page])

        if exchange.method == "HEAD":
            await stream.close()
            return
        await exchange.while_connected(follow, stream.beat)
        await stream.close()

    async def _start(self, exchange: Exchange, unit: Unit, arguments: Any, key: str | None, token: str | None) -> None:
        run = await self._gateway.start(unit.name, arguments, caller=exchange.caller, key=key, token=token)
        shown = {"run": told(run)}
        headers = {"location": f"/units/run/get?run_id={run['id']}", "preference-applied": "respond-async"}
        await exchange.reply_json(shown, 202, headers)

    async def _stream(self, exchange: Exchange, unit: Unit, arguments: Any, key: str | None, token: str | None) -> None:
        stream = EventStream(exchange)

        async def item(value: Mapping[str, Any]) -> None:
            await stream.event("item", value)

        async def call() -> None:
            try:
                result = await self._gateway.call(unit.name, arguments, caller=exchange.caller, send=item, key=key, token=token)
            except AimaError as error:
                if not exchange.started:  # still time to say it with a status
                    raise
                await stream.event("error", error.as_dict())
            else:
                await stream.event("result", result)

        await exchange.while_connected(call, stream.beat)
        await stream.close()

    async def _watch(self, exchange: Exchange, uri: str) -> None:
        caller, stream = exchange.caller, EventStream(exchange)
        cursor = self._gateway.services.events.last
        first = await self._gateway.read(uri, caller=caller)
        found = self._gateway.registry.resource(uri)
        assert found is not None
        causes = found[0].definition["updatedBy"]

        async def watch() -> None:
            nonlocal cursor
            await stream.event("resource", first["content"], cursor)
            while True:  # once more after `lagged`: reading again makes up for whatever was missed
                async for event in self._gateway.follow(cursor, _types(causes), caller=caller):
                    cursor = event["seq"]
                    try:
                        now = await self._gateway.read(uri, caller=caller, again=True)
                    except AimaError as error:
                        await stream.event("error", error.as_dict())
                        return
                    await stream.event("resource", now["content"], cursor)

        await exchange.while_connected(watch, stream.beat)
        await stream.close()


def refuse_method(exchange: Exchange, *allowed: str) -> None:
    """Raises Refused (405) unless the method is one of these."""
    if exchange.method not in allowed:
        hint = f"use {' or '.join(allowed)}"
        raise Refused(405, InvalidArgument(f"{exchange.path} does not take {exchange.method}", hint=hint), {"allow": ", ".join(allowed)})


def negotiated(exchange: Exchange, *offers: str) -> str:
    """The offer the client likes best. Raises Refused (406) when it likes none."""
    chosen = accepted(exchange.headers.get("accept"), *offers)
    if chosen is None:
        raise Refused(406, InvalidArgument(f"{exchange.path} answers with {' or '.join(offers)} only"))
    return chosen


def _name(path: str) -> str:
    domain, _, action = path.removeprefix("/units").strip("/").partition("/")
    if not action or "/" in action:
        raise NotFound(f"nothing at {path[:200]}", hint="a unit is at /units/{domain}/{action}; /openapi.json lists them")
    return f"{domain}.{action}"


def _types(causes: Collection[str]) -> Collection[str]:
    return () if "*" in causes else causes


def _shown(unit: Unit) -> dict[str, Any]:
    return {key: unit.definition[key] for key in ("name", "title", "description", "uriTemplate", "mimeType")}


def _printable(exchange: Exchange, header: str) -> str | None:
    value = exchange.headers.get(header)
    if value is not None and not (0 < len(value) <= LONGEST_KEY and value.isascii() and value.isprintable()):
        raise InvalidArgument(f"{header} has 1 to {LONGEST_KEY} printable ASCII characters")
    return value


def _wants_plan(exchange: Exchange) -> bool:
    said = exchange.headers.get("aima-plan")
    if said not in (None, "true", "false"):
        raise InvalidArgument(f"Aima-Plan: {said[:80]!r} is neither true nor false")
    return said == "true"


def _prefers_async(exchange: Exchange) -> bool:
    wishes = ",".join(exchange.headers.getlist("prefer"))
    return any(wish.partition(";")[0].strip().lower() == "respond-async" for wish in wishes.split(","))


def _cursor(exchange: Exchange) -> int | None:
    """Where to go on from: Last-Event-ID, which a client sends when it comes back to the same URL, before ?after=."""
    text = exchange.headers.get("last-event-id") or exchange.query.get("after")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InvalidArgument(f"after: {text[:80]!r} is not the number of an event")
    return int(text)
