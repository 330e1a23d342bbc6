"""The paths of /v1 beyond text: OpenAI's for speech and images, Jina's and Cohere's for ranks. Each is a unit in another's words."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aima_lib.door import Caller
from aima_lib.errors import InvalidArgument
from aima_lib.gateway import Gateway
from aima_mcp.faces.http.exchange import MIB, Exchange
from aima_mcp.faces.http.problem import Refused
from aima_mcp.faces.openai.asked import Wrong, unknown_field

if TYPE_CHECKING:
    from aima_lib.services.modalities import Modalities

BODY_LIMIT = 64 * MIB
MOST_FIELDS, FIELD_BYTES = 30, 64 << 10
FORMS = ("json", "text", "srt", "verbose_json", "vtt")
STREAM = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store", "x-accel-buffering": "no"}
Fields = Mapping[str, Any]
Words = dict[str, str]


@dataclass(frozen=True, slots=True)
class MediaRoute:
    """One path: the unit and the task behind it, the fields it takes, and those it needs."""

    unit: str
    task: str
    title: str
    fields: Mapping[str, Any]
    needed: tuple[str, ...]
    kinds: tuple[str, ...] = ("application/json",)
    is_form: bool = False


TEXT, NUMBER, WHOLE = {"type": "string"}, {"type": "number"}, {"type": "integer"}
MODEL = {"type": "string", "minLength": 1, "description": "A service or a model, as GET /v1/models lists them."}
ROUTES: Mapping[str, MediaRoute] = {
    "/v1/rerank": MediaRoute(
        "inference.rerank", "rerank", "Jina, Cohere: rerank",
        {"model": MODEL, "query": TEXT, "documents": {"type": "array"}, "top_n": WHOLE, "return_documents": {"type": "boolean"}},
        ("query", "documents"),
    ),
    "/v1/audio/transcriptions": MediaRoute(
        "inference.transcribe", "transcribe", "OpenAI: transcribe speech",
        {
            "model": MODEL, "file": {"type": "string", "format": "binary"}, "language": TEXT, "prompt": TEXT,
            "response_format": {"enum": [*FORMS]}, "temperature": NUMBER, "stream": TEXT, "timestamp_granularities[]": TEXT,
        },
        ("file",), ("application/json", "text/plain", "text/event-stream"), True,
    ),
    "/v1/audio/speech": MediaRoute(
        "inference.synthesize", "synthesize", "OpenAI: speak",
        {"model": MODEL, "input": TEXT, "voice": TEXT, "response_format": TEXT, "speed": NUMBER, "stream_format": {"enum": ["audio"]}},
        ("input",), ("audio/*",),
    ),
    "/v1/images/generations": MediaRoute(
        "inference.generate_image", "generate_image", "OpenAI: make images",
        {
            "model": MODEL, "prompt": TEXT, "n": WHOLE, "size": TEXT, "response_format": {"enum": ["b64_json", None]},
            "output_format": {"enum": ["png", None]}, "user": TEXT, "seed": WHOLE, "steps": WHOLE, "negative_prompt": TEXT,
        },
        ("prompt",),
    ),
}  # fmt: skip


class MediaPaths:
    """Answers those paths."""

    def __init__(self, gateway: Gateway, found: Callable[[str, str, Caller], Awaitable[None]]) -> None:
        self._gateway, self._found = gateway, found
        self._answers: Mapping[str, Callable[[Exchange, dict[str, Any], Words], Awaitable[None]]] = {
            "/v1/rerank": self._rerank,
            "/v1/audio/transcriptions": self._transcribe,
            "/v1/audio/speech": self._speak,
            "/v1/images/generations": self._draw,
        }

    async def fields(self, exchange: Exchange, route: MediaRoute) -> dict[str, Any]:
        """What was asked, every field of it known. Raises Wrong."""
        body = await _form(exchange) if route.is_form else await exchange.json(BODY_LIMIT)
        if not isinstance(body, dict):
            raise Wrong("the body is not a JSON object")
        for name in body:
            if name not in route.fields:
                raise unknown_field(name, route.fields)
        if not isinstance(body.get("model"), str) or not body["model"]:
            raise Wrong("model must name a service or a model; GET /v1/models lists them", "model")
        for name in route.needed:
            if body.get(name) is None:
                raise Wrong(f"{name} is missing", name)
        return {name: value for name, value in body.items() if value is not None}

    async def answer(self, exchange: Exchange, asked: dict[str, Any], named: Words) -> None:
        """Answer, once the caller is known to be allowed to."""
        wrongs: list[Wrong] = []

        async def work() -> None:
            try:
                await self._answers[exchange.path](exchange, asked, named)
            except Wrong as wrong:
                wrongs.append(wrong)

        await exchange.while_connected(work)
        if wrongs:
            raise wrongs[0]

    @property
    def _modalities(self) -> Modalities:
        return self._gateway.services.modalities

    async def _arguments(self, exchange: Exchange, arguments: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
        """A unit's arguments, judged by its own schema: Wrong names the field as the caller wrote it. Defaults are filled in."""
        route = ROUTES[exchange.path]
        unit = self._gateway.find(route.unit)
        schema, judged = unit.definition["inputSchema"], {key: value for key, value in arguments.items() if value is not None}
        if error := unit.input.first_error(judged):
            at = error.partition(":")[0].partition(".")[0]
            field = names.get(at, at if at in route.fields else None)
            raise Wrong(error.replace(at, field, 1) if field else error, field)
        await self._found(judged["model"], route.task, exchange.caller)
        return {key: spec.get("default") for key, spec in schema["properties"].items()} | judged

    async def _rerank(self, exchange: Exchange, asked: dict[str, Any], named: Words) -> None:
        documents = asked["documents"]
        texts = [one.get("text") if isinstance(one, dict) else one for one in documents] if isinstance(documents, list) else documents
        given = await self._arguments(
            exchange, {"model": asked["model"], "query": asked["query"], "documents": texts, "top_n": asked.get("top_n")}, {}
        )
        found = await self._modalities.rerank(given, exchange.caller)
        rows = [{"index": row["index"], "relevance_score": row["score"]} for row in found["results"]]
        if asked.get("return_documents"):
            rows = [{**row, "document": {"text": texts[row["index"]]}} for row in rows]
        body = {
            "id": named["x-request-id"],
            "model": found["model"],
            "results": rows,
            "usage": {"total_tokens": found["usage"]["total_tokens"]},
        }
        await exchange.reply_json(body, headers=named)

    async def _transcribe(self, exchange: Exchange, asked: dict[str, Any], named: Words) -> None:
        form = asked.get("response_format", "json")
        if form not in FORMS:
            raise Wrong(f"response_format must be {', '.join(FORMS)}", "response_format")
        words = "word" if "word" in asked.get("timestamp_granularities[]", ()) else "segment"
        given = {
            "model": asked["model"],
            "audio": "AAAA",
            "language": asked.get("language"),
            "prompt": asked.get("prompt"),
            "timestamps": words,
        }
        request = await self._arguments(exchange, given, {"audio": "file"}) | {"audio": asked["file"], "temperature": _temperature(asked)}
        streamed = asked.get("stream") == "true"

        async def send(item: Mapping[str, Any]) -> None:
            if streamed and "content" in item["delta"]:
                await _event(exchange, {"type": "transcript.text.delta", "delta": item["delta"]["content"]}, named)

        found = await self._modalities.transcribe(request, exchange.caller, send)
        if streamed:
            await _event(exchange, {"type": "transcript.text.done", "text": found["text"]}, named)
            await exchange.write(b"", more=False)
        elif form in ("json", "verbose_json"):
            await exchange.reply_json({"text": found["text"]} if form == "json" else _verbose(found, words), headers=named)
        else:
            text = found["text"] + "\n" if form == "text" else _subtitles(found["segments"], form)
            await exchange.reply(200, text.encode(), "text/plain; charset=utf-8", named)

    async def _speak(self, exchange: Exchange, asked: dict[str, Any], named: Words) -> None:
        names = {"text": "input", "format": "response_format"}
        given = {
            "model": asked["model"], "text": asked["input"], "voice": asked.get("voice"), "format": asked.get("response_format", "mp3"),
            "speed": asked.get("speed"),
        }  # fmt: skip
        data, facts, _ = await self._modalities.spoken(await self._arguments(exchange, given, names), exchange.caller)
        await exchange.reply(200, data, facts["media_type"], named)

    async def _draw(self, exchange: Exchange, asked: dict[str, Any], named: Words) -> None:
        for name, only in (("response_format", "b64_json"), ("output_format", "png")):
            if asked.get(name, only) != only:
                raise Wrong(f"{name} can only be {only} here", name)
        given = {name: asked.get(name) for name in ("model", "prompt", "n", "seed", "steps", "negative_prompt")}
        given["size"] = None if asked.get("size") == "auto" else asked.get("size")
        made, _ = await self._modalities.drawn(await self._arguments(exchange, given, {}), exchange.caller)
        rows = [{"b64_json": base64.b64encode(data).decode(), "seed": facts["seed"]} for data, facts in made]
        await exchange.reply_json({"created": int(time.time()), "data": rows}, headers=named)


async def _form(exchange: Exchange) -> dict[str, Any]:
    """multipart/form-data: texts, the file's bytes, and lists where a name ends in []."""
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    if exchange.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        error = InvalidArgument("the body must be multipart/form-data, with the sound as file", hint="curl -F file=@speech.wav -F model=…")
        raise Refused(415, error, {"accept-post": "multipart/form-data"})
    body = await exchange.body(BODY_LIMIT)

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    found: dict[str, Any] = {}
    try:
        parser = MultiPartParser(exchange.headers, whole(), max_files=1, max_fields=MOST_FIELDS, max_part_size=FIELD_BYTES)
        form = await parser.parse()
        try:
            for name, value in form.multi_items():
                held = await value.read() if isinstance(value, UploadFile) else value
                if name.endswith("[]"):
                    found.setdefault(name, []).append(held)
                elif name in found:
                    raise Wrong(f"{name[:100]} stands twice", name[:100])
                else:
                    found[name] = held
        finally:
            await form.close()
    except (MultiPartException, KeyError, UnicodeDecodeError) as error:
        raise Wrong("the body is no multipart/form-data that can be read") from error
    if not isinstance(found.get("file", b""), bytes) or any(isinstance(value, bytes) for name, value in found.items() if name != "file"):
        raise Wrong("file must be a file, and nothing else may be one", "file")
    return found


def _temperature(asked: Fields) -> str | None:
    try:
        return None if "temperature" not in asked or not 0 <= float(asked["temperature"]) <= 1 else str(float(asked["temperature"]))
    except ValueError as error:
        raise Wrong("temperature must be a number from 0 to 1", "temperature") from error


async def _event(exchange: Exchange, event: Mapping[str, Any], named: Words) -> None:
    if not exchange.started:
        await exchange.start(200, STREAM | named)
    await exchange.write(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n")


def _verbose(found: Fields, words: str) -> dict[str, Any]:
    segments = [{"id": place, **{key: row[key] for key in ("start", "end", "text")}} for place, row in enumerate(found["segments"])]
    said = {"task": "transcribe", "language": found["language"], "duration": found["duration_seconds"], "text": found["text"]}
    if words == "word":
        return said | {"words": [word for row in found["segments"] for word in row.get("words", ())], "segments": segments}
    return said | {"segments": segments}


def _subtitles(segments: list[Fields], form: str) -> str:
    comma, lines = "," if form == "srt" else ".", [] if form == "srt" else ["WEBVTT\n"]
    for place, row in enumerate(segments, 1):
        number = [str(place)] if form == "srt" else []
        lines.append("\n".join([*number, f"{_clock(row['start'], comma)} --> {_clock(row['end'], comma)}", row["text"], ""]))
    return "\n".join(lines)


def _clock(seconds: float, comma: str) -> str:
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{comma}{thousandths:03}"
