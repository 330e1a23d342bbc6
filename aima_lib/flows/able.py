"""Whether a pipeline can run here, and why not: its units must be here, and for each of its questions to a model one that can answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from aima_lib.flows.document import Pipeline, Step
from aima_lib.infra.store import Document, Store
from aima_lib.services.engine_catalog import TASK_TYPES

ASKS = "inference."
WORDS = {
    "chat": "chats", "complete": "completes", "embed": "embeds", "rerank": "ranks", "transcribe": "hears", "synthesize": "speaks",
    "generate_image": "draws", "generate_video": "films", "detect": "finds things in images",
}  # fmt: skip


class Able:
    """What the models of a home can answer. `meant` says what a name stands for here."""

    def __init__(self, store: Store, meant: Callable[[str], str]) -> None:
        self._meant = meant
        self._models = {model["id"]: model for model in store.find("model")}
        served = store.find("service") + store.find("instance")
        self._names = {name for row in served for name in (row["id"], row.get("name")) if name}

    def lacking(self, pipeline: Pipeline) -> tuple[list[str], list[str]]:
        """What nothing here can do for the pipeline, and what its caller must name because the models that it would take are not here."""
        never: list[str] = []
        named: list[str] = []
        for step in pipeline.steps:
            task = step.type.removeprefix(ASKS)
            if not step.type.startswith(ASKS) or task not in WORDS:
                continue
            model, field = _model_of(step, pipeline)
            if self._is_here(model) if model is not None else step.condition is not None:
                continue  # what has an `if` and no model of its own is left out where none is named
            if field is None and model is not None:
                never.append(f"{model}, which the step {step.id} asks")
            elif not self._can(task, _shows(step.input)):
                never.append(f"a model that {'sees and ' if _shows(step.input) else ''}{WORDS[task]}")
            elif model is not None:
                named.append(f"input.{field} (its own, {model}, is not)")
        return list(dict.fromkeys(never)), list(dict.fromkeys(named))

    def _is_here(self, model: str) -> bool:
        name = self._meant(model)
        return name in self._models or name in self._names

    def _can(self, task: str, shows: bool) -> bool:
        return any(_can(model, task, shows) for model in self._models.values())


def _can(model: Document, task: str, shows: bool) -> bool:
    """Whether a model is of a kind that answers this; one whose kind is unknown may be of any. llama.cpp embeds with any text model."""
    kind = model.get("type")
    fits = kind is None or kind in TASK_TYPES.get(task, ()) or (task == "embed" and kind == "llm")
    return fits and (not shows or "vision" in (model.get("capabilities") or ()))


def _model_of(step: Step, pipeline: Pipeline) -> tuple[str | None, str | None]:
    """The model that a step asks where nobody says otherwise, and the input that says otherwise, if one does."""
    given = step.input.get("model")
    written = str(given)
    if not written.startswith("${"):
        return (written, None) if "${" not in written else (None, "")
    field = written.removeprefix("${input.").removesuffix("}")
    spec = (pipeline.input or {}).get("properties", {}).get(field)
    default = spec.get("default") if isinstance(spec, Mapping) else None
    return (default, field) if isinstance(default, str) else (None, field)


def _shows(value: Any) -> bool:
    """Whether an argument has an image in it."""
    if isinstance(value, Mapping):
        return value.get("type") == "image_url" or any(map(_shows, value.values()))
    return isinstance(value, Sequence) and not isinstance(value, str) and any(map(_shows, value))


def reasons(missing: Sequence[str], never: Sequence[str], named: Sequence[str]) -> Iterator[str]:
    """The sentences of the above."""
    if missing:
        yield f"not here: {', '.join(missing)}"
    if never:
        yield f"not here: {', '.join(never)}"
    if named and not (missing or never):
        yield f"must be named: {', '.join(named)}"
