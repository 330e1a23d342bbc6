"""What must be wrong in a pipeline before anything runs: units, types through references, order, scopes, limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from aima_lib.door import Caller
from aima_lib.flows import clockwork, expression, shape
from aima_lib.flows.document import Pipeline, Step
from aima_lib.flows.fit import Checker
from aima_lib.flows.graph import rings, waits
from aima_lib.flows.inputs import declared, input_schema, misfit
from aima_lib.flows.judge import Nearest
from aima_lib.flows.nesting import too_deep
from aima_lib.flows.reference import Reference, slots
from aima_lib.flows.scope import Scope
from aima_lib.flows.shape import Schema
from aima_lib.flows.source import TOLD, Issue, Path, in_order
from aima_lib.redact import secrets_in
from aima_lib.registry import Registry, Unit

Lookup = Callable[[str], Pipeline | None]
CALLABLE = ("command", "query")
# What no pipeline does, and why not.
REFUSED = {
    "approval.approve": "a pipeline cannot approve what others ask for",
    "approval.deny": "a pipeline cannot decide what others ask for",
    "key.create": "the key that it makes would be kept with the run",
    "unit.call": "the unit that it would call is the step's type itself",
}


def check(pipeline: Pipeline, registry: Registry, caller: Caller, lookup: Lookup) -> list[Issue]:
    """What cannot work in a pipeline that `caller` creates, in the order of the document; up to 100 issues, none where it may run.

    lookup: the pipeline with this id, for steps that run one; None where there is none.
    """
    found: list[Issue] = []
    for issue in _Check(pipeline, registry, caller, lookup).issues():
        found.append(issue)
        if len(found) == TOLD:
            break
    return in_order(found)


class _Check:
    def __init__(self, pipeline: Pipeline, registry: Registry, caller: Caller, lookup: Lookup) -> None:
        self._pipeline, self._registry, self._caller, self._lookup = pipeline, registry, caller, lookup
        self._places = pipeline.places
        self._near = Nearest()
        self._checker = Checker(pipeline.places, self._near)
        self._steps = pipeline.by_id
        self._scope = Scope(pipeline, registry, declared(pipeline))

    def issues(self) -> Iterator[Issue]:
        if self._pipeline.input is not None and (reason := misfit(self._pipeline.input)):
            yield self._places.issue(("input",), reason)
        for place, step in enumerate(self._pipeline.steps):
            yield from self._step(step, ("steps", place))
        yield from self._order()
        known = self._scope.of(None)
        yield from self._references(self._pipeline.output, ("output",), known)
        yield from self._starts()
        yield from too_deep(self._pipeline, self._registry, self._caller, self._lookup)

    # Steps

    def _step(self, step: Step, path: Path) -> Iterator[Issue]:
        unit = self._registry.get(step.type)
        yield from self._called(step.type, step, (*path, "type"))
        yield from self._waited(step, path)
        outside = self._scope.of(step.id)
        if step.condition is not None:
            yield from self._condition(step.condition, (*path, "if"), outside)
        inside = outside
        if step.for_each is not None:
            items = (*path, "for_each", "items") if (*path, "for_each", "items") in self._places.values else (*path, "for_each")
            yield from self._references(step.for_each.items, items, outside)
            yield from self._checker.issues(step.for_each.items, {"type": "array"}, items, outside.known)
            inside = self._scope.of(step.id, item=self._item(step, outside))
        yield from self._arguments(step.type, unit, step.input, (*path, "input"), inside)
        if (undo := step.compensate) is not None:
            around = (*path, "compensate")
            yield from self._called(undo.type, step, (*around, "type"))
            after = self._scope.of(None, item=inside.item, single=step.id)
            yield from self._arguments(undo.type, self._registry.get(undo.type), undo.input, (*around, "input"), after)

    def _called(self, name: str, step: Step, path: Path) -> Iterator[Issue]:
        """Whether this unit may be called in this step."""
        unit = self._registry.get(name)
        if unit is None or unit.kind not in CALLABLE:
            what = f"there is no unit {name!r}" if unit is None else f"{name} is a {unit.kind}; a step calls a command or a query"
            yield self._places.issue(path, what, self._near(name, [unit.name for unit in self._registry.of(*CALLABLE)]))
            return
        scope = str(unit.definition["scope"])
        if not self._caller.may(scope):
            yield self._places.issue(path, f"{self._caller.name} may not use {name}", f"it needs the scope {scope}")
        if reason := REFUSED.get(name):
            yield self._places.issue(path, f"{name} is no step: {reason}")
        if secrets := secrets_in(unit.definition["inputSchema"]):
            yield self._places.issue(path, f"{name} is no step: it takes a secret ({', '.join(secrets)}), which a run would keep")
        if unit.policy != "auto" and not step.approval:
            yield self._places.issue(
                path, f"{name} changes what cannot be brought back, and nobody is asked", "add approval: true to the step"
            )

    def _waited(self, step: Step, path: Path) -> Iterator[Issue]:
        """Whether the steps that it names exist, and are others."""
        for place, id in enumerate(step.depends_on):
            at = (*path, "depends_on", place)
            if id == step.id:
                yield self._places.issue(at, f"{id} waits for itself")
            elif id not in self._steps:
                yield self._places.issue(at, f"there is no step {id!r}", self._near(id, self._steps))
        if (stand_in := step.fallback) is None:
            return
        at = (*path, "on_error")
        if stand_in == step.id:
            yield self._places.issue(at, f"{stand_in} stands in for itself")
        elif stand_in not in self._steps:
            yield self._places.issue(at, f"there is no step {stand_in!r}", self._near(stand_in, [*self._steps, "fail", "continue"]))
        elif self._pipeline.fallbacks[stand_in] != step.id:
            yield self._places.issue(
                at, f"{stand_in} stands in for {self._pipeline.fallbacks[stand_in]} already", "one step stands in for one"
            )
        elif step.id in self._steps[stand_in].needs:
            yield self._places.issue(at, f"{stand_in} runs when {step.id} failed, and refers to what {step.id} gives")

    def _arguments(self, name: str, unit: Unit | None, given: Any, path: Path, scope: Scope) -> Iterator[Issue]:
        yield from self._references(given, path, scope)
        if unit is not None and unit.kind in CALLABLE:
            yield from self._checker.issues(given, self._takes(name, unit, given), path, scope.known)

    def _takes(self, name: str, unit: Unit, given: Any) -> Schema:
        """The schema of a call's arguments; for a pipeline that is known, with that pipeline's inputs."""
        schema: Schema = unit.definition["inputSchema"]
        if name != "pipeline.run" or not isinstance(given, Mapping) or not isinstance(id := given.get("pipeline_id"), str) or "${" in id:
            return schema
        inner = self._pipeline if id == self._pipeline.name else self._lookup(id)
        if inner is None or "input" not in schema["properties"]:
            return schema
        return {**schema, "properties": {**schema["properties"], "input": input_schema(inner, self._registry)}}

    @staticmethod
    def _item(step: Step, outside: Scope) -> Schema:
        """What `${item}` is."""
        items = step.for_each.items if step.for_each else []
        if isinstance(items, list):
            return {"anyOf": [shape.written(item) for item in items]} if items and not [*slots(items)] else shape.ANY
        found = [slot for _, whole, slot in slots(items) if whole]
        if len(found) != 1 or len(found[0].choices) != 1 or not isinstance(reference := found[0].choices[0], Reference):
            return shape.ANY
        given = outside.known(reference)
        return shape.own_items(given, None) or shape.ANY

    # References

    def _references(self, value: Any, path: Path, scope: Scope) -> Iterator[Issue]:
        for at, _, slot in slots(value):
            yield from self._unknown(slot.references, (*path, *at), scope)

    def _unknown(self, found: list[Reference], path: Path, scope: Scope) -> Iterator[Issue]:
        for reference in dict.fromkeys(found):
            try:
                scope.lead(reference)
            except shape.Nowhere as error:
                yield self._places.issue(path, str(error), self._near(error.word, error.known))

    def _condition(self, text: str, path: Path, scope: Scope) -> Iterator[Issue]:
        yield from self._unknown(expression.read_by(text), path, scope)
        if asked := expression.events(text):
            yield self._places.issue(path, f'event("{min(asked)}") is asked in a trigger, and nowhere else')
        if reason := scope.unordered(expression.parse(text)):
            yield self._places.issue(path, reason)

    # The whole

    def _order(self) -> Iterator[Issue]:
        for ring in rings({step: needs - {step} for step, needs in waits(self._pipeline).items()}):
            places = {step.id: place for place, step in enumerate(self._pipeline.steps)}
            first = ring.index(min(ring, key=lambda id: places[id]))
            ring, place = [*ring[first:], *ring[:first]], places[ring[first]]
            yield self._places.issue(("steps", place), f"these steps wait for each other: {' → '.join([*ring, ring[0]])}", "let one go")

    def _starts(self) -> Iterator[Issue]:
        """The inputs of runs that nobody is there to start."""
        config, schema = self._pipeline.config, input_schema(self._pipeline, self._registry)
        if (schedule := config.get("schedule")) is not None:
            if wrong := clockwork.misfit(schedule):
                yield self._places.issue(("config", "schedule", wrong[0]), wrong[1])
            path: Path = ("config", "schedule", "input")
            yield from self._checker.issues(schedule.get("input", {}), schema, path, lambda _: shape.ANY)
        for place, trigger in enumerate(config.get("triggers", ())):
            around = ("config", "triggers", place)
            scope = self._scope.of_events(expression.events(trigger["when"]))
            yield from self._events(trigger["when"], (*around, "when"), scope)
            given = trigger.get("input", {})
            yield from self._references(given, (*around, "input"), scope)
            yield from self._checker.issues(given, schema, (*around, "input"), scope.known)

    def _events(self, when: str, path: Path, scope: Scope) -> Iterator[Issue]:
        names = expression.events(when)
        if not names:
            yield self._places.issue(path, "it names no event", 'e.g. event("model.pulled")')
        known = [unit.name for unit in self._registry.of("event")]
        for name in sorted(names - set(known)):
            yield self._places.issue(path, f"there is no event {name[:64]!r}", self._near(name, known))
        yield from self._unknown(expression.read_by(when), path, scope)
