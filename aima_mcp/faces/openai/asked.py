"""A request to /v1, judged: what cannot be is refused, and what the engine knows by another name gets it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aima_lib.names import did_you_mean
from aima_mcp.faces.openai.routes import Route

KEPT_NOWHERE = ("previous_response_id", "conversation", "prompt")
# What the engine would take without a word and not do.
ONLY = {"background": (False, None), "truncation": ("disabled", None)}


class Wrong(Exception):
    """A field that cannot be: `param` names it."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_argument") -> None:
        super().__init__(message)
        self.param, self.code = param, code


def checked(route: Route, body: Any) -> dict[str, Any]:
    """The request as the engine gets it, every field of it known.

    Raises:
        Wrong: a field is unknown, missing, or not of its type.
    """
    if not isinstance(body, dict):
        raise Wrong("the body is not a JSON object")
    for name in body:
        if name not in route.known:
            raise _unknown(name, route)
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise Wrong("model must name a service or a model; GET /v1/models lists them", "model")
    for name in route.needed:
        if name not in body:
            raise Wrong(f"{name} is missing", name)
    for name in ("messages", "input"):
        if route.task == "chat" and name in route.needed and not _is_talk(body[name], text=name == "input"):
            raise Wrong(f"{name} must be an array of objects with role and content", name)
    if not isinstance(body.get("stream", False), bool | None):
        raise Wrong("stream must be true or false", "stream")
    for name, allowed in ONLY.items():
        if body.get(name) not in allowed:
            raise Wrong(f"{name} can only be {str(allowed[0]).lower()} here", name)
    if route.dialect != "openai" and body.get("tools") is not None:
        _refuse_hosted_tools(body["tools"])
    return _renamed(dict(body))


def _unknown(name: str, route: Route) -> Wrong:
    if name in KEPT_NOWHERE and route.dialect == "responses":
        return Wrong(
            f"{name} is not supported: nothing of a conversation is kept here, so send all of it as input", name, "unknown_parameter"
        )
    return unknown_field(name, route.known)


def unknown_field(name: str, known: Iterable[str]) -> Wrong:
    """The refusal of a field that a path does not take."""
    hint = did_you_mean(name, known)
    return Wrong(f"unknown field {name[:100]!r}" + (f": {hint}" if hint else ""), name[:100], "unknown_parameter")


def _renamed(request: dict[str, Any]) -> dict[str, Any]:
    """With the names that engines know."""
    if "max_completion_tokens" in request:  # OpenAI's new name of max_tokens; engines know the old one
        longest = request.pop("max_completion_tokens")
        request.setdefault("max_tokens", longest)
    text, reasoning = request.get("text"), request.get("reasoning")
    if isinstance(text, dict) and (wanted := text.get("format")) is not None:
        request["response_format"] = _response_format(wanted)
    if isinstance(reasoning, dict) and reasoning.get("effort") is not None:
        request["reasoning_effort"] = reasoning["effort"]
    return request


def _response_format(wanted: Any) -> dict[str, Any]:
    """The form of an answer as chats say it: there the schema is one level deeper."""
    if not isinstance(wanted, dict) or wanted.get("type") not in ("text", "json_object", "json_schema"):
        raise Wrong("text.format.type must be text, json_object or json_schema", "text")
    if wanted["type"] != "json_schema":
        return {"type": wanted["type"]}
    return {"type": "json_schema", "json_schema": {key: value for key, value in wanted.items() if key != "type"}}


def _refuse_hosted_tools(tools: Any) -> None:
    """Tools that OpenAI or Anthropic run on their own machines: nobody would run them here, and llama.cpp would not say so."""
    if not _are_objects(tools):
        raise Wrong("tools must be an array of objects", "tools")
    for tool in tools:
        if (kind := tool.get("type") or "custom") not in ("function", "custom"):
            raise Wrong(f"a tool of type {str(kind)[:80]!r} runs on its vendor's machines, not here: give functions of your own", "tools")


def _is_talk(value: Any, *, text: bool) -> bool:
    """Whether this has the shape of a conversation; what is in it, the engine judges."""
    if text and isinstance(value, str):
        return True
    return _are_objects(value) and all(_are_objects(each.get("content")) for each in value if isinstance(each.get("content"), list))


def _are_objects(items: Any) -> bool:
    return isinstance(items, list) and all(isinstance(item, dict) for item in items)
