"""OpenAI's and Anthropic's APIs over the models served here. An engine's answer passes through as it comes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from aima_lib.door import Caller
from aima_lib.errors import AimaError, FailedPrecondition, NotFound, Unavailable
from aima_lib.gateway import Gateway
from aima_lib.infra import clock
from aima_lib.infra.pool import Line, Lost
from aima_lib.registry import Unit
from aima_lib.services.allowance import Charge
from aima_lib.services.answer import Answer
from aima_lib.services.routes import Endpoint
from aima_lib.services.wire import translated
from aima_mcp.faces import strict_json
from aima_mcp.faces.http import refuse_method
from aima_mcp.faces.http.exchange import MIB, Exchange
from aima_mcp.faces.http.problem import Refused
from aima_mcp.faces.openai import media, shapes
from aima_mcp.faces.openai.asked import Wrong, checked
from aima_mcp.faces.openai.relay import Passing, PassingMessages, PassingResponse, figures, parsed, whole
from aima_mcp.faces.openai.routes import ABSENT, ROUTES, Route
from aima_mcp.faces.openai.shapes import NoModel, NotReady, reply_error

__all__ = ["OpenAiFace", "build", "reply_error"]
BODY_LIMIT, MOST_WAYS = 32 * MIB, 1000
STREAM = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store", "x-accel-buffering": "no"}


def build(gateway: Gateway) -> OpenAiFace:
    """The face over this host."""
    return OpenAiFace(gateway)


class OpenAiFace:
    """Answers /v1/…, errors too, in the shape of the vendor whose path it is."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._ways: dict[tuple[str, str, str], _Way] = {}
        self._era = (-1, -1, -1)
        self._media = media.MediaPaths(gateway, self._found)

    async def __call__(self, exchange: Exchange) -> None:
        """Answer a request under /v1."""
        try:
            if route := ROUTES.get(exchange.path):
                await self._ask(exchange, route)
            else:
                with exchange.shielding():
                    await self._answer_other(exchange, shapes.named(shapes.new_id()))
        except Wrong as wrong:
            await shapes.refuse(exchange, 400, str(wrong), wrong.code, {}, wrong.param)
        except Refused as refused:
            await reply_error(exchange, refused.error, refused.status, refused.headers)
        except AimaError as error:
            if exchange.started:
                await exchange.write(shapes.last_event(exchange, error), more=False)
            else:
                await reply_error(exchange, error, shapes.status_of(error), {})

    async def _answer_other(self, exchange: Exchange, named: Mapping[str, str]) -> None:
        if further := media.ROUTES.get(exchange.path):
            refuse_method(exchange, "POST")
            asked = await self._media.fields(exchange, further)
            with _Counted(self._gateway, further.unit, exchange.caller):
                self._gateway.allow(further.unit, exchange.caller, asked)
                await self._media.answer(exchange, asked, dict(named))
        elif exchange.path == "/v1/models" or exchange.path.startswith("/v1/models/"):
            refuse_method(exchange, "GET", "HEAD")
            await self._models(exchange, exchange.path.removeprefix("/v1/models").removeprefix("/"), named)
        elif what := ABSENT.get(exchange.path):
            raise NotFound(f"no engine here can {what}", hint="GET /v1/models lists what answers")
        else:
            raise NotFound(f"nothing at {exchange.path[:200]}", hint=f"there are: /v1/models, {', '.join([*ROUTES, *media.ROUTES])}")

    async def _ask(self, exchange: Exchange, route: Route) -> None:
        refuse_method(exchange, "POST")
        body, data = await exchange.json_and_body(BODY_LIMIT)
        request, gateway = checked(route, body), self._gateway
        exchange.attend()
        with _Counted(gateway, route.unit, exchange.caller):
            way = self._way(exchange, request["model"])
            if way is None:
                gateway.allow(route.unit, exchange.caller, request)
                way = await self._found_way(exchange, route, request)
            else:
                gateway.allow_again(way.unit, exchange.caller, request)
            if route.task == "chat":
                gateway.services.inference.check(way.endpoint, request)
            request["model"] = way.endpoint.model
            if route.counts:
                said = await gateway.services.engines.wire.post(way.endpoint.address, exchange.path, request)
                await exchange.reply_json(said, headers=shapes.named(shapes.new_id()))
            else:
                await self._relay(exchange, route, request, way, data if request == body else None)

    def _way(self, exchange: Exchange, model: str) -> _Way | None:
        """How this caller's last request for the model went here, if no key, service or engine has changed since."""
        services = self._gateway.services
        changes = services.store.changes
        era = services.keys.era, changes["service"], changes["instance"]
        if era != self._era:
            self._era = era
            self._ways.clear()
        way = self._ways.get((exchange.caller.name, exchange.path, model))
        return way if way is not None and way.caller is exchange.caller else None

    async def _found_way(self, exchange: Exchange, route: Route, request: Mapping[str, Any]) -> _Way:
        gateway, caller, era = self._gateway, exchange.caller, self._era
        charge = gateway.services.allowance.account(caller)
        endpoint = await self._endpoint(exchange, route, request, charge)
        way = _Way(caller, gateway.find(route.unit), endpoint, charge)
        if era == self._era and len(self._ways) < MOST_WAYS:
            self._ways[caller.name, exchange.path, request["model"]] = way
        return way

    async def _found(self, model: str, task: str, caller: Caller) -> None:
        """Return when something answers to `model` for a task."""
        with IN_OUR_WORDS:
            await self._gateway.services.inference.find(model, task, self._gateway.services.allowance.account(caller))

    def _fluent(self, endpoint: Endpoint, model: str, route: Route) -> Endpoint:
        """The endpoint, if its engine speaks the dialect."""
        engine = self._gateway.services.engines.catalog.adapter(endpoint.instance["engine"])
        if route.dialect not in engine.dialects:
            paths = [path for path, other in ROUTES.items() if other.dialect in engine.dialects]
            hint = f"ask it at {' or '.join(paths)}" if paths else None
            raise Unfit(f"{model} runs on {engine.name}, which speaks {', '.join(engine.dialects)}, not {route.dialect}", hint=hint)
        return endpoint

    async def _endpoint(self, exchange: Exchange, route: Route, request: Mapping[str, Any], charge: Charge) -> Endpoint:
        """Who answers: at once where somebody is ready; else what is on its way is waited for, and a stream tells how far that is."""
        inference, model = self._gateway.services.inference, request["model"]

        async def tell(item: Mapping[str, Any]) -> None:
            if request.get("stream") and route.dialect == "openai":
                if not exchange.started:
                    await exchange.start(200, STREAM | shapes.named(shapes.new_id()))
                await exchange.write(b": %s\n\n" % item["loading"]["message"].encode())

        with IN_OUR_WORDS:
            try:
                endpoint = inference.resolve(model, route.task)
            except (FailedPrecondition, Unavailable):
                if route.counts:
                    raise
                with exchange.shielding():
                    endpoint = await inference.find(model, route.task, charge, tell)
            return self._fluent(endpoint, model, route)

    async def _relay(self, exchange: Exchange, route: Route, request: dict[str, Any], way: _Way, data: bytes | None) -> None:
        async with self._gateway.services.inference.turn(way.endpoint, route.task, exchange.path, request, way.charge, data) as turn:
            answer, line = turn.answer, turn.line
            if line.status != 200:
                raise translated(turn.endpoint.address, line.status, parsed(await line.read()), request)
            if line.content_type == "text/event-stream":
                await _relay_stream(exchange, line, answer, _passing(route, request))
            else:
                reply = await line.read()
                said = parsed(reply)
                answer.counted(*figures(said))
                if route.dialect == "responses":
                    reply = strict_json.write(whole(said, request, int(time.time())))
                await exchange.reply(200, reply, "application/json", shapes.named(answer.id))

    async def _models(self, exchange: Exchange, id: str, named: Mapping[str, str]) -> None:
        caller = exchange.caller
        if caller.may("inference"):  # who may ask a model may know which there are
            self._gateway.services.allowance.admit(caller, self._gateway.find("inference.models"))
        else:
            self._gateway.allow("inference.models", caller, {})
        with _Counted(self._gateway, "inference.models", None):
            rows = await self._gateway.services.inference.models(None, caller.models)
        dialect = shapes.dialect_of(exchange)
        ready = [self._model(row, dialect) for row in rows if row["status"] == "ready"]
        if not id:
            await exchange.reply_json(shapes.listed(ready, dialect), headers=named)
            return
        for model in ready:
            if model["id"] == id:
                await exchange.reply_json(model, headers=named)
                return
        raise NoModel(NotFound(f"no model called {id!r} answers now", hint=f"there are: {', '.join(m['id'] for m in ready) or 'none'}"))

    def _model(self, row: Mapping[str, Any], dialect: str) -> dict[str, Any]:
        started = self._gateway.services.engines.instance(row["instance_id"])["started_at"]
        return shapes.model(row["id"], started, int(clock.parse(started).timestamp()), dialect)


@dataclass(frozen=True, slots=True)
class _Way:
    """Where the requests of a caller for a model go, and who pays."""

    caller: Caller
    unit: Unit
    endpoint: Endpoint
    charge: Charge


class _Counted:
    """A block that is counted and traced as the gateway does its own calls: this one goes past it. Without a caller it is not traced."""

    __slots__ = ("_began", "_gateway", "_span", "_unit")

    def __init__(self, gateway: Gateway, unit: str, caller: Caller | None) -> None:
        self._gateway, self._unit, self._began = gateway, unit, time.monotonic()
        self._span = None if caller is None or gateway.services.tracer is None else gateway.traced(unit, caller)

    def __enter__(self) -> None:
        if self._span is not None:
            self._span.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        code = "ok" if error is None else error.code if isinstance(error, AimaError) else "cancelled"
        self._gateway.outcomes[self._unit, code] += 1
        self._gateway.seconds[self._unit] += time.monotonic() - self._began  # type: ignore[assignment]
        if self._span is not None:
            self._span.__exit__(kind, error, traceback)


class Unfit(FailedPrecondition):
    """The model answers, but not this."""


class _InOurWords:
    """What keeps a model from answering, as the vendors' SDKs know it."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if isinstance(error, FailedPrecondition) and not isinstance(error, Unfit):
            raise NotReady(error) from error
        if isinstance(error, NotFound):
            raise NoModel(error) from error


IN_OUR_WORDS = _InOurWords()


def _passing(route: Route, request: Mapping[str, Any]) -> Passing:
    if route.dialect == "responses":
        return PassingResponse(request, int(time.time()))
    return PassingMessages() if route.dialect == "anthropic" else Passing()


async def _relay_stream(exchange: Exchange, line: Line, answer: Answer, passing: Passing) -> None:
    """Every piece goes on in the moment it comes; this task wakes when the client has enough for now, and at the end."""
    cycle, broken = exchange.cycle, list[AimaError]()
    assert cycle is not None, "only our own server streams /v1"

    def pass_on(chunk: bytes) -> bool:
        answer.pieces += chunk.count(b"\n\n")
        try:
            return cycle.put(passing.take(chunk))
        except AimaError as error:
            broken.append(error)
            line.close()
            return False

    if not line.is_empty:
        answer.begun()
        if not exchange.started:
            await exchange.start(200, STREAM | shapes.named(answer.id))
        try:
            await line.pour(pass_on, cycle.drained)
        except Lost:
            if not broken:
                raise
        if broken:
            raise broken[0]
    answer.counted(*passing.figures())
    if not passing.ended:
        raise Unavailable("the engine ended its answer in the middle", hint="ask again")
    await exchange.write(b"", more=False)
