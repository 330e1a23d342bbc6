"""A pipeline as a Mermaid flowchart: what goes from where to where, what may not happen, and who stands in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from aima_lib.flows.document import Pipeline, Step
from aima_lib.flows.reference import Reference, references

LONGEST = 60
SHOWN = 4
ESCAPES = {ord(sign): f"#{ord(sign)};" for sign in '#"<>&`|{}[]()\\'} | {ord(sign): " " for sign in "\r\n\t"}


def mermaid(pipeline: Pipeline) -> str:
    """The flowchart. A solid arrow carries fields, a dotted one only waits; a hexagon waits for somebody's approval."""
    nodes = {step.id: f"s{place}" for place, step in enumerate(pipeline.steps)}
    lines = ["flowchart TD", *(f"  {nodes[step.id]}{_node(step)}" for step in pipeline.steps)]
    taken = [reference for step in pipeline.steps for reference in step.reads if reference.root == "input"]
    if taken:
        lines.append(f'  input(["input: {_escaped(_list(_fields(taken)))}"])')
    for step in pipeline.steps:
        lines += _arrows(step, nodes)
    lines.append('  output(["output"])')
    by_step = _by_step(references(pipeline.result))
    lines += [f"  {nodes[id]} -->{_label(fields)} output" for id, fields in by_step.items() if id in nodes]
    return "\n".join(lines) + "\n"


def _arrows(step: Step, nodes: Mapping[str, str]) -> Iterator[str]:
    here = nodes[step.id]
    if taken := [reference for reference in step.reads if reference.root == "input"]:
        yield f"  input -->{_label(_fields(taken))} {here}"
    read = _by_step(step.reads)
    yield from (f"  {nodes[id]} -->{_label(fields)} {here}" for id, fields in read.items() if id in nodes)
    yield from (f"  {nodes[id]} -.-> {here}" for id in step.depends_on if id in nodes and id not in read)
    if step.fallback in nodes:
        yield f"  {here} -.->|on error| {nodes[step.fallback or '']}"


def _node(step: Step) -> str:
    """Its box: the id, the unit and what is said of it."""
    said = [step.id, step.type]
    said += [f"if {step.condition}"] if step.condition is not None else []
    said += [f"undo: {step.compensate.type}"] if step.compensate else []
    text = "<br/>".join(_escaped(line) for line in said)
    if step.approval:
        return f'{{{{"{text}<br/>waits for approval"}}}}'
    return f'[["{text}<br/>for each"]]' if step.for_each else f'["{text}"]'


def _by_step(found: Iterable[Reference]) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for reference in found:
        if reference.step is not None:
            fields.setdefault(reference.step, []).extend(_fields([reference], 1))
    return fields


def _fields(found: Iterable[Reference], at: int = 0) -> list[str]:
    """The fields that references read, by their names in what they read from."""
    return [name for reference in found if (name := next((part for part in reference.path[at:] if isinstance(part, str)), ""))]


def _label(fields: list[str]) -> str:
    return f'|"{_escaped(_list(fields))}"|' if fields else ""


def _list(names: list[str]) -> str:
    once = list(dict.fromkeys(names))
    return ", ".join(once[:SHOWN]) + (" …" if len(once) > SHOWN else "")


def _escaped(text: str) -> str:
    return (text if len(text) <= LONGEST else text[:LONGEST] + "…").translate(ESCAPES)
