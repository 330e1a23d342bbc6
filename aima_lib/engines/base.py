"""What an engine adapter is: a description of how one engine is started. Data only, nothing is run here but version questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aima_lib.errors import InvalidArgument
from aima_lib.infra.launch import Launch
from aima_lib.names import did_you_mean

DEFAULT_CONTEXT = 4096
# Copies of sliding windows and states that llama.cpp may keep for each request, to take up an older text again: memory that a start counts.
CHECKPOINTS = 3
TEMPLATES = Path(__file__).parent / "templates"
# llama.cpp's server speaks OpenAI's chats and responses and Anthropic's messages by itself.
LLAMA_DIALECTS = ("openai", "responses", "anthropic")
# Where a line of llama.cpp's output begins to repeat a request: a grammar, or the error it answered with.
LLAMA_DISCREET = (r"\S+ ::= ", r"(?<=got exception: )\{", r"(?<=error parsing grammar: ).", r"(?<=failed to parse grammar: ).")
# What every way to start llama.cpp understands.
LLAMA_OPTIONS = frozenset(
    {
        "context_length", "parallel", "threads", "gpu_layers", "batch_size", "flash_attention", "embedding", "pooling", "chat_template",
        "seed", "cache_type",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """Whether an engine can be started here: its version, or the reason why not."""

    version: str | None
    reason: str | None = None

    @property
    def installed(self) -> bool:
        return self.reason is None


class Engine(Protocol):
    """One adapter. `options` names the options it understands; their bounds stand in schemas/types/engine_options.json."""

    name: str
    title: str
    formats: tuple[str, ...]
    tasks: tuple[str, ...]
    options: frozenset[str]
    dialects: tuple[str, ...]  # whose HTTP APIs it speaks: openai (which AIMA itself needs), responses, anthropic

    def find(self) -> Found:
        """Look whether the engine is here. May take a second: call it in a thread."""
        ...

    def gpus(self) -> list[str] | None:
        """Names of the GPUs this build can use; None when it cannot be asked without starting it. Call it in a thread."""
        ...

    def plan(self, model: Mapping[str, Any], path: Path, device: Mapping[str, Any], options: Mapping[str, Any]) -> Launch:
        """How to start it. Pure."""
        ...


def refuse_unknown(engine: Engine, options: Mapping[str, Any]) -> None:
    """Raise InvalidArgument for the first option the engine does not understand."""
    for name in options:
        if name not in engine.options:
            hint = did_you_mean(name, engine.options) or f"it takes {', '.join(sorted(engine.options))}"
            call = {"unit": "engine.features", "arguments": {"name": engine.name}}
            raise InvalidArgument(f"{engine.name} has no option {name!r}", hint=hint, next=[call])


def context_of(model: Mapping[str, Any], options: Mapping[str, Any]) -> int:
    """Tokens one request may hold: what was asked, else its publisher's choice or 4096, and no more than it was trained for."""
    if "context_length" in options:
        return int(options["context_length"])
    wanted = max(1, int(defaults_of(model).get("context_length") or DEFAULT_CONTEXT))
    return min(wanted, int(model.get("context_length") or wanted))


def defaults_of(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters that the model's publisher set, by the names of types/model.json: numbers, and `stop`."""
    defaults = model.get("defaults") or {}
    return defaults.get("parameters") or {}


def tasks_of(model: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[str, ...]:
    """What a llama.cpp engine started so will answer."""
    if model.get("type") == "embedding":
        return ("embed",)
    return ("chat", "complete", "embed") if options.get("embedding") else ("chat", "complete")


def projector_of(model: Mapping[str, Any], path: Path) -> Path | None:
    """The file beside the weights that lets a model see or hear, if it has one."""
    names = [str(file["name"]) for file in model.get("files", ())[1:]]
    return next((path.with_name(name) for name in names if "mmproj" in name.lower()), None)


def batch_of(context: int, tasks: tuple[str, ...], options: Mapping[str, Any]) -> int:
    """Tokens computed at once. An embedding needs its whole text in one batch."""
    smallest = min(context, 2048) if "embed" in tasks else 512
    return int(options.get("batch_size", max(smallest, 32)))
