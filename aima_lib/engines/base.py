"""What an engine adapter is: a description of how one engine is started. Data only, nothing is run here but version questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
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


@dataclass(frozen=True, slots=True)
class Install:
    """What an engine's own environment is made of: packages, pinned, its own first; modules whose import shows that it works; disk."""

    packages: tuple[str, ...]
    modules: tuple[str, ...]
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class Builtin:
    """A model that comes with its engine."""

    id: str
    type: str
    format: str = "builtin"
    files: tuple[Path, ...] = ()
    license: str | None = None


class Engine(Protocol):
    """One adapter. `options` names the options it understands; their bounds stand in schemas/types/engine_options.json."""

    name: str
    title: str
    formats: tuple[str, ...]
    tasks: tuple[str, ...]
    types: tuple[str, ...] = ()  # of models that it serves; all when empty
    needs: tuple[str, ...] = ()  # patterns of files that a model must have, by which formats that share a name are told apart
    options: frozenset[str] = frozenset()
    dialects: tuple[str, ...] = (
        "openai",
    )  # whose HTTP APIs it speaks: openai (which AIMA itself needs), responses, anthropic; worker: ours
    devices: tuple[str, ...] = ("cpu", "gpu")
    asked: tuple[str, ...] = ("json_schema",)  # what a chat of it is tried with once it is ready, of json_schema and tools
    announces: bool = False  # it chooses its own port and says which: so it is a process, and no container could publish that port
    install: Install | None = None  # None: nothing that engine.install could fetch
    builtin: Builtin | None = None

    def find(self) -> Found:
        """Look whether the engine is here. May take a second: call it in a thread."""
        ...

    def gpus(self) -> list[str] | None:
        """Names of the GPUs this build can use; None when it cannot be asked without starting it. Call it in a thread."""
        ...

    def suits(self, model: Mapping[str, Any]) -> str | None:  # noqa: ARG002
        """Why it cannot serve a model whose format and type it knows, or None."""
        return None

    def plan(self, model: Mapping[str, Any], path: Path, device: Mapping[str, Any], options: Mapping[str, Any]) -> Launch:
        """How to start it. Pure."""
        ...


def misfit(engine: Engine, model: Mapping[str, Any]) -> str | None:
    """Why an engine cannot serve a model, or None."""
    id, kind = model["id"], model.get("type")
    if model.get("format") not in engine.formats:
        return f"{engine.name} reads {', '.join(engine.formats)}; {id} is {model.get('format')}"
    if engine.types and kind is not None and kind not in engine.types:
        return f"{engine.name} serves {', '.join(engine.types)}; {id} is {kind}"
    if kind is None and engine.types and "llm" not in engine.types and not engine.needs:
        return f"{engine.name} serves {', '.join(engine.types)}; what {id} is for is not known: import it with its type"
    names = [str(file["name"]) for file in model.get("files", ())]
    if absent := [pattern for pattern in engine.needs if not any(fnmatchcase(name, pattern) for name in names)]:
        return f"{engine.name} needs {', '.join(absent)} beside the weights, which {id} has not"
    if engine.builtin and "builtin" in engine.formats and model.get("format") == "builtin" and id != engine.builtin.id:
        return f"{engine.name} has {engine.builtin.id}; {id} belongs to another engine"
    return engine.suits(model)


def refuse_unknown(engine: Engine, options: Mapping[str, Any]) -> None:
    """Raise InvalidArgument for the first option the engine does not understand."""
    for name in options:
        if name not in engine.options and name != "launcher":
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


def headless(model: Mapping[str, Any]) -> str | None:
    """Why llama.cpp would answer with noise when asked for ranks: it takes any model for a cross-encoder."""
    if model.get("type") == "rerank" and "rerank" not in model.get("capabilities", ()):
        return f"{model['id']} has no head for ranks: its file says nothing of one"
    return None


def tasks_of(model: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[str, ...]:
    """What a llama.cpp engine started so will answer."""
    if model.get("type") in ("embedding", "rerank"):
        return ("embed",) if model["type"] == "embedding" else ("rerank",)
    return ("chat", "complete", "embed") if options.get("embedding") else ("chat", "complete")


def projector_of(model: Mapping[str, Any], path: Path) -> Path | None:
    """The file beside the weights that lets a model see or hear, if it has one."""
    names = [str(file["name"]) for file in model.get("files", ())[1:]]
    return next((path.with_name(name) for name in names if "mmproj" in name.lower()), None)


def batch_of(context: int, tasks: tuple[str, ...], options: Mapping[str, Any]) -> int:
    """Tokens computed at once. An embedding needs its whole text in one batch."""
    smallest = min(context, 2048) if {"embed", "rerank"} & set(tasks) else 512
    return int(options.get("batch_size", max(smallest, 32)))
