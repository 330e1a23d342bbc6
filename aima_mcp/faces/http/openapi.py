"""The HTTP face described: OpenAPI 3.1, made from the unit files."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from aima_lib.door import Caller
from aima_lib.errors import BY_CODE, AimaError, InvalidArgument, ResourceExhausted
from aima_lib.registry import SCHEMAS, Registry, Unit, inline
from aima_mcp.faces.http import LONGEST_KEY, problem
from aima_mcp.faces.openai import described
from aima_mcp.faces.openai.routes import ROUTES

JSON, SSE, BYTES = "application/json", "text/event-stream", "application/octet-stream"
ALWAYS = ("invalid_argument", "unauthenticated", "permission_denied", "deadline_exceeded", "internal")
ABOUT = """AI inference, managed by AI: every unit over HTTP.

A unit that is asked with `Accept: text/event-stream` streams its items and then the result or an error."""
REFUSALS = {
    405: "The method does not fit.",
    406: "No format that the client accepts.",
    413: "The body is too large.",
    415: "Not JSON.",
    429: "The caller's allowance is used up; Retry-After says for how long.",
    431: "The head is too large; what is long goes into a body.",
}
# What a path that is no unit asks of its caller: one of these. The others take any key.
SCOPES = {
    "/events": ("read",),
    "/metrics": ("read",),
    "/shutdown": ("admin",),
    **dict.fromkeys(ROUTES, ("inference",)),
    "/v1/models": ("inference", "read"),
    "/v1/models/{model}": ("inference", "read"),
}
Node = dict[str, Any]
TAGGED = {"ETag": {"description": "Of this very content; If-None-Match takes it.", "schema": {"type": "string"}}}


def document(registry: Registry, version: str, caller: Caller, issuer: str | None = None) -> Node:
    """All of it that this caller may use. `issuer`: whose tokens are taken beside keys."""
    paths: Node = {}
    allowed = [unit for unit in registry.of("command", "query") if caller.may(unit.definition["scope"])]
    for unit in allowed:
        path = paths[f"/units/{unit.domain}/{unit.action}"] = {"post": _post(unit)}
        if unit.kind == "query":
            path["get"] = _get(unit)
    domains = sorted({unit.domain for unit in allowed})
    known = _around(registry) | ({} if issuer is None else {"/.well-known/oauth-protected-resource": _metadata()})
    around = {path: item for path, item in known.items() if path not in SCOPES or any(map(caller.may, SCOPES[path]))}
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {"title": "AIMA", "version": version, "description": ABOUT},
        "security": [{name: []} for name in _schemes(issuer)],
        "tags": [{"name": domain} for domain in [*domains, "openai", "host"]],
        "paths": paths | around,
        "components": {"securitySchemes": _schemes(issuer), "schemas": _schemas(), "responses": _responses()},
    }


def _post(unit: Unit) -> Node:
    schema = unit.definition["inputSchema"]
    examples = {f"example{i}": {"summary": e["title"], "value": e["input"]} for i, e in enumerate(_examples(unit), 1)}
    body = {"required": bool(schema.get("required")), "content": {"application/json": {"schema": schema, "examples": examples}}}
    headers = []
    if unit.durable:
        headers = [
            _header("Prefer", "respond-async returns the run at once, with 202."),
            _header("Idempotency-Key", "The same key and input mean the same run.", pattern=f"^[ -~]{{1,{LONGEST_KEY}}}$"),
        ]
    if unit.kind == "command":
        headers += [
            _header(
                "Aima-Plan",
                "true answers with the plan (#/components/schemas/Plan): what the call would change, and its token.",
                enum=["true", "false"],
            ),
            _header("Aima-Token", "The token of the call's plan: lets it pass, once.", pattern=f"^[ -~]{{1,{LONGEST_KEY}}}$"),
        ]
    return _operation(unit, unit.name.replace(".", "_")) | {"requestBody": body, "parameters": headers}


def _get(unit: Unit) -> Node:
    schema = unit.definition["inputSchema"]
    required = schema.get("required", [])
    parameters = [_parameter(key, spec, key in required) for key, spec in schema["properties"].items()]
    return _operation(unit, unit.name.replace(".", "_") + "_get") | {"parameters": parameters}


def _operation(unit: Unit, id: str) -> Node:
    definition = unit.definition
    stream = ["text/event-stream"] if unit.durable or "streamSchema" in definition else []
    output: Node = definition["outputSchema"]
    if unit.kind == "command":  # with Aima-Plan
        output = {"anyOf": [output, {"$ref": "#/components/schemas/Plan"}]}
    content: Node = {"application/json": {"schema": output, **_answers(unit)}} | {kind: _events(unit) for kind in stream}
    responses: Node = {"200": {"description": definition["title"], "content": content}}
    if unit.durable:
        location = {"Location": {"description": "Where the run is.", "schema": {"type": "string"}}}
        run = {"type": "object", "required": ["run"], "properties": {"run": {"$ref": "#/components/schemas/Run"}}}
        responses["202"] = {"description": "The run has started.", "headers": location, "content": {"application/json": {"schema": run}}}
    more = ["already_exists"] if unit.durable else []  # the idempotency key was used for something else
    more += ["approval_required", "failed_precondition", "resource_exhausted"] if unit.kind == "command" else []
    codes = dict.fromkeys([*definition["errors"], *ALWAYS, *more])
    responses |= {str(BY_CODE[code].http_status): {"$ref": f"#/components/responses/{code}"} for code in codes}
    responses |= {str(status): {"$ref": f"#/components/responses/http_{status}"} for status in REFUSALS}
    head = {"operationId": id, "tags": [unit.domain], "summary": definition["title"], "description": definition["description"]}
    policy = {"x-policy": unit.policy} if unit.kind == "command" else {}
    return head | {"x-scope": definition["scope"], **policy, "responses": responses}


def _examples(unit: Unit) -> list[Mapping[str, Any]]:
    return [example for example in unit.definition["examples"] if "output" in example]


def _answers(unit: Unit) -> Node:
    """The examples that say the whole answer; most say what matters of it."""
    whole = [example for example in _examples(unit) if unit.output.first_error(example["output"]) is None]
    return {"examples": {f"example{i}": {"summary": e["title"], "value": e["output"]} for i, e in enumerate(whole, 1)}} if whole else {}


def _events(unit: Unit) -> Node:
    """What comes as events. They have no schema of their own, since tools read one for each or for all."""
    item = unit.definition.get("streamSchema", {"$ref": "#/components/schemas/Progress"})
    problem = {"$ref": "#/components/schemas/Problem"}
    return {"schema": {}, "x-events": {"item": item, "result": unit.definition["outputSchema"], "error": problem}}


def _parameter(name: str, spec: Mapping[str, Any], required: bool) -> Node:
    head: Node = {"name": name, "in": "query", "required": required, "description": spec["description"]}
    if spec.get("type") == "object":
        return head | {"content": {"application/json": {"schema": spec}}}
    return head | {"schema": spec}


def _header(name: str, description: str, **form: Any) -> Node:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": "string", **form}}


def _schemas() -> Node:
    def noun(name: str) -> Any:
        path = SCHEMAS / "types" / f"{name}.json"
        return inline(json.loads(path.read_text(encoding="utf-8")), path)

    error = noun("error")
    more = {
        "type": {"type": "string", "description": "URN of the kind of error."},
        "title": {"type": "string", "description": "The kind of error in words."},
        "status": {"type": "integer", "description": "The HTTP status."},
    }
    whole = error | {"title": "Problem", "required": [*error["required"], *more], "properties": {**error["properties"], **more}}
    nouns = {name.title(): noun(name) for name in ("run", "plan", "event", "progress")}
    return {"Problem": whole, **nouns, **described.schemas()}


def _responses() -> Node:
    def response(description: str, error: AimaError, status: int | None = None) -> Node:
        content = {"schema": {"$ref": "#/components/schemas/Problem"}, "example": problem.body_of(error, status)}
        return {"description": description, "content": {problem.MEDIA_TYPE: content}}

    named = {
        code: response((kind.__doc__ or code).splitlines()[0], kind("what happened, with its names")) for code, kind in BY_CODE.items()
    }
    refused = {f"http_{status}": response(text, InvalidArgument("why it was refused"), status) for status, text in REFUSALS.items()}
    refused["http_429"] = response(REFUSALS[429], ResourceExhausted("what is used up", details={"retry_after_seconds": 7}))
    seconds = {"Retry-After": {"description": "Seconds after which it may be asked again.", "schema": {"type": "integer", "minimum": 1}}}
    refused["http_429"]["headers"] = named["unavailable"]["headers"] = seconds
    refused["http_405"]["headers"] = {"Allow": {"description": "The methods that fit.", "schema": {"type": "string"}}}
    challenge = {"description": "How to say who asks; where tokens come from.", "schema": {"type": "string"}}
    named["unauthenticated"]["headers"] = {"WWW-Authenticate": challenge}
    return named | refused | {"http_304": {"description": "The client has just this already.", "headers": TAGGED}}


def _schemes(issuer: str | None) -> Node:
    key = {
        "type": "http",
        "scheme": "bearer",
        "description": "A key: the owner's (`aima key show`) or one made with key.create; x-api-key is taken too.",
    }
    if issuer is None:
        return {"key": key}
    where = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
    return {"key": key, "oauth": {"type": "openIdConnect", "openIdConnectUrl": where, "description": f"An access token of {issuer}."}}


def _metadata() -> Node:
    return {"get": _plain("oauth_protected_resource", "Whose tokens are taken here (RFC 9728)") | {"security": []}}


def _around(registry: Registry) -> Node:
    """The paths that are no unit."""
    uris = ", ".join(unit.definition["uriTemplate"] for unit in registry.of("resource"))
    types = [unit.name for unit in registry.of("event")]
    after = {"name": "after", "in": "query", "description": "Number of the last event seen.", "schema": {"type": "integer"}}
    wanted = {"name": "types", "in": "query", "description": "Comma-separated events, or domain.*.", "schema": {"type": "string"}}
    uri = {"name": "uri", "in": "query", "description": f"One of {uris}.", "schema": {"type": "string"}}
    flag = {"type": "boolean", "default": False, "description": "Also end the engines."}
    known = _header("If-None-Match", "The ETag of what the client has: 304 while it is still that.")
    last = _header("Last-Event-ID", "Number of the last event seen: what a client that comes back to the same URL sends. Before after.")
    stop = {"type": "object", "additionalProperties": False, "properties": {"stop_engines": flag}}
    return {
        "/resources": {
            "get": _plain(
                "resources",
                "Read or watch a resource",
                JSON,
                SSE,
                BYTES,
                also=(*ALWAYS, "not_found", 304, 406, 429),
                parameters=[uri, known],
            )
        },
        "/events": {
            "get": _plain("events", f"Follow events: {', '.join(types)}", SSE, also=(*ALWAYS, 406), parameters=[after, wanted, last])
        },
        **described.paths(),
        "/health": {"get": _plain("health", "Whether the host answers", security=[])},
        "/caller": {"get": _plain("caller", "Who the key says you are: name, scopes, models, limits, usage, MCP profile", also=(406,))},
        "/metrics": {"get": _plain("metrics", "Prometheus metrics", "text/plain", also=("permission_denied", 406))},
        "/openapi.json": {"get": _plain("openapi", "This document", also=(304, 406), parameters=[known])},
        "/shutdown": {
            "post": _plain(
                "shutdown", "End the host", also=(*ALWAYS, 413, 415), status=202, requestBody={"content": {JSON: {"schema": stop}}}
            )
        },
    }


def _plain(id: str, summary: str, *kinds: str, also: Collection[str | int] = (), status: int = 200, **more: Any) -> Node:
    """A path of the host. `also` are the errors it answers with beside a missing key and a wrong method."""
    forms: Node = {JSON: {"type": "object"}, "text/plain": {"type": "string"}}  # events have none: tools read one for each or for all
    schemas = {kind: {"schema": forms.get(kind, {})} for kind in kinds or (JSON,)}
    responses: Node = {str(status): {"description": summary, "content": schemas}}
    for code in (*also, 405) if "security" in more else ("unauthenticated", *also, 405):
        number, name = (code, f"http_{code}") if isinstance(code, int) else (BY_CODE[code].http_status, code)
        responses[str(number)] = {"$ref": f"#/components/responses/{name}"}
    if "304" in responses:
        responses[str(status)]["headers"] = TAGGED
    return {"operationId": id, "tags": ["host"], "summary": summary, "responses": responses, **more}
