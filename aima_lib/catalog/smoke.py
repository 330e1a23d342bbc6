"""The smallest question that shows a service works, by what its model does."""

from __future__ import annotations

import base64
import io
import struct
import time
import wave
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aima_lib.errors import FailedPrecondition

Ask = Callable[[str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
TOKENS = 8
SAID = 400  # characters of an answer that are kept


async def smoke(kind: str, service_id: str, ask: Ask) -> dict[str, Any]:
    """Ask a service once; returns {unit, answer, duration_ms}, where answer says in words what came.

    Raises:
        FailedPrecondition: it answered with nothing.
        AimaError: it did not answer.
    """
    unit, arguments, told = QUESTIONS[kind]
    began = time.monotonic()
    answer = told(await ask(unit, {"model": service_id, **arguments()}))
    if not answer:
        raise FailedPrecondition(f"{service_id} answered {unit} with nothing", hint="service.logs has what its engine wrote")
    return {"unit": unit, "answer": answer[:SAID], "duration_ms": round((time.monotonic() - began) * 1000, 1)}


def _chat() -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": TOKENS, "temperature": 0}


def _said(answer: Mapping[str, Any]) -> str:
    return str(answer["content"] or answer["reasoning_content"] or ("a tool call" if answer["tool_calls"] else ""))


def silence() -> str:
    """Half a second of nothing, as WAV."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(b"\0\0" * 8_000)
    return base64.b64encode(buffer.getvalue()).decode()


def grey(side: int = 32) -> str:
    """A small grey picture, as PNG."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = zlib.compress((b"\0" + b"\x80" * side) * side)
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return base64.b64encode(png).decode()


def _counted(answer: Mapping[str, Any]) -> str:
    return f"{len(answer['embeddings'])} vectors of {answer['dimensions']}" if answer["dimensions"] else ""


QUESTIONS: Mapping[str, tuple[str, Callable[[], dict[str, Any]], Callable[[Mapping[str, Any]], str]]] = {
    "llm": ("inference.chat", _chat, _said),
    "vlm": ("inference.chat", _chat, _said),
    "embedding": ("inference.embed", lambda: {"input": ["hello"]}, _counted),
    "rerank": (
        "inference.rerank",
        lambda: {"query": "where do cats sleep", "documents": ["cats sleep on the sofa", "stocks fell"]},
        lambda answer: f"{len(answer['results'])} ranks" if answer["results"] else "",
    ),
    "tts": (
        "inference.synthesize",
        lambda: {"text": "hello"},
        lambda answer: f"{answer['duration_seconds']:.2f} s of sound" if answer["duration_seconds"] else "",
    ),
    "asr": ("inference.transcribe", lambda: {"audio": silence()}, lambda answer: f"heard {answer['duration_seconds'] or 0:.2f} s"),
    "diffusion": (
        "inference.generate_image",
        lambda: {"prompt": "3", "seed": 1},
        lambda answer: f"{len(answer['images'])} image" if answer["images"] else "",
    ),
    "video_gen": (
        "inference.generate_video",
        lambda: {"prompt": "3", "duration_seconds": 1, "seed": 1},
        lambda answer: f"{answer['frames']} frames" if answer["frames"] else "",
    ),
    "detection": ("inference.detect", lambda: {"image": grey()}, lambda answer: f"looked at {answer['width']}x{answer['height']}"),
}
