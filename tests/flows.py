"""Units for tests of the pipeline language: what their schemas say is all there is to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aima_lib.door import OWNER, Caller
from aima_lib.flows.check import check
from aima_lib.flows.document import Pipeline, read
from aima_lib.flows.source import Issue
from aima_lib.registry import Registry
from tests.workshop import unit, write_schemas

OVERVIEW = """\
name: voice_assistant
steps:
  - id: transcribe
    type: inference.transcribe
    input:
      model: "whisper"
      audio: "${input.audio}"
  - id: chat
    type: inference.chat
    input:
      model: "llama3.2"
      messages:
        - role: user
          content: "${steps.transcribe.text}"
  - id: synthesize
    type: inference.synthesize
    input:
      model: "tts-1"
      text: "${steps.chat.response}"
"""
STRING, INTEGER, NUMBER = {"type": "string", "description": "A text."}, {"type": "integer"}, {"type": "number"}


def closed(required: str = "", **properties: Any) -> dict[str, Any]:
    """The schema of an object with these fields and no others."""
    return {"type": "object", "required": required.split(), "additionalProperties": False, "properties": properties}


MESSAGE = closed(
    "role", role={"type": "string", "enum": ["system", "user", "assistant"]}, content={"type": ["string", "null", "array"], "items": {}}
)
BOX = closed("label confidence", label=STRING, confidence=NUMBER)
TIGHT = {"type": "string", "enum": ["mp3", "wav"]}
UNITS = [
    unit(
        "command",
        "inference.transcribe",
        inputSchema=closed("model audio", model=STRING, audio={**STRING, "description": "Sound, base64. Or a path."}, language=STRING),
        outputSchema=closed("text", text=STRING, duration_seconds=NUMBER, language={"type": ["string", "null"]}),
        primary="text",
    ),
    unit(
        "command",
        "inference.chat",
        scope="inference",
        inputSchema=closed(
            "model messages",
            model=STRING,
            messages={"type": "array", "items": MESSAGE, "minItems": 1, "writeOnly": True},
            max_tokens={**INTEGER, "minimum": 1},
            stop={"type": ["string", "array"], "items": STRING},
        ),
        outputSchema=closed("content", content=STRING, usage={"type": ["object", "null"], "properties": {"total_tokens": INTEGER}}),
        primary="content",
    ),
    unit(
        "command",
        "inference.synthesize",
        inputSchema=closed("model text", model=STRING, text=STRING, format=TIGHT, speed=NUMBER),
        outputSchema=closed("audio format", audio=STRING, format={"type": "string", "enum": ["wav", "flac"]}),
        primary="audio",
    ),
    unit(
        "command",
        "inference.detect",
        inputSchema=closed("image", image=STRING),
        outputSchema=closed("detections", detections={"type": "array", "items": BOX}),
    ),
    unit(
        "command",
        "inference.embed",
        inputSchema=closed("input", input={"anyOf": [STRING, {"type": "array", "items": STRING, "minItems": 1}]}),
        outputSchema=closed("embeddings", embeddings={"type": "array", "items": {"type": "array", "items": NUMBER}}),
        primary="embeddings",
    ),
    unit("query", "math.add", inputSchema=closed("a", a=INTEGER, b=INTEGER), outputSchema=closed("sum", sum=INTEGER), primary="sum"),
    unit("query", "any.thing", inputSchema={"type": "object", "properties": {}}, outputSchema={"type": "object", "properties": {}}),
    unit(
        "command",
        "model.delete",
        scope="delete",
        inputSchema=closed("model_id", model_id=STRING),
        outputSchema=closed("freed", freed=INTEGER),
        annotations={"readOnlyHint": False, "destructiveHint": True, "idempotentHint": False},
    ),
    unit("command", "secret.put", inputSchema=closed("value", value={"type": "string", "writeOnly": True, "format": "password"})),
    unit("command", "approval.approve", inputSchema=closed("id", id=STRING)),
    unit(
        "command",
        "pipeline.run",
        inputSchema=closed("pipeline_id", pipeline_id=STRING, input={"type": "object"}),
        outputSchema=closed("output", output={}),
        primary="output",
    ),
    unit("event", "model.pulled", payloadSchema=closed("model_id", model_id=STRING, size_bytes=INTEGER)),
]


def registry(folder: Path) -> Registry:
    """A registry of these units."""
    return Registry.described(write_schemas(folder, *UNITS))


def issues(registry: Registry, source: Any, caller: Caller = OWNER, **others: Pipeline) -> list[Issue]:
    """What `check` says of a document; `others` are the pipelines that there are."""
    return check(read(source), registry, caller, others.get)


def steps(*specs: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """A document with these steps."""
    return {"name": "test", "steps": list(specs), **keys}


def step(id: str, type: str = "math.add", input: Any = None, **keys: Any) -> dict[str, Any]:
    """A step's document."""
    return {"id": id, "type": type, "input": {"a": 1} if input is None else input, **keys}
