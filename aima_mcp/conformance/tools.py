"""Tools of the suite that only answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import mcp_types as types
from mcp.server.context import HandlerResult, ServerRequestContext

from aima_mcp.conformance.content import AUDIO, COMPLETE, IMAGE

Ctx = ServerRequestContext[Any, Any]
PAUSE_SECONDS = 0.05  # as the suite asks, so that each message is seen to come by itself
NO_INPUT = {"type": "object", "properties": {}}
INPUTS: dict[str, dict[str, Any]] = {
    "test_sampling": {
        "type": "object",
        "required": ["prompt"],
        "properties": {"prompt": {"type": "string", "description": "What to ask."}},
    },
    "test_elicitation": {
        "type": "object",
        "required": ["message"],
        "properties": {"message": {"type": "string", "description": "What to ask."}},
    },
    "json_schema_2020_12_tool": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {
            "address": {"$anchor": "addressDef", "type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}}}
        },
        "properties": {
            "name": {"type": "string"},
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": {"type": "string"},
            "email": {"type": "string"},
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": False,
    },
}
HEADED: dict[str, dict[str, Any]] = {  # tools with an argument that is repeated in a header
    "test_x_mcp_header": {
        "type": "object",
        "required": ["region"],
        "properties": {"region": {"type": "string", "description": "Where.", "x-mcp-header": "Region"}},
    },
}


def listed(name: str) -> dict[str, Any]:
    """A fixture as tools/list shows it."""
    return {"name": name, "description": f"The conformance suite's {name}.", "inputSchema": {**INPUTS, **HEADED}.get(name, NO_INPUT)}


def _resource(uri: str, kind: str, text: str) -> dict[str, Any]:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": kind, "text": text}}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _says(*parts: dict[str, Any], error: bool = False) -> Callable[[Ctx, Any], Awaitable[HandlerResult]]:
    async def answer(_ctx: Ctx, _params: Any) -> HandlerResult:
        return {**COMPLETE, "content": [*parts], "isError": error}

    return answer


async def _logs(ctx: Ctx, _params: Any) -> HandlerResult:
    for place, line in enumerate(("Tool execution started", "Tool processing data", "Tool execution completed")):
        if place:
            await anyio.sleep(PAUSE_SECONDS)
        if ctx.protocol_version < "2026":  # the newer era logs only for a request that asks for it, and has deprecated it
            params = types.LoggingMessageNotificationParams(level="info", data=line)
            await ctx.session.send_notification(types.LoggingMessageNotification(params=params), related_request_id=ctx.request_id)
    return {**COMPLETE, "content": [_text("logged")]}


async def _progresses(ctx: Ctx, _params: Any) -> HandlerResult:
    for done in (0, 50, 100):
        await ctx.session.report_progress(done, 100)
        await anyio.sleep(PAUSE_SECONDS)
    return {**COMPLETE, "content": [_text("done")]}


TOOLS: dict[str, Callable[[Ctx, Any], Awaitable[HandlerResult]]] = {
    "test_simple_text": _says(_text("This is a simple text response for testing.")),
    "test_image_content": _says(IMAGE),
    "test_audio_content": _says(AUDIO),
    "test_embedded_resource": _says(_resource("test://embedded-resource", "text/plain", "This is an embedded resource content.")),
    "test_multiple_content_types": _says(
        _text("Multiple content types test:"),
        IMAGE,
        _resource("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
    ),
    "test_error_handling": _says(_text("This tool intentionally returns an error for testing"), error=True),
    "test_tool_with_logging": _logs,
    "test_logging_tool": _logs,
    "test_tool_with_progress": _progresses,
    "json_schema_2020_12_tool": _says(_text("ok")),
    "test_x_mcp_header": _says(_text("ok")),
}
