"""Pipelines built in Python: calls of units as methods of a flow, and the document that comes of them. No host is needed.

    flow = Aima.flow("voice_assistant")
    heard = flow.inference.transcribe(id="transcribe", model="whisper", audio=flow.input.audio)
    said = flow.inference.chat(id="chat", model="llama3.2", messages=[{"role": "user", "content": heard.text}])
    flow.output(text=said.response)
    flow.document                                   # what pipeline.create takes

Attributes of a call are references to its output; written into a text with f"…{heard.text}…" they stand there as `${steps.…}`.
"""

from __future__ import annotations

import json
import keyword
from collections.abc import Mapping
from functools import cache
from typing import Any

from aima_lib.errors import AlreadyExists, InvalidArgument
from aima_lib.flows.document import Pipeline, as_document, read
from aima_lib.flows.source import NAME
from aima_lib.names import did_you_mean, fresh
from aima_lib.registry import Registry, Unit

OPTIONS = frozenset({"depends_on", "if", "for_each", "max_parallel", "retry", "timeout_seconds", "on_error", "on_unknown", "compensate"})
OPTIONS |= {"cache_seconds", "approval"}


class Ref:
    """A reference that grows with each attribute, key and index: `.text`, `["a key"]`, `[0]`, and `[:]` for each of a list."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Ref:
        if name.startswith("__"):
            raise AttributeError(name)
        return Ref(f"{self._path}.{name.removesuffix('_') if keyword.iskeyword(name.removesuffix('_')) else name}")

    def __getitem__(self, key: str | int | slice) -> Ref:
        if isinstance(key, slice):
            return Ref(f"{self._path}[*]")
        return Ref(
            f"{self._path}.{key}"
            if isinstance(key, str) and NAME.fullmatch(key)
            else f"{self._path}[{json.dumps(key, ensure_ascii=False)}]"
        )

    def __iter__(self) -> Any:
        raise TypeError(f"{self} is known only when the pipeline runs; for_each goes through a list then")

    def __str__(self) -> str:
        return f"${{{self._path}}}"

    __repr__ = __str__


class Flow:
    """A pipeline in the making.

    input: what it is given, e.g. `flow.input.audio`.  item: what for_each is at.  run, config: as `${run.id}` and `${config.x}`.
    """

    def __init__(self, name: str, *, description: str = "", input: Mapping[str, Any] | None = None, **config: Any) -> None:
        self._document: dict[str, Any] = {"name": name, "steps": [], "description": description, "input": input, "config": config}
        self._ids: list[str] = []
        self.input, self.item, self.run, self.config = Ref("input"), Ref("item"), Ref("run"), Ref("config")

    def step(self, type: str, input: Mapping[str, Any] | None = None, *, id: str | None = None, **options: Any) -> Ref:
        """Add a call of any unit; returns the reference to its output.

        id: the unit's own name when not given, with a number where that is taken.
        options: the keys of a step in schemas/pipeline.schema.json; `if_` for `if`.

        Raises:
            InvalidArgument: an option or an argument that does not exist.
            AlreadyExists: the id is taken.
        """
        id = id or fresh(type.rpartition(".")[2], self._ids)
        if id in self._ids:
            raise AlreadyExists(f"there is a step {id!r} already")
        spec = {key.removesuffix("_"): value for key, value in options.items() if value is not None}
        if wrong := sorted(set(spec) - set(OPTIONS)):
            raise InvalidArgument(f"a step has no {wrong[0]!r}", hint=did_you_mean(wrong[0], OPTIONS))
        if (parallel := spec.pop("max_parallel", None)) is not None:
            spec["for_each"] = {"items": spec.get("for_each"), "max_parallel": parallel}
        self._ids.append(id)
        self._document["steps"].append(_written({"id": id, "type": type, "input": dict(input or {}), **spec}))
        return Ref(f"steps.{id}")

    def output(self, value: Any = None, /, **fields: Any) -> None:
        """Say what the pipeline gives back: one value, or fields."""
        self._document["output"] = _written(fields if value is None else value)

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline as it is now. Raises InvalidArgument where it is none."""
        return read({key: value for key, value in self._document.items() if value})

    @property
    def document(self) -> dict[str, Any]:
        """The document as it is now: what pipeline.create and pipeline.validate take. Raises InvalidArgument where it is none."""
        return as_document(self.pipeline)

    def __getattr__(self, domain: str) -> FlowDomain:
        units = [unit for unit in _described().of("command", "query") if unit.domain == domain]
        if domain.startswith("_") or not units:
            raise AttributeError(f"AIMA has no domain called {domain!r}")
        return FlowDomain(self, units)


class FlowDomain:
    """The units of one domain, as methods that add a step: arguments are the unit's, `id` and `step={…}` the step's own keys."""

    def __init__(self, flow: Flow, units: list[Unit]) -> None:
        for unit in units:
            setattr(self, f"{unit.action}_" if keyword.iskeyword(unit.action) else unit.action, _adder(flow, unit))


def flow(name: str, *, description: str = "", input: Mapping[str, Any] | None = None, **config: Any) -> Flow:
    """Begin a pipeline. `input` is a JSON Schema of what it takes; `config` are the keys of the document's config."""
    return Flow(name, description=description, input=input, **config)


@cache
def _described() -> Registry:
    return Registry.described()


def _adder(flow: Flow, unit: Unit) -> Any:
    known = unit.definition["inputSchema"]["properties"]

    def add(*, id: str | None = None, step: Mapping[str, Any] | None = None, **arguments: Any) -> Ref:
        if wrong := sorted(set(arguments) - set(known)):
            near = did_you_mean(wrong[0], known) or f"there are: {', '.join(known)}"
            raise InvalidArgument(f"{unit.name} takes no {wrong[0]!r}", hint=near)
        return flow.step(unit.name, {key: value for key, value in arguments.items() if value is not None}, id=id, **(step or {}))

    add.__name__, add.__qualname__, add.__doc__ = unit.action, unit.name, str(unit.definition["description"])
    return add


def _written(value: Any) -> Any:
    """The value with references as the text that they are in a document."""
    if isinstance(value, Ref):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _written(item) for key, item in value.items()}
    return [_written(item) for item in value] if isinstance(value, list | tuple) else value
