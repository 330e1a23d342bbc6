"""OpenAI's API over the models served here. An engine's answer passes through byte for byte."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from aima_lib.gateway import Gateway
from aima_lib.infra import clock
from aima_lib.services.answer import Answer
from aima_lib.services.inference import Endpoint
from aima_lib.services.wire import translated
from aima_mcp.faces import strict_json
from aima_mcp.faces.http.exchange import MIB, Exchange
from aima_mcp.faces.http.problem import Refused, retry_of, status_of
from aima_mcp.faces.openai.fields import Wrong, checked

if TYPE_CHECKING:
    import aiohttp

BODY_LIMIT = 32 * MIB
TAIL_BYTES = 8192
UNITS = {"chat": "inference.chat", "complete": "inference.complete", "embed": "inference.embed"}
TASKS = {"/v1/chat/completions": "chat", "/v1/completions": "complete", "/v1/embeddings": "embed"}
STREAM = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store", "x-accel-buffering": "no"}
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
}


def build(gateway: Gateway) -> OpenAiFace:
    """The face over this host."""
    return OpenAiFace(gateway)


class OpenAiFace:
    """Answers /v1/…, errors too, in OpenAI's shape."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, exchange: Exchange) -> None:
        """Answer a request under /v1."""
        id = f"req-{secrets.token_hex(8)}"
        try:
            if task := TASKS.get(exchange.path):
                _refuse_method(exchange, "POST")
                await self._ask(exchange, task)
            elif exchange.path == "/v1/models" or exchange.path.startswith("/v1/models/"):
                _refuse_method(exchange, "GET", "HEAD")
                await self._models(exchange, exchange.path.removeprefix("/v1/models").removeprefix("/"), id)
            else:
                raise NotFound(f"nothing at {exchange.path[:200]}", hint=f"there are: /v1/models, {', '.join(TASKS)}")
        except Wrong as wrong:
            await _reply_error(exchange, 400, str(wrong), wrong.code, {"x-request-id": id}, wrong.param)
        except Refused as refused:
            await reply_error(exchange, refused.error, refused.status, {"x-request-id": id, **refused.headers})
        except AimaError as error:
            if exchange.started:
                await _end_with_error(exchange, error)
            else:
                await reply_error(exchange, error, _status(error), {"x-request-id": id})

    async def _ask(self, exchange: Exchange, task: str) -> None:
        request = checked(task, await exchange.json(BODY_LIMIT))
        with self._counted(UNITS[task]):
            self._gateway.allow(UNITS[task], exchange.caller, request)
            endpoint = self._resolve(request["model"], task)
            if task == "chat":
                self._gateway.services.inference.check(endpoint, request)
            request["model"] = endpoint.model
            await exchange.while_connected(lambda: self._relay(exchange, endpoint, task, request))

    def _resolve(self, model: str, task: str) -> Endpoint:
        try:
            return self._gateway.services.inference.resolve(model, task)
        except FailedPrecondition as error:
            raise NotReady(error) from error
        except NotFound as error:
            raise NoModel(error) from error

    async def _relay(self, exchange: Exchange, endpoint: Endpoint, task: str, request: Mapping[str, Any]) -> None:
        services = self._gateway.services
        opened = services.engines.wire.open(endpoint.address, exchange.path, request)
        charge = partial(services.allowance.charge, exchange.caller)
        async with services.inference.recorded(endpoint, task, request, charge) as answer, opened as response:
            if response.status != 200:
                raise translated(endpoint.address, response.status, _parsed(await response.read()))
            if response.content_type == "text/event-stream":
                await _relay_stream(exchange, response, answer)
            else:
                body = await response.read()
                _take(answer, _parsed(body))
                await exchange.reply(200, body, "application/json", {"x-request-id": answer.id})

    async def _models(self, exchange: Exchange, id: str, request_id: str) -> None:
        caller = exchange.caller
        if caller.may("inference"):  # who may ask a model may know which there are
            self._gateway.services.allowance.admit(caller, self._gateway.find("inference.models"))
        else:
            self._gateway.allow("inference.models", caller, {})
        with self._counted("inference.models"):
            rows = await self._gateway.services.inference.models(None, caller.models)
        ready = [self._model(row) for row in rows if row["status"] == "ready"]
        if not id:
            await exchange.reply_json({"object": "list", "data": ready}, headers={"x-request-id": request_id})
            return
        for model in ready:
            if model["id"] == id:
                await exchange.reply_json(model, headers={"x-request-id": request_id})
                return
        raise NoModel(NotFound(f"no model called {id!r} answers now", hint=f"there are: {', '.join(m['id'] for m in ready) or 'none'}"))

    def _model(self, row: Mapping[str, Any]) -> dict[str, Any]:
        instance = self._gateway.services.engines.instance(row["instance_id"])
        created = int(clock.parse(instance["started_at"]).timestamp())
        return {"id": row["id"], "object": "model", "created": created, "owned_by": "aima"}

    @contextmanager
    def _counted(self, unit: str) -> Iterator[None]:
        """Count the call as the gateway counts its own: this one goes past it."""
        began, code = time.monotonic(), "cancelled"
        try:
            yield
            code = "ok"
        except AimaError as error:
            code = error.code
            raise
        finally:
            self._gateway.outcomes[unit, code] += 1
            self._gateway.seconds[unit] += time.monotonic() - began  # type: ignore[assignment]


class NotReady(FailedPrecondition):
    """The model is known and does not answer now."""

    def __init__(self, error: AimaError) -> None:
        super().__init__(str(error), hint=error.hint, next=error.next, details=error.details)


class NoModel(NotFound):
    """No such model."""

    def __init__(self, error: AimaError) -> None:
        super().__init__(str(error), hint=error.hint, next=error.next, details=error.details)


async def reply_error(exchange: Exchange, error: AimaError, status: int, headers: Mapping[str, str]) -> None:
    """Answer with an AimaError in OpenAI's shape: its hint and its next calls are in the message, where SDKs show them."""
    words = [str(error), *([error.hint] if error.hint else [])]
    words += [f"{call['unit']} {json.dumps(call['arguments'], ensure_ascii=False)}" for call in error.next[:1]]
    code = "model_not_found" if isinstance(error, NoModel) else "rate_limit_exceeded" if status == 429 else error.code
    extra = retry_of(error) or {"x-should-retry": "false"}
    param = "model" if isinstance(error, NoModel | NotReady) else None
    await _reply_error(exchange, status, "; ".join(words), code, {**extra, **headers}, param)


async def _reply_error(exchange: Exchange, status: int, message: str, code: str, headers: Mapping[str, str], param: str | None) -> None:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    await exchange.reply_json({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers)


async def _end_with_error(exchange: Exchange, error: AimaError) -> None:
    """The head is gone, so the error is the stream's last event; without [DONE], no client takes what it has for the whole answer."""
    body = {"error": {"message": str(error), "type": "server_error", "param": None, "code": error.code}}
    await exchange.write(b"data: " + strict_json.write(body) + b"\n\n", more=False)


async def _relay_stream(exchange: Exchange, response: aiohttp.ClientResponse, answer: Answer) -> None:
    tail = b""
    async for chunk in response.content.iter_any():
        if not exchange.started:
            answer.begun()
            await exchange.start(200, STREAM | {"x-request-id": answer.id})
        answer.pieces += (tail[-1:] + chunk).count(b"\n\n")
        await exchange.write(chunk)
        tail = (tail + chunk)[-TAIL_BYTES:]
    lines = [line.removeprefix(b"data:").strip() for line in tail.splitlines() if line.startswith(b"data:")]
    for line in lines:
        if b'"usage"' in line or b'"timings"' in line:
            _take(answer, _parsed(line))
    if b"[DONE]" not in lines:
        raise Unavailable("the engine ended its answer in the middle", hint="ask again")
    await exchange.write(b"", more=False)


def _take(answer: Answer, chunk: Mapping[str, Any]) -> None:
    """Usage and speed; llama.cpp says the counts in `timings` even where nobody asked for usage."""
    timings = chunk.get("timings") or {}
    if not chunk.get("usage") and "predicted_n" in timings:
        prompt, said = timings.get("prompt_n", 0) + timings.get("cache_n", 0), timings["predicted_n"]
        usage = {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}
        chunk = {"usage": usage, "timings": timings}
    answer.take({key: chunk[key] for key in ("usage", "timings") if chunk.get(key)})


def _parsed(body: bytes) -> Any:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _status(error: AimaError) -> int:
    """Statuses that OpenAI's SDKs know: what does not answer now is 503, what this model cannot do is 400."""
    status = status_of(error)
    if isinstance(error, NotReady) or status == ResourceExhausted.http_status:
        return 503
    return 400 if isinstance(error, FailedPrecondition) else status


def _refuse_method(exchange: Exchange, *allowed: str) -> None:
    if exchange.method not in allowed:
        error = InvalidArgument(f"{exchange.path} does not take {exchange.method}", hint=f"use {' or '.join(allowed)}")
        raise Refused(405, error, {"allow": ", ".join(allowed)})
