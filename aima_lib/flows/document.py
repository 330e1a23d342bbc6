"""A pipeline's document: read from YAML, JSON or a mapping, and written back as JSON. Its shape is schemas/pipeline.schema.json.

What needs the units to judge (do they exist, do the types fit) is `check`'s; here a document is read for what it says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import islice
from typing import Any

from aima_lib.errors import AimaError, InvalidArgument
from aima_lib.flows import expression
from aima_lib.flows.judge import Judge
from aima_lib.flows.reference import Reference, references
from aima_lib.flows.source import LONGEST, TOLD, Issue, Path, Places, in_order, parse, plain, refusal
from aima_lib.registry import SCHEMAS

REFERENCES = 2_000  # in one document
EXPRESSIONS = 64 * 1024  # characters of all in one document
ROOTS = {"input", "item", "run", "config", "steps", "event", "output"}
WORDS = {"fail", "continue", "retry", "true", "false", "null", "and", "or", "not", "in", "default"}
RESERVED = frozenset(ROOTS | WORDS)  # no step is called so: each means something else


@dataclass(frozen=True)
class Retry:
    """How often a call is tried (1: once), the wait before the second attempt (it doubles each time), and after which error codes.

    Without codes: after those errors that say they are retryable.
    """

    attempts: int = 1
    backoff_seconds: float = 1.0
    on: tuple[str, ...] = ()


@dataclass(frozen=True)
class Call:
    """A unit and its arguments."""

    type: str
    input: Any


@dataclass(frozen=True)
class ForEach:
    """A list, or a reference to one, and how many of it at the same time at most."""

    items: Any
    max_parallel: int | None = None


@dataclass(frozen=True)
class Step:
    """One call of a unit.

    condition: the `if`, an expression. Where it does not hold the step is skipped: its output is None. It is asked once, before for_each.
    for_each: the call is made once for each item; the step's output is the list of the outputs, in the order of the items, None for one
        that failed where on_error is continue.
    on_error: "fail"; "continue": the output is None; or the id of the step that runs instead, only then. Its output, and its primary field,
        then stand for this step's.
    compensate: made when the run fails or is cancelled after this step was done, the last step first. Its input may refer to this step's
        own output. Of a step with for_each it is made once for each item, with `item`, and with that item's output as the step's.
    approval: the call waits until somebody approves it.
    """

    id: str
    type: str
    input: Mapping[str, Any] = field(default_factory=dict)
    depends_on: tuple[str, ...] = ()
    condition: str | None = None
    for_each: ForEach | None = None
    retry: Retry = Retry()
    timeout_seconds: float | None = None
    on_error: str = "fail"
    on_unknown: str = "fail"
    compensate: Call | None = None
    cache_seconds: float | None = None
    approval: bool = False

    @cached_property
    def reads(self) -> tuple[Reference, ...]:
        """Every reference of its input, its `if` and its for_each."""
        condition = expression.read_by(self.condition) if self.condition is not None else []
        return (*references([self.input, self.for_each and self.for_each.items]), *condition)

    @cached_property
    def needs(self) -> frozenset[str]:
        """The steps it waits for."""
        return frozenset({*self.depends_on, *(found.step for found in self.reads if found.step is not None)})

    @property
    def fallback(self) -> str | None:
        """The step that runs when this one failed, if there is one."""
        return None if self.on_error in ("fail", "continue") else self.on_error


@dataclass(frozen=True)
class Pipeline:
    """A whole document. `input` is a JSON Schema, or None where the inputs are those that the steps refer to."""

    name: str
    steps: tuple[Step, ...]
    description: str = ""
    input: Mapping[str, Any] | None = None
    output: Any = None
    config: Mapping[str, Any] = field(default_factory=dict)
    places: Places = field(default_factory=Places, compare=False, repr=False)

    @property
    def constants(self) -> Mapping[str, Any]:
        """What `${config.x}` reads: the scope's "config"."""
        found: Mapping[str, Any] = self.config.get("constants", {})
        return found

    @cached_property
    def by_id(self) -> Mapping[str, Step]:
        """The steps by their ids."""
        return {step.id: step for step in self.steps}

    @cached_property
    def fallbacks(self) -> Mapping[str, str]:
        """The steps that run only when another failed: each with that other."""
        return {step.fallback: step.id for step in self.steps if step.fallback is not None}

    @property
    def result(self) -> Any:
        """What to resolve for the run's output: `output`, or the output of each step that no other waits for, by id."""
        if self.output is not None:
            return self.output
        inner = {need for step in self.steps for need in step.needs} | set(self.fallbacks)
        return {step.id: f"${{steps.{step.id}}}" for step in self.steps if step.id not in inner}


def read(source: str | bytes | Mapping[str, Any]) -> Pipeline:
    """The pipeline that a document describes: YAML or JSON text, or the mapping it holds.

    Raises:
        InvalidArgument: it is none. The details hold issues[] {path, line, column, message, suggestion}.
    """
    document, places = _value(source)
    for wrong in (_judge().issues(document, (), places), _unreadable(document, places)):  # the second takes the shape for granted
        if issues := [*islice(wrong, TOLD)]:
            raise refusal("this is no pipeline", in_order(issues))
    steps = tuple(_step(spec) for spec in document["steps"])
    rest = {key: document[key] for key in ("name", "description", "input", "output", "config") if document.get(key) is not None}
    return Pipeline(steps=steps, places=places, **rest)


def as_document(pipeline: Pipeline) -> dict[str, Any]:
    """The document as JSON, without what says the default. `read` makes the same pipeline of it."""
    document = {
        "name": pipeline.name,
        "description": pipeline.description,
        "input": pipeline.input,
        "steps": [_spec(step) for step in pipeline.steps],
        "output": pipeline.output,
        "config": pipeline.config or None,
    }
    written: dict[str, Any] = json.loads(json.dumps({key: value for key, value in document.items() if value not in (None, "")}))
    return written


def _value(source: str | bytes | Mapping[str, Any]) -> tuple[Any, Places]:
    if isinstance(source, Mapping):
        return plain(source), Places()
    if isinstance(source, bytes):
        try:
            source = source[: 4 * LONGEST + 1].decode("utf-8")
        except UnicodeDecodeError as error:
            raise refusal("this is no document", [Issue("", f"it is not UTF-8 at byte {error.start}")]) from error
    try:
        return parse(source)
    except InvalidArgument:
        found = _json(source)  # YAML takes most of JSON, and not the pairs that JSON writes what lies beyond \\uffff in
        if found is None:
            raise
        return found


def _json(text: str) -> tuple[Any, Places] | None:
    """The text as JSON, where it is that."""
    if len(text) > LONGEST or not text.lstrip().startswith("{"):
        return None
    try:
        return plain(json.loads(text, object_pairs_hook=_unique)), Places()
    except (ValueError, RecursionError):
        return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("a key is there twice")
    return found


@cache
def _judge() -> Judge:
    return Judge(json.loads((SCHEMAS / "pipeline.schema.json").read_text(encoding="utf-8")))


def _unreadable(document: Mapping[str, Any], places: Places) -> Iterator[Issue]:
    """Ids that are taken, references and expressions that are not well written."""
    if json.dumps(document).count("${") > REFERENCES:
        yield places.issue(("steps",), f"it holds more than {REFERENCES} references", "one pipeline can run another")
        return
    if sum(len(str(spec.get("if", ""))) for spec in document["steps"]) > EXPRESSIONS:
        yield places.issue(("steps",), f"its expressions have more than {EXPRESSIONS} characters")
        return
    first: dict[str, int] = {}
    for place, spec in enumerate(document["steps"]):
        step = ("steps", place)
        if (id := spec["id"]) in RESERVED:
            yield places.issue((*step, "id"), f"no step is called {id}: that word means something else", f"call it {id}_step")
        if first.setdefault(id, place) != place:
            yield places.issue((*step, "id"), f"steps[{first[id]}] is called {id!r} too", "give each step an id of its own")
        yield from _badly_written(spec.get("input"), (*step, "input"), places)
        yield from _badly_written(spec.get("for_each"), (*step, "for_each"), places)
        yield from _badly_written((spec.get("compensate") or {}).get("input"), (*step, "compensate", "input"), places)
        if isinstance(spec.get("if"), str):
            yield from _badly_expressed(spec["if"], (*step, "if"), places)
    yield from _badly_written(document.get("output"), ("output",), places)
    config = document.get("config", {})
    if "${" in json.dumps(config.get("constants")) or "${" in json.dumps(config.get("schedule")):
        yield places.issue(("config",), "a constant, and the input of a schedule, hold no reference", "put the reference into the step")
    for place, trigger in enumerate(config.get("triggers", [])):
        around = ("config", "triggers", place)
        yield from _badly_expressed(trigger["when"], (*around, "when"), places)
        yield from _badly_written(trigger.get("input"), (*around, "input"), places)


def _badly_written(value: Any, path: Path, places: Places) -> Iterator[Issue]:
    if isinstance(value, str):
        try:
            references(value)
        except AimaError as error:
            yield places.issue(path, str(error), error.hint)
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _badly_written(item, (*path, key), places)


def _badly_expressed(text: str, path: Path, places: Places) -> Iterator[Issue]:
    try:
        expression.parse(text)
    except AimaError as error:
        yield places.issue(path, str(error), error.hint)


def _step(spec: Mapping[str, Any]) -> Step:
    given = {key: value for key, value in spec.items() if value is not None}
    depends = given.pop("depends_on", ())
    given["depends_on"] = (depends,) if isinstance(depends, str) else tuple(depends)
    if (condition := given.pop("if", None)) is not None:
        given["condition"] = condition if isinstance(condition, str) else str(condition).lower()
    if (each := given.pop("for_each", None)) is not None:
        given["for_each"] = ForEach(**each) if isinstance(each, dict) else ForEach(each)
    if (retry := given.pop("retry", None)) is not None:
        given["retry"] = Retry(**{**retry, "on": tuple(retry.get("on", ()))}) if isinstance(retry, dict) else Retry(retry)
    if (undo := given.pop("compensate", None)) is not None:
        given["compensate"] = Call(undo["type"], undo.get("input", {}))
    return Step(**given)


def _spec(step: Step) -> dict[str, Any]:
    """A step as the document says it."""
    spec: dict[str, Any] = {"id": step.id, "type": step.type, "input": dict(step.input)}
    if step.for_each is not None:
        each = step.for_each
        spec["for_each"] = each.items if each.max_parallel is None else {"items": each.items, "max_parallel": each.max_parallel}
    if step.retry != Retry():
        retry = step.retry
        spec["retry"] = {"attempts": retry.attempts, "backoff_seconds": retry.backoff_seconds} | ({"on": [*retry.on]} if retry.on else {})
    if step.compensate is not None:
        spec["compensate"] = {"type": step.compensate.type, "input": step.compensate.input}
    said = {"if": step.condition, "depends_on": [*step.depends_on] or None, "approval": step.approval or None}
    said |= {key: getattr(step, key) for key in ("timeout_seconds", "cache_seconds")}
    said |= {key: value for key in ("on_error", "on_unknown") if (value := getattr(step, key)) != "fail"}
    return {key: value for key, value in (spec | said).items() if value is not None and not (key == "input" and not value)}
