"""What the suite reads: prompts and resources of fixed names."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
import wave
import zlib
from typing import Any

from mcp.server.context import HandlerResult, ServerRequestContext

from aima_mcp.conformance import asking

Ctx = ServerRequestContext[Any, Any]
COMPLETE = {"resultType": "complete"}


def _png() -> str:
    """One red pixel."""
    parts = ((b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0\xff\0\0")), (b"IEND", b""))
    chunks = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts)
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()


def _wav() -> str:
    """A hundredth of a second of silence."""
    made = io.BytesIO()
    with wave.open(made, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(160))
    return base64.b64encode(made.getvalue()).decode()


IMAGE = {"type": "image", "data": _png(), "mimeType": "image/png"}
AUDIO = {"type": "audio", "data": _wav(), "mimeType": "audio/wav"}
TEXT, BINARY, TEMPLATE = "test://static-text", "test://static-binary", "test://template/{id}/data"
RESOURCES: list[dict[str, Any]] = [
    {"uri": TEXT, "name": "static-text", "mimeType": "text/plain"},
    {"uri": BINARY, "name": "static-binary", "mimeType": "image/png"},
    {"uri": "test://watched-resource", "name": "watched-resource", "mimeType": "text/plain"},
]
TEMPLATES: list[dict[str, Any]] = [{"uriTemplate": TEMPLATE, "name": "template", "mimeType": "application/json"}]
_TEMPLATED = re.compile(r"test://template/([^/]+)/data")
PROMPTS: list[dict[str, Any]] = [
    {"name": "test_simple_prompt", "description": "A simple prompt."},
    {
        "name": "test_prompt_with_arguments",
        "description": "A prompt with arguments.",
        "arguments": [{"name": name, "description": "An argument.", "required": True} for name in ("arg1", "arg2")],
    },
    {
        "name": "test_prompt_with_embedded_resource",
        "description": "A prompt with a resource in it.",
        "arguments": [{"name": "resourceUri", "description": "What to embed.", "required": True}],
    },
    {"name": "test_prompt_with_image", "description": "A prompt with an image in it."},
    {"name": "test_input_required_result_prompt", "description": "A prompt that asks first."},
]
NAMES = frozenset(prompt["name"] for prompt in PROMPTS)


def has(uri: str) -> bool:
    """Whether a fixture is at this URI."""
    return uri in {resource["uri"] for resource in RESOURCES} or _TEMPLATED.fullmatch(uri) is not None


async def read(_ctx: Ctx, params: Any) -> HandlerResult:
    """resources/read."""
    uri = str(params.uri)
    entry: dict[str, Any] = {"uri": uri, "mimeType": "text/plain", "text": "This is the content of the static text resource."}
    if uri == BINARY:
        entry = {"uri": uri, "mimeType": "image/png", "blob": IMAGE["data"]}
    elif found := _TEMPLATED.fullmatch(uri):
        data = {"id": found[1], "templateTest": True, "data": f"Data for ID: {found[1]}"}
        entry = {"uri": uri, "mimeType": "application/json", "text": json.dumps(data)}
    return {**COMPLETE, "contents": [entry]}


async def prompt(_ctx: Ctx, params: Any) -> HandlerResult:
    """prompts/get."""
    given = params.arguments or {}
    if params.name == "test_input_required_result_prompt":
        asked = {"user_context": asking.form("What context should the prompt use?", context="string")}
        if (missing := asking.missing(params, asked)) is not None:
            return missing
        return _messages(_text(f"Use this context: {asking.answers(params)['user_context']}"))
    if params.name == "test_prompt_with_arguments":
        return _messages(_text(f"Prompt with arguments: arg1='{given.get('arg1')}', arg2='{given.get('arg2')}'"))
    if params.name == "test_prompt_with_embedded_resource":
        inside = {"uri": given.get("resourceUri"), "mimeType": "text/plain", "text": "Embedded resource content for testing."}
        return _messages({"type": "resource", "resource": inside}, _text("Please process the embedded resource above."))
    if params.name == "test_prompt_with_image":
        return _messages(IMAGE, _text("Please analyze the image above."))
    return _messages(_text("This is a simple prompt for testing."))


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _messages(*parts: dict[str, Any]) -> dict[str, Any]:
    return {**COMPLETE, "messages": [{"role": "user", "content": part} for part in parts]}
