"""What references may name at one place of a pipeline, and the schema of what they lead to there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from aima_lib.flows import shape
from aima_lib.flows.document import Pipeline, Step
from aima_lib.flows.expression import ORDERS, Node, Operation, nodes
from aima_lib.flows.reference import Each, Literal, Part, Reference, main_field
from aima_lib.flows.shape import ANY, Nowhere, Schema
from aima_lib.registry import Registry

RUN: Schema = {"type": "object", "additionalProperties": False, "properties": {"id": {"type": "string"}}}
Path = tuple[str | int | Each | None, ...]
TRUTHS = {"or", "and", "not", "==", "!=", "in", "not in", "event", *ORDERS}


@dataclass(frozen=True)
class Scope:
    """One place.

    given: the schema of the pipeline's input, None where the document has none.
    step: the step that it belongs to, which cannot refer to itself.
    item: what `${item}` is, None where there is none.
    single: a step with for_each whose output, here, is that of one item.
    event: what `${event}` is, None where there is none.
    """

    pipeline: Pipeline
    registry: Registry
    given: Schema | None = None
    step: str | None = None
    item: Schema | None = None
    single: str | None = None
    event: Schema | None = None
    _found: dict[Reference, Schema] = field(default_factory=dict, compare=False)

    def of(self, step: str | None, *, item: Schema | None = None, single: str | None = None) -> Scope:
        """The scope of another place."""
        return replace(self, step=step, item=item, single=single, event=None, _found={})

    def of_events(self, names: Collection[str]) -> Scope:
        """The scope of a trigger: nothing but the events that it asks for."""
        payloads = [self.registry[name].definition["payloadSchema"] for name in sorted(names) if self._is_event(name)]
        properties = {
            "type": {"type": "string"},
            "time": {"type": "string"},
            "seq": {"type": "integer"},
            "subject": {"type": ["string", "null"]},
        }
        event = {
            "type": "object",
            "additionalProperties": False,
            "properties": {**properties, "payload": {"anyOf": payloads} if payloads else ANY},
        }
        return replace(self, step=None, item=None, single=None, event=event, _found={})

    def known(self, reference: Reference) -> Schema:
        """The schema of what a reference leads to; ANY where it leads nowhere, which is said elsewhere."""
        if reference not in self._found:
            try:
                self._found[reference] = self.lead(reference)
            except Nowhere:
                self._found[reference] = ANY
        return self._found[reference]

    def lead(self, reference: Reference) -> Schema:
        """The schema of what a reference leads to.

        Raises:
            Nowhere: it can lead to nothing.
        """
        root = reference.root
        path = self._plain(reference.path, str(reference))
        if path is None:
            return ANY
        if self.event is not None and root not in ("event", "config"):
            raise Nowhere(f"{reference}: a run that a trigger starts has only the event", "", ("event",))
        match root:
            case "steps":
                return self._output(reference, path)
            case "input":
                return shape.lead(self.given or ANY, path, "input")
            case "config":
                return shape.lead(shape.written(dict(self.pipeline.constants)), path, "config")
            case "run":
                return shape.lead(RUN, path, "run")
        found = self.item if root == "item" else self.event
        if found is None:
            where = "a step's input with for_each" if root == "item" else "a trigger"
            raise Nowhere(f"{reference}: there is {'an' if root[0] in 'ie' else 'a'} {root} only in {where}")
        return shape.lead(found, path, root)

    def _plain(self, path: tuple[Part, ...], said: str) -> Path | None:
        """The path with what stands in brackets as what it may be: None is some place. No path where that may be anything."""
        plain: list[str | int | Each | None] = []
        for part in path:
            if not isinstance(part, Reference):
                plain.append(part)
                continue
            kinds = shape.types(self.known(part))
            if not kinds & {"integer", "array", "string"}:
                raise Nowhere(f"{said}: {part} is {shape.spoken(self.known(part))}, and no place in a list")
            if kinds - {"null"} not in ({"integer"}, {"integer", "number"}, {"array"}):
                return None
            plain.append(Each() if "array" in kinds else None)
        return tuple(plain)

    def unordered(self, node: Node) -> str | None:
        """Why a comparison in an expression must fail, or None."""
        for each in nodes(node):
            if not isinstance(each, Operation) or each.sign not in ORDERS:
                continue
            left, right = map(self._types, each.parts)
            if not any(left & kind and right & kind for kind in ({"integer", "number"}, {"string"})):
                said = [shape.spoken({"type": [*side]}) for side in (left, right)]
                return f"{said[0]} {each.sign} {said[1]}: two numbers have an order, and two texts"
        return None

    def _types(self, node: Node) -> frozenset[str]:
        if isinstance(node, Reference):
            return shape.types(self.known(node))
        if isinstance(node, Literal):
            return shape.types(shape.written(node.value))
        if node.sign == "??":
            return frozenset().union(*map(self._types, node.parts))
        return frozenset({"boolean"} if node.sign in TRUTHS else {"array"})

    def _output(self, reference: Reference, path: Path) -> Schema:
        id = str(path[0])
        steps = self.pipeline.by_id
        if id == self.step:
            raise Nowhere(f"{reference}: {id} refers to itself")
        if id not in steps:
            raise Nowhere(f"{reference}: there is no step {id[:64]!r}", id, steps)
        found = self._of_step(steps[id], reference, path)
        stand_in = steps.get(steps[id].fallback or "")
        if stand_in is not None:
            try:
                return {"anyOf": [found, self._of_step(stand_in, reference, path)]}
            except Nowhere as error:
                raise Nowhere(f"when {stand_in.id} stands in for {id}: {error}", error.word, error.known) from error
        return found

    def _of_step(self, step: Step, reference: Reference, path: Path) -> Schema:
        unit = self.registry.get(step.type)
        if unit is None or "outputSchema" not in unit.definition:
            return ANY
        schema: Schema = unit.definition["outputSchema"]
        many = step.for_each is not None and self.single != step.id
        field = unit.definition.get("primary")
        into = main_field(path[1:], field, many)
        if field is None and "response" in path[1:3] and "response" not in schema.get("properties", {}):
            raise Nowhere(f"{reference}: {step.type} names no main field", "", [*schema.get("properties", {})])
        return shape.lead({"type": "array", "items": schema} if many else schema, into, f"steps.{step.id}")

    def _is_event(self, name: str) -> bool:
        return name in self.registry and self.registry[name].kind == "event"
