"""Pipelines that run pipelines: how deep, and whether one comes back to itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from aima_lib.door import Caller
from aima_lib.flows.document import Pipeline, Step
from aima_lib.flows.source import Issue
from aima_lib.registry import Registry

RUN = "pipeline.run"
DEEPEST = 3
MOST = 200  # pipelines that one may reach
Lookup = Callable[[str], Pipeline | None]


def inner(step: Step) -> str | None:
    """The pipeline that a step runs, where the document says which."""
    id = step.input.get("pipeline_id") if step.type == RUN and isinstance(step.input, Mapping) else None
    return id if isinstance(id, str) and "${" not in id else None


def too_deep(pipeline: Pipeline, registry: Registry, caller: Caller, lookup: Lookup) -> Iterator[Issue]:
    """What is wrong with the pipelines that this one runs: one issue a step at most."""
    seen: dict[str, Pipeline | None] = {pipeline.name: pipeline}
    said: dict[tuple[str, int], str | None] = {}

    def found(id: str) -> Pipeline | None:
        if id not in seen and len(seen) <= MOST:
            seen[id] = lookup(id)
        return seen.get(id)

    def wrong(id: str, chain: tuple[str, ...], depth: int) -> str | None:
        if id in chain:
            return f"it comes back to itself: {' → '.join([*chain, id])}"
        if (id, depth) not in said:
            said[id, depth] = below_it(id, chain, depth)
        return said[id, depth]

    def below_it(id: str, chain: tuple[str, ...], depth: int) -> str | None:
        if depth > DEEPEST:
            return f"it is the start of {depth} pipelines in each other, {DEEPEST} are allowed: {' → '.join([*chain, id])}"
        if (below := found(id)) is None:
            return f"there is no pipeline {id[:64]!r}" if len(seen) <= MOST else f"it reaches more than {MOST} pipelines"
        if lacking := _lacking(below, registry, caller):
            return f"{caller.name} may not do what {id} does: {lacking}"
        inside = {wanted for step in below.steps if (wanted := inner(step)) is not None}
        return next((reason for each in sorted(inside) if (reason := wrong(each, (*chain, id), depth + 1))), None)

    for place, step in enumerate(pipeline.steps):
        if (id := inner(step)) is not None and (reason := wrong(id, (pipeline.name,), 2)):
            yield pipeline.places.issue(("steps", place, "input", "pipeline_id"), reason)


def _lacking(pipeline: Pipeline, registry: Registry, caller: Caller) -> str | None:
    """A scope that the caller lacks for one of its steps."""
    for step in pipeline.steps:
        unit = registry.get(step.type)
        if unit is not None and "scope" in unit.definition and not caller.may(unit.definition["scope"]):
            return f"{step.type} needs the scope {unit.definition['scope']}"
    return None
