"""What waits for what: the order of a pipeline's steps, and the rings that have none. Pure, over ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from aima_lib.flows.document import Pipeline


def waits(pipeline: Pipeline) -> dict[str, set[str]]:
    """Each step with all that must have ended before it can begin.

    A step that stands in for another waits for that one to fail, and who needs the other waits for both.
    """
    known = {step.id for step in pipeline.steps}
    stand_ins = {step.id: step.fallback for step in pipeline.steps if step.fallback in known}
    order: dict[str, set[str]] = {}
    for step in pipeline.steps:
        needs = set(step.needs & known)
        for need in step.needs & known:
            while (need := stand_ins.get(need, "")) and need not in needs and need != step.id:
                needs.add(need)
        order[step.id] = needs
    for failing, stand_in in stand_ins.items():
        order[stand_in].add(failing)
    return order


def layers(order: Mapping[str, set[str]]) -> list[list[str]]:
    """The steps in rounds: each waits only for steps of rounds before its own. Steps of a ring, and those behind one, are in none."""
    left = {step: set(needs) for step, needs in order.items()}
    rounds: list[list[str]] = []
    while ready := [step for step, needs in left.items() if not needs]:
        rounds.append(ready)
        for step in ready:
            del left[step]
        for needs in left.values():
            needs.difference_update(ready)
    return rounds


def rings(order: Mapping[str, set[str]], most: int = 5) -> Iterator[list[str]]:
    """Rings of steps, each of which waits for the next, none of which shares a step with another; up to so many."""
    left = {step: set(needs) for step, needs in order.items()}
    for _ in range(most):
        done = {step for round in layers(left) for step in round}
        left = {step: needs - done for step, needs in left.items() if step not in done}
        if not left:
            return
        walk = [min(left)]
        while (following := min(left[walk[-1]])) not in walk:
            walk.append(following)
        ring = walk[walk.index(following) :]
        yield ring
        left = {step: needs - set(ring) for step, needs in left.items() if step not in ring}
