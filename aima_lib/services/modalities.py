"""Inference beyond text: speech, images, video, detection, and ranks. Each goes to its engine in OpenAI's shape where there is one."""

from __future__ import annotations

import base64
import io
import secrets
import wave
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from aima_lib.door import Caller
from aima_lib.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from aima_lib.infra.progress import Send, silent
from aima_lib.infra.store import Document
from aima_lib.names import did_you_mean
from aima_lib.services.allowance import Allowance
from aima_lib.services.engine import EngineService
from aima_lib.services.inference import InferenceService
from aima_lib.services.media import MAGIC, URI, Media
from aima_lib.services.routes import Endpoint
from aima_lib.services.turn import Turn
from aima_lib.services.wire import Form, events, parsed, translated, whole

Request = Mapping[str, Any]
LARGEST_ANSWER = 512 << 20
MEDIA_TYPES = {"wav": "audio/wav", "pcm": "audio/pcm", "mp3": "audio/mpeg", "flac": "audio/flac", "opus": "audio/ogg", "aac": "audio/aac"}


class Modalities:
    """Asks the engine that serves a model; what comes out too big for a reply is kept by `media`."""

    def __init__(self, inference: InferenceService, engines: EngineService, media: Media, allowance: Allowance) -> None:
        self._inference, self._engines, self._media, self._allowance = inference, engines, media, allowance

    @asynccontextmanager
    async def _asked(
        self, task: str, path: str, model: str, body: dict[str, Any], caller: Caller, send: Send = silent
    ) -> AsyncIterator[tuple[Turn, Endpoint]]:
        """The answer of whoever serves the model, recorded and charged. `body` gets the model's name there."""
        charge = self._allowance.account(caller)
        endpoint = await self._inference.find(model, task, charge, send)
        body["model"] = endpoint.model
        if "worker" in self._dialects(endpoint):
            body |= {name: value for name, value in self._own(task, body).items() if name not in body}
        async with self._inference.turn(endpoint, task, path, body, charge) as turn:
            yield turn, turn.endpoint

    @staticmethod
    def _own(task: str, body: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG004
        """What our worker takes besides: transcripts bit by bit, and a seed, so that what was made can be made again."""
        if task == "transcribe":
            return {"stream": "true"}
        return {"seed": secrets.randbelow(1 << 32)} if task in ("generate_image", "generate_video") else {}

    async def rerank(self, request: Request, caller: Caller) -> Document:
        """Documents by how well they answer the query, best first. Raises as `InferenceService.resolve`."""
        body = _given(request, "query", "documents", "top_n")
        async with self._asked("rerank", "/v1/rerank", request["model"], body, caller) as (turn, endpoint):
            reply = await whole(endpoint.address, turn.line, body)
            rows = [{"index": int(row["index"]), "score": float(row["relevance_score"])} for row in reply["results"]]
            rows.sort(key=lambda row: -row["score"])
            tokens = int((reply.get("usage") or {}).get("total_tokens") or 0)
            turn.answer.usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens, "cached_tokens": None}
            return _answered(endpoint, results=rows[: request.get("top_n")], usage=turn.answer.usage)

    async def transcribe(self, request: Request, caller: Caller, send: Send) -> Document:
        """Speech as text; `send` gets {delta: {content}} as it is heard, where the engine says it bit by bit."""
        audio, media_type = await self._media.take(request["audio"], caller, "audio")
        form = Form(file=(f"audio.{_suffix(audio, media_type)}", audio), response_format="verbose_json")
        form |= _given(request, "language", "prompt", "timestamps", "temperature")
        if request.get("timestamps") == "word":
            form["timestamp_granularities[]"] = "word"
        async with self._asked("transcribe", "/v1/audio/transcriptions", request["model"], form, caller, send) as (turn, endpoint):
            said = await _heard(turn, form, send)
        segments = [_segment(row) for row in said.get("segments") or ()]
        if request.get("timestamps") == "word" and not any("words" in segment for segment in segments):
            _spread(segments, said.get("words") or ())
        language, seconds = said.get("language"), said.get("duration")
        return _answered(
            endpoint, text=str(said.get("text", "")).strip(), segments=segments, language=language,
            duration_seconds=float(seconds) if seconds is not None else _wav(audio)[1],
        )  # fmt: skip

    async def synthesize(self, request: Request, caller: Caller) -> Document:
        """Text as speech."""
        data, facts, endpoint = await self.spoken(request, caller)
        audio = await self._media.give(data, facts["media_type"], caller, "inference.synthesize")
        return _answered(endpoint, audio=audio, **facts)

    async def spoken(self, request: Request, caller: Caller) -> tuple[bytes, Document, Endpoint]:
        """The bytes of a speech, what is known of them, and who spoke."""
        form = request.get("format") or "wav"
        body = {"input": request["text"], "response_format": form, **_given(request, "voice", "speed")}
        async with self._asked("synthesize", "/v1/audio/speech", request["model"], body, caller) as (turn, endpoint):
            data = await _file(turn, body)
        headers = turn.line.facts
        rate, seconds = _wav(data) if form == "wav" else (None, None)
        rate, seconds = _number(headers.get("x-sample-rate")) or rate, _number(headers.get("x-duration-seconds")) or seconds
        facts = {"format": form, "media_type": MEDIA_TYPES[form], "sample_rate": None if rate is None else int(rate)}
        voice = headers.get("x-voice") or request.get("voice")
        return data, {**facts, "duration_seconds": seconds, "size_bytes": len(data), "voice": voice}, endpoint

    async def joined(self, parts: Sequence[Mapping[str, Any]], caller: Caller) -> Mapping[str, Any] | None:
        """Speeches one after the other, as if they had been one; None where they are no WAV of one kind. Their blobs are dropped."""
        if len(parts) == 1:
            return parts[0]
        sounds = [(await self._media.take(part["audio"], caller, "audio"))[0] for part in parts]
        if (data := _joined(sounds)) is None:
            return None
        audio = await self._media.give(data, MEDIA_TYPES["wav"], caller, "inference.synthesize")
        for part in parts:
            if str(part["audio"]).startswith(URI):
                await self._media.delete(part["audio"].removeprefix(URI), caller)
        return {**parts[0], "audio": audio, "duration_seconds": _wav(data)[1], "size_bytes": len(data)}

    async def generate_image(self, request: Request, caller: Caller) -> Document:
        """Images of a prompt."""
        made, endpoint = await self.drawn(request, caller)
        images = []
        for data, facts in made:
            image = await self._media.give(data, facts["media_type"], caller, "inference.generate_image")
            images.append({"image": image, **facts})
        return _answered(endpoint, images=images)

    async def drawn(self, request: Request, caller: Caller) -> tuple[list[tuple[bytes, Document]], Endpoint]:
        """The bytes of each image with what is known of it, and who drew."""
        body = {"response_format": "b64_json", **_given(request, "prompt", "negative_prompt", "size", "steps", "n", "seed")}
        async with self._asked("generate_image", "/v1/images/generations", request["model"], body, caller) as (turn, endpoint):
            reply = await whole(endpoint.address, turn.line, body)
        made = []
        for row in reply["data"]:
            if "b64_json" not in row:
                raise Unavailable(f"{endpoint.address.name} gave no image", hint="does it answer with URLs? AIMA fetches none")
            data = base64.b64decode(row["b64_json"])
            width, height = row.get("width"), row.get("height")
            if width is None and data.startswith(b"\x89PNG"):
                width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
            kind = next((kind for magic, kind in MAGIC if data.startswith(magic)), "application/octet-stream")
            facts = {"media_type": kind, "width": width, "height": height, "seed": row.get("seed"), "size_bytes": len(data)}
            made.append((data, facts))
        return made, endpoint

    async def generate_video(self, request: Request, caller: Caller) -> Document:
        """A video of a prompt."""
        body = {"seconds": request["duration_seconds"], **_given(request, "prompt", "size", "steps", "fps", "format", "seed")}
        async with self._asked("generate_video", "/v1/video/generations", request["model"], body, caller) as (turn, endpoint):
            data = await _file(turn, body)
        headers, kind = turn.line.facts, turn.line.content_type or "application/octet-stream"
        facts = {name: _number(headers.get(f"x-{name}")) for name in ("width", "height", "fps", "frames", "seed")}
        whole = {name: None if value is None else int(value) for name, value in facts.items()}
        video = await self._media.give(data, kind, caller, "inference.generate_video")
        seconds = _number(headers.get("x-duration-seconds"))
        return _answered(
            endpoint, video=video, format=kind.rpartition("/")[2], media_type=kind, size_bytes=len(data), duration_seconds=seconds, **whole
        )  # fmt: skip

    async def detect(self, request: Request, caller: Caller) -> Document:
        """What is in an image, and where."""
        image, _ = await self._media.take(request["image"], caller, "image")
        body = {"image": base64.b64encode(image).decode(), **_given(request, "threshold", "labels")}
        async with self._asked("detect", "/v1/detections", request["model"], body, caller) as (turn, endpoint):
            reply = await whole(endpoint.address, turn.line, body)
        if unknown := reply.get("unknown"):
            hint = did_you_mean(unknown, reply["labels"]) or f"it knows {', '.join(reply['labels'][:20])}"
            raise InvalidArgument(f"{endpoint.model} knows no label {unknown!r}", hint=hint)
        return _answered(endpoint, **{name: reply[name] for name in ("detections", "width", "height")})

    async def voices(self, model: str | None, allowed: frozenset[str] | None) -> Sequence[Document]:
        """The voices of one model, or of all that speak now."""
        rows = [row for row in await self._inference.models("synthesize", allowed) if row["status"] == "ready"]
        if model is not None:
            if allowed is not None and not any(model in (row["id"], row["model_id"]) for row in rows):
                raise NotFound(f"no voice of {model!r} for you", next=[{"unit": "inference.models", "arguments": {}}])
            self._inference.resolve(model, "synthesize")
            rows = [row for row in rows if model in (row["id"], row["model_id"], row["instance_id"])][:1] or [{"id": model}]
        found: list[Document] = []
        for row in rows:
            endpoint = self._inference.resolve(row["id"], "synthesize")
            status, said = await self._engines.wire.get(endpoint.address, "/props", timeout=10)
            voices = said.get("voices") if status == 200 else None
            if voices is None and model is not None:
                raise FailedPrecondition(f"{model} does not say which voices it has", hint="its documentation does")
            for voice in voices or ():
                found.append({**dict.fromkeys(("name", "language", "gender")), **voice, "model": row["id"]})
        return found

    def _dialects(self, endpoint: Endpoint) -> tuple[str, ...]:
        return self._engines.catalog.adapter(endpoint.instance["engine"]).dialects


def _answered(endpoint: Endpoint, **said: Any) -> Document:
    return {"model": endpoint.model, **said, "placement": endpoint.instance["placement"]}


def _given(request: Request, *names: str) -> dict[str, Any]:
    return {name: request[name] for name in names if request.get(name) is not None}


async def _file(turn: Turn, body: Mapping[str, Any]) -> bytes:
    """The file that an engine answered with. Raises AimaError for anything but 200."""
    parts, size = list[bytes](), 0
    async for part in turn.line.pieces():
        parts.append(part)
        size += len(part)
        if size > LARGEST_ANSWER:
            raise Unavailable(f"{turn.endpoint.address.name} answered more than {LARGEST_ANSWER >> 20} MiB")
    if turn.line.status != 200:
        raise translated(turn.endpoint.address, turn.line.status, parsed(b"".join(parts)), body)
    return b"".join(parts)


async def _heard(turn: Turn, form: Form, send: Send) -> Mapping[str, Any]:
    """The whole transcript; `send` gets what comes before it, where the engine says it bit by bit."""
    if turn.line.content_type != "text/event-stream":
        found: Mapping[str, Any] = await whole(turn.endpoint.address, turn.line, form)
        return found
    async with aclosing(events(turn.endpoint.address, turn.line, form)) as items:
        async for event in items:
            if event.get("type") != "transcript.text.delta":
                return event
            turn.answer.begun()
            await send({"delta": {"content": event["delta"]}})
    raise Unavailable(f"{turn.endpoint.address.name} ended its transcript in the middle")


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _wav(data: bytes) -> tuple[float | None, float | None]:
    """Samples a second and seconds of a WAV, where it is one."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            return file.getframerate(), round(file.getnframes() / file.getframerate(), 3)
    except (wave.Error, EOFError, ZeroDivisionError):
        return None, None


def _joined(sounds: Sequence[bytes]) -> bytes | None:
    """WAV files of one kind as one."""
    kinds, frames = set(), []
    try:
        for sound in sounds:
            with wave.open(io.BytesIO(sound)) as file:
                kinds.add(file.getparams()[:3])
                frames.append(file.readframes(file.getnframes()))
    except (wave.Error, EOFError):
        return None
    if len(kinds) != 1:
        return None
    channels, width, rate = kinds.pop()
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as whole:
        whole.setparams((channels, width, rate, 0, "NONE", ""))
        whole.writeframes(b"".join(frames))
    return buffer.getvalue()


def _suffix(audio: bytes, media_type: str | None) -> str:
    """Remote engines judge a file by its name."""
    known = {"audio/mpeg": "mp3", "audio/ogg": "ogg", "audio/flac": "flac", "audio/mp4": "m4a", "audio/webm": "webm", "video/mp4": "mp4"}
    magic = ((b"RIFF", "wav"), (b"OggS", "ogg"), (b"fLaC", "flac"), (b"ID3", "mp3"), (b"\x1aE", "webm"))
    return known.get(media_type or "") or next((name for head, name in magic if audio.startswith(head)), "wav")


def _segment(row: Mapping[str, Any]) -> Document:
    found: Document = {"start": float(row["start"]), "end": float(row["end"]), "text": str(row["text"]).strip()}
    if row.get("words"):
        found["words"] = [_word(word) for word in row["words"]]
    return found


def _word(row: Mapping[str, Any]) -> Document:
    return {"word": str(row["word"]).strip(), "start": float(row["start"]), "end": float(row["end"])}


def _spread(segments: Sequence[Document], words: Sequence[Mapping[str, Any]]) -> None:
    """OpenAI lists words beside the segments; here each is within its own."""
    for segment in segments:
        segment["words"] = [_word(word) for word in words if segment["start"] <= float(word["start"]) < segment["end"]]
