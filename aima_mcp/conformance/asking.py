"""Tools of the suite that ask their client: pushed in the handshake era, by InputRequiredResult since 2026-07-28."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import mcp_types as types
from mcp.server.context import HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata

Ctx = ServerRequestContext[Any, Any]
Requests = Mapping[str, dict[str, Any]]
_SECRET = secrets.token_bytes(32)
COLOURS: dict[str, Any] = {
    "untitledSingle": {"type": "string", "enum": ["option1", "option2", "option3"]},
    "titledSingle": {"type": "string", "oneOf": [{"const": f"value{n}", "title": f"Option {n}"} for n in (1, 2, 3)]},
    "legacyEnum": {"type": "string", "enum": ["opt1", "opt2", "opt3"], "enumNames": ["Option One", "Option Two", "Option Three"]},
    "untitledMulti": {"type": "array", "items": {"type": "string", "enum": ["option1", "option2", "option3"]}},
    "titledMulti": {"type": "array", "items": {"anyOf": [{"const": f"value{n}", "title": f"Choice {n}"} for n in (1, 2, 3)]}},
}
DEFAULTS: dict[str, Any] = {
    "name": {"type": "string", "default": "John Doe"},
    "age": {"type": "integer", "default": 30},
    "score": {"type": "number", "default": 95.5},
    "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
    "verified": {"type": "boolean", "default": True},
}
CONTACT = {
    "username": {"type": "string", "description": "User's response"},
    "email": {"type": "string", "description": "User's email address"},
}
ROOTS: dict[str, Any] = {"method": "roots/list", "params": {}}


def form(message: str, **fields: str) -> dict[str, Any]:
    """A question with these fields, each of a type."""
    properties = {name: {"type": kind} for name, kind in fields.items()}
    schema = {"type": "object", "properties": properties, "required": [*fields]}
    return {"method": "elicitation/create", "params": {"mode": "form", "message": message, "requestedSchema": schema}}


def sampling(text: str, most: int) -> dict[str, Any]:
    """A question for the client's model."""
    messages = [{"role": "user", "content": {"type": "text", "text": text}}]
    return {"method": "sampling/createMessage", "params": {"messages": messages, "maxTokens": most}}


def answers(params: Any) -> dict[str, Any]:
    """The answers that came with a call, as JSON."""
    given = params.model_dump(by_alias=True, mode="json", exclude_none=True).get("inputResponses") or {}
    return {key: value for key, value in given.items() if isinstance(value, dict)}


def missing(params: Any, asked: Requests, state: str | None = None) -> dict[str, Any] | None:
    """What is still to be asked, or None when every answer is there."""
    left = {key: request for key, request in asked.items() if key not in answers(params)}
    if not left:
        return None
    return {"resultType": "input_required", "inputRequests": left} | ({} if state is None else {"requestState": state})


def _sealed(step: str) -> str:
    return f"{step}.{hmac.new(_SECRET, step.encode(), hashlib.sha256).hexdigest()}"


def _opened(state: str | None) -> str:
    """The step in a state that we sealed. Raises MCPError for any other."""
    step = (state or "").partition(".")[0]
    if state is None or not hmac.compare_digest(_sealed(step).encode(), state.encode()):
        raise MCPError(types.INVALID_PARAMS, "requestState is not what this server sent")
    return step


def _said(text: str) -> dict[str, Any]:
    return {"resultType": "complete", "content": [{"type": "text", "text": text}]}


def _asks(
    requests: Requests, done: Callable[[dict[str, Any]], str], step: str | None = None
) -> Callable[[Ctx, Any], Awaitable[HandlerResult]]:
    """A tool that asks once, sealing a state if it has a step, and then says something of the answers."""

    async def answer(_ctx: Ctx, params: Any) -> HandlerResult:
        left = missing(params, requests, None if step is None else _sealed(step))
        if left is not None:
            return left
        if step is not None:
            _opened(params.request_state)
        return _said(done(answers(params)))

    return answer


async def _rounds(_ctx: Ctx, params: Any) -> HandlerResult:
    first = {"step1": form("Step 1: What is your name?", name="string")}
    second = {"step2": form("Step 2: What is your favorite color?", color="string")}
    if params.request_state is None:
        return missing(params, first, _sealed("one")) or missing(params, second, _sealed("two"))
    step = _opened(params.request_state)
    if step == "one" and "step1" not in answers(params):
        return missing(params, first, _sealed("one"))
    return missing(params, second, _sealed("two")) or _said(f"All asked: {json.dumps(answers(params))}")


async def _capabilities(ctx: Ctx, params: Any) -> HandlerResult:
    able = ctx.session.client_capabilities or types.ClientCapabilities()
    wanted = {"sampling": sampling("Generate a greeting", 50), "elicitation": form("What is your name?", name="string"), "roots": ROOTS}
    return missing(params, {key: request for key, request in wanted.items() if getattr(able, key)}) or _said("asked what the client can")


async def _needs_sampling(ctx: Ctx, _params: Any) -> HandlerResult:
    able = ctx.session.client_capabilities
    if able is None or able.sampling is None:
        needed: dict[str, Any] = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, "this tool needs the client's sampling", needed)
    return _said("the client can sample")


def _pushes(
    message: str | None, properties: dict[str, Any], required: tuple[str, ...], answer: str
) -> Callable[[Ctx, Any], Awaitable[HandlerResult]]:
    """A tool that asks by a request to its client; `message` None takes it from the arguments."""

    async def ask(ctx: Ctx, params: Any) -> HandlerResult:
        schema = {"type": "object", "properties": properties, "required": [*required]}
        text = message or (params.arguments or {})["message"]
        found = await ctx.session.elicit_form(text, schema, related_request_id=ctx.request_id)
        return _said(answer.format(action=found.action, content=json.dumps(found.content)))

    return ask


async def _sample(ctx: Ctx, params: Any) -> HandlerResult:
    asked = sampling((params.arguments or {})["prompt"], 100)["params"]
    request = types.CreateMessageRequest(params=types.CreateMessageRequestParams.model_validate(asked))
    metadata = ServerMessageMetadata(related_request_id=ctx.request_id)
    found = await ctx.session.send_request(request, types.CreateMessageResult, metadata=metadata)
    return _said(f"LLM response: {found.content.text if isinstance(found.content, types.TextContent) else found.content}")


_DONE = "Elicitation completed: action={action}, content={content}"
_NAME = {"user_name": form("What is your name?", name="string")}
_OK = {"confirm": form("Please confirm", ok="boolean")}
_ALL = {**_NAME, "greeting": sampling("Generate a greeting", 50), "client_roots": ROOTS}
TOOLS: dict[str, Callable[[Ctx, Any], Awaitable[HandlerResult]]] = {
    "test_sampling": _sample,
    "test_elicitation": _pushes(None, CONTACT, ("username", "email"), "User response: action={action}, content={content}"),
    "test_elicitation_sep1034_defaults": _pushes("Please review", DEFAULTS, (), _DONE),
    "test_elicitation_sep1330_enums": _pushes("Please choose", COLOURS, (), _DONE),
    "test_input_required_result_elicitation": _asks(_NAME, lambda found: f"Hello, {found['user_name'].get('content', {}).get('name')}!"),
    "test_input_required_result_sampling": _asks(
        {"capital_question": sampling("What is the capital of France?", 100)}, lambda found: json.dumps(found["capital_question"])
    ),
    "test_input_required_result_list_roots": _asks({"client_roots": ROOTS}, lambda found: json.dumps(found["client_roots"])),
    "test_input_required_result_request_state": _asks(_OK, lambda _: "state-ok", "confirm"),
    "test_input_required_result_tampered_state": _asks(_OK, lambda _: "state-ok", "tamper"),
    "test_input_required_result_multiple_inputs": _asks(_ALL, json.dumps, "all"),
    "test_input_required_result_multi_round": _rounds,
    "test_input_required_result_capabilities": _capabilities,
    "test_streaming_elicitation": _asks(_NAME, json.dumps),
    "test_missing_capability": _needs_sampling,
}
