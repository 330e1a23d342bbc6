"""Errors and lists in each dialect's own shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aima_lib.errors import AimaError, FailedPrecondition, NotFound, ResourceExhausted
from aima_lib.names import tag
from aima_mcp.faces import strict_json
from aima_mcp.faces.http import problem
from aima_mcp.faces.http.exchange import Exchange

OPENAI = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "invalid_request_error"}
OPENAI |= {429: "rate_limit_error"}
ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class NotReady(FailedPrecondition):
    """The model is known and does not answer now."""

    def __init__(self, error: AimaError) -> None:
        super().__init__(str(error), hint=error.hint, next=error.next, details=error.details)


class NoModel(NotFound):
    """No such model."""

    def __init__(self, error: AimaError) -> None:
        super().__init__(str(error), hint=error.hint, next=error.next, details=error.details)


def dialect_of(exchange: Exchange) -> str:
    """Whose words the caller speaks: Anthropic has paths of its own, and lists models where OpenAI does."""
    path = exchange.path
    if path.startswith("/v1/messages") or (path.startswith("/v1/models") and "anthropic-version" in exchange.headers):
        return "anthropic"
    return "responses" if path.startswith("/v1/responses") else "openai"


def named(id: str) -> dict[str, str]:
    """The headers that name a request: each vendor's SDK looks for its own."""
    return {"x-request-id": id, "request-id": id}


def new_id() -> str:
    """A request's name, for those that ask no model."""
    return f"req-{tag()}"


def status_of(error: AimaError) -> int:
    """Statuses that the vendors' SDKs know: what does not answer now is 503, what this model cannot do is 400."""
    status = problem.status_of(error)
    if isinstance(error, NotReady) or status == ResourceExhausted.http_status:
        return 503
    return 400 if isinstance(error, FailedPrecondition) else status


async def reply_error(exchange: Exchange, error: AimaError, status: int, headers: Mapping[str, str]) -> None:
    """Answer with an AimaError in the caller's dialect: its hint and its next calls are in the message, where SDKs show them."""
    words = [str(error), *([error.hint] if error.hint else [])]
    words += [f"{call['unit']} {json.dumps(call['arguments'], ensure_ascii=False)}" for call in error.next[:1]]
    code = "model_not_found" if isinstance(error, NoModel) else "rate_limit_exceeded" if status == 429 else error.code
    extra = problem.retry_of(error) or {"x-should-retry": "false"}
    param = "model" if isinstance(error, NoModel | NotReady) else None
    await refuse(exchange, status, "; ".join(words), code, {**extra, **headers}, param)


async def refuse(exchange: Exchange, status: int, message: str, code: str, headers: Mapping[str, str], param: str | None = None) -> None:
    """Answer with an error in the caller's dialect. Every answer has a request's id, also one from before there was a request."""
    every = {**named(headers.get("x-request-id") or new_id()), **headers}
    await exchange.reply_json(_body(exchange, status, message, code, param, every["x-request-id"]), status, every)


def last_event(exchange: Exchange, error: AimaError) -> bytes:
    """An error as the last event of a stream whose head is gone: without the proper end, no client takes what it has for the whole."""
    dialect = dialect_of(exchange)
    if dialect == "responses":
        body: dict[str, Any] = {"type": "error", "code": error.code, "message": str(error), "param": None}
    else:
        body = _body(exchange, 500, str(error), error.code, None, None)
    head = b"" if dialect == "openai" else b"event: error\n"
    return head + b"data: " + strict_json.write(body) + b"\n\n"


def _body(exchange: Exchange, status: int, message: str, code: str, param: str | None, id: str | None) -> dict[str, Any]:
    if dialect_of(exchange) == "anthropic":
        kind = ANTHROPIC.get(status, "invalid_request_error" if status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": id}
    kind = OPENAI.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def model(id: str, started_at: str, created: int, dialect: str) -> dict[str, Any]:
    """One model of a list."""
    if dialect == "anthropic":
        return {"type": "model", "id": id, "display_name": id, "created_at": started_at}
    return {"id": id, "object": "model", "created": created, "owned_by": "aima"}


def listed(models: list[dict[str, Any]], dialect: str) -> dict[str, Any]:
    """All of them, on one page."""
    if dialect == "anthropic":
        ends = {"first_id": models[0]["id"] if models else None, "last_id": models[-1]["id"] if models else None}
        return {"data": models, "has_more": False, **ends}
    return {"object": "list", "data": models}
