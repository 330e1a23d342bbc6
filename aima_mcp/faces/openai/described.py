"""The paths under /v1 as OpenAPI: the fields they take, and errors in their own shapes. What a field may hold, its engine says."""

from __future__ import annotations

from typing import Any

from aima_mcp.faces.openai import media
from aima_mcp.faces.openai.media import MediaRoute
from aima_mcp.faces.openai.routes import ROUTES, Route

Node = dict[str, Any]
TITLES = {
    "/v1/chat/completions": "OpenAI: chat",
    "/v1/completions": "OpenAI: complete",
    "/v1/embeddings": "OpenAI: embed",
    "/v1/responses": "OpenAI: respond",
    "/v1/responses/input_tokens": "OpenAI: count a request's tokens",
    "/v1/messages": "Anthropic: answer messages",
    "/v1/messages/count_tokens": "Anthropic: count a request's tokens",
}
REFUSALS = {
    400: "The request is wrong, or the model cannot do this.",
    401: "No key, or nobody's key.",
    403: "The key does not reach that far.",
    404: "No such model.",
    405: "The method does not fit.",
}
BODY_REFUSALS = {413: "The body is too large.", 415: "Not JSON.", 429: "The caller's allowance is used up; Retry-After says for how long."}
BODY_REFUSALS |= {503: "The model does not answer now.", 504: "It took too long."}
OBJECTS = {"type": "array", "items": {"type": "object"}}
TYPED: dict[str, Node] = {
    "model": {"type": "string", "minLength": 1, "description": "A service or a model, as GET /v1/models lists them."},
    "messages": OBJECTS,
    "prompt": {"type": "string"},
    "input": {"anyOf": [{"type": "string"}, {"type": "array"}]},
    "max_tokens": {"type": "integer", "minimum": 1},
    "max_output_tokens": {"type": "integer", "minimum": 1},
    "stream": {"type": ["boolean", "null"], "default": False},
    "background": {"enum": [False, None], "default": False},
    "truncation": {"enum": ["disabled", None], "default": "disabled"},
}


def paths() -> Node:
    """Every path under /v1."""
    found: Node = {path: {"post": _post(path, route)} for path, route in ROUTES.items()}
    found |= {path: {"post": _media(path, route)} for path, route in media.ROUTES.items()}
    found["/v1/models"] = {"get": _get("v1_models", "Models that answer now, in Anthropic's shape where anthropic-version is sent")}
    model = {"name": "model", "in": "path", "required": True, "description": "Its id.", "schema": {"type": "string", "minLength": 1}}
    found["/v1/models/{model}"] = {"get": _get("v1_model", "One model that answers now") | {"parameters": [model]}}
    return found


def schemas() -> Node:
    """The errors of both dialects."""
    text, any_text = {"type": "string"}, {"type": ["string", "null"]}
    inside = {"message": text, "type": text, "param": any_text, "code": any_text}
    openai = {"type": "object", "required": [*inside], "properties": inside}
    anthropic = {"type": "object", "required": ["type", "message"], "properties": {"type": text, "message": text}}
    return {
        "OpenAiError": {"type": "object", "required": ["error"], "properties": {"error": openai}},
        "AnthropicError": {
            "type": "object",
            "required": ["type", "error", "request_id"],
            "properties": {"type": {"const": "error"}, "error": anthropic, "request_id": text},
        },
    }


def _post(path: str, route: Route) -> Node:
    fields = {name: TYPED.get(name, {}) for name in sorted(route.known)}
    schema = {"type": "object", "required": ["model", *route.needed], "additionalProperties": False, "properties": fields}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    done: Node = {"application/json": {"schema": {"type": "object"}}}
    if "stream" in route.known:
        done["text/event-stream"] = {"schema": {}}
    shape = "AnthropicError" if route.dialect == "anthropic" else "OpenAiError"
    operation = _operation(path.strip("/").replace("/", "_"), TITLES[path], done, [shape], REFUSALS | BODY_REFUSALS)
    return operation | {"requestBody": body}


def _media(path: str, route: MediaRoute) -> Node:
    schema = {"type": "object", "required": ["model", *route.needed], "additionalProperties": False, "properties": dict(route.fields)}
    done: Node = {kind: {"schema": {"type": "object"} if kind == "application/json" else {}} for kind in route.kinds}
    kind = "multipart/form-data" if route.is_form else "application/json"
    body = {"required": True, "content": {kind: {"schema": schema}}}
    operation = _operation(path.strip("/").replace("/", "_"), route.title, done, ["OpenAiError"], REFUSALS | BODY_REFUSALS)
    return operation | {"requestBody": body}


def _get(id: str, summary: str) -> Node:
    return _operation(id, summary, {"application/json": {"schema": {"type": "object"}}}, ["OpenAiError", "AnthropicError"], REFUSALS)


def _operation(id: str, summary: str, done: Node, shapes: list[str], refusals: dict[int, str]) -> Node:
    ids: Node = {name: {"description": "Names the request.", "schema": {"type": "string"}} for name in ("x-request-id", "request-id")}
    error = {"application/json": {"schema": {"anyOf": [{"$ref": f"#/components/schemas/{shape}"} for shape in shapes]}}}
    responses: Node = {"200": {"description": summary, "headers": ids, "content": done}}
    responses |= {str(status): {"description": text, "headers": ids, "content": error} for status, text in refusals.items()}
    return {"operationId": id, "tags": ["openai"], "summary": summary, "responses": responses}
