"""What a pipeline takes: its own schema, or what its references need where they stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aima_lib.errors import AimaError
from aima_lib.flows import expression, shape
from aima_lib.flows.document import Pipeline, Step
from aima_lib.flows.reference import Reference, Slot, slots
from aima_lib.flows.shape import Schema
from aima_lib.registry import Registry

FOREIGN = ("$ref", "$dynamicRef", "$id", "$anchor", "$dynamicAnchor", "$schema", "$vocabulary")
ALTERNATIVES = 64
PARTS = 1_000
UNNAMED = "Used in the steps as ${input.%s}."


def declared(pipeline: Pipeline) -> Schema | None:
    """The schema that the document gives, closed where it does not say that it is open; None without one, and where it is none."""
    if pipeline.input is None or misfit(pipeline.input):
        return None
    return {"type": "object", "properties": {}, "additionalProperties": False, **pipeline.input}


def input_schema(pipeline: Pipeline, registry: Registry) -> Schema:
    """The JSON Schema of what a run takes. Without one in the document, each `${input.x}` is an input, of the type that it needs where it
    stands alone in the arguments of a unit; of any type where it stands in text or in two places that differ. It is required unless
    everywhere it stands it may be absent: before `??`, in an `if`, as a unit's optional argument.
    """
    if (given := declared(pipeline)) is not None:
        return given
    uses: dict[str, list[tuple[Schema, bool]]] = {}
    whole = False
    for reference, schema, needed in _uses(pipeline, registry):
        if reference.path and isinstance(name := reference.path[0], str):
            uses.setdefault(name, []).append((schema if len(reference.path) == 1 else shape.ANY, needed))
        else:
            whole = True  # ${input} itself: everything goes on
    properties = {name: _one(name, [schema for schema, _ in found]) for name, found in uses.items()}
    required = [name for name, found in uses.items() if any(needed for _, needed in found)]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": whole}


def misfit(schema: Mapping[str, Any]) -> str | None:
    """Why this is no schema that a pipeline may have for its input, or None."""
    import jsonschema_rs

    alternatives = 0
    for count, node in enumerate(_nodes(schema)):
        if count == PARTS:
            return f"it has more than {PARTS} parts"
        if found := next((key for key in FOREIGN if isinstance(node.get(key), str)), None):
            return f"{found} is not used here: write the schema out"
        alternatives += sum(len(node[key]) for key in ("anyOf", "oneOf", "allOf") if isinstance(node.get(key), list))
    if alternatives > ALTERNATIVES:
        return f"it has more than {ALTERNATIVES} alternatives"
    if schema.get("type", "object") != "object":
        return "the input is an object"
    try:
        jsonschema_rs.Draft202012Validator(dict(schema))
    except (ValueError, jsonschema_rs.ValidationError) as error:
        return f"this is no JSON Schema: {str(error).splitlines()[0][:200]}"
    return None


def _nodes(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _nodes(item)


def _one(name: str, schemas: list[Schema]) -> Schema:
    first = schemas[0]
    if first and all(schema == first for schema in schemas):
        return first
    return {"description": next((str(schema["description"]) for schema in schemas if "description" in schema), UNNAMED % name)}


def _uses(pipeline: Pipeline, registry: Registry) -> Iterator[tuple[Reference, Schema, bool]]:
    """Every reference to an input, with the schema of what takes it and whether it must be there."""
    for step in pipeline.steps:
        yield from _used_by(step, registry)
    for _, _, slot in slots(pipeline.output):
        yield from ((reference, shape.ANY, False) for reference in _inputs(slot))


def _used_by(step: Step, registry: Registry) -> Iterator[tuple[Reference, Schema, bool]]:
    unit = registry.get(step.type)
    taken = unit.definition.get("inputSchema", shape.ANY) if unit is not None else shape.ANY
    for path, whole, slot in slots(step.input):
        schema, required = _target(taken, path) if whole else (shape.ANY, True)
        yield from ((reference, schema, required and len(slot.choices) == 1) for reference in _inputs(slot))
    for _, _, slot in slots(step.for_each and step.for_each.items):
        yield from ((reference, {"type": "array", "items": {}}, len(slot.choices) == 1) for reference in _inputs(slot))
    if step.condition is not None:
        yield from ((found, shape.ANY, False) for found in expression.read_by(step.condition) if found.root == "input")
    for _, _, slot in slots(step.compensate and step.compensate.input):
        yield from ((reference, shape.ANY, False) for reference in _inputs(slot))


def _inputs(slot: Slot) -> Iterator[Reference]:
    return (found for found in slot.references if found.root == "input")


def _target(schema: Schema, path: tuple[str | int, ...]) -> tuple[Schema, bool]:
    """What stands at a path of a unit's arguments, and whether it must be there."""
    try:
        around = shape.lead(schema, path[:-1])
        found = shape.lead(around, path[-1:])
    except AimaError:
        return shape.ANY, True
    return found, not path or not isinstance(path[-1], str) or path[-1] in around.get("required", ())
