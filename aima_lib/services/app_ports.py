"""Ports of this machine for apps: what each had before it has again, what nobody has is given, what somebody has is said."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from aima_lib.errors import FailedPrecondition, ResourceExhausted
from aima_lib.launchers.process import port_holder
from aima_lib.services.app_template import Template, ports_of

LOWEST, TRIES = 1024, 500


def allotted(
    template: Template, asked: Mapping[str, int], had: Mapping[str, int], others: Mapping[int, str], own: Collection[int]
) -> dict[str, int]:
    """A port for each that the template has, by its name. Blocking.

    asked: by whoever installs it. had: from before. others: those of other apps, and whose they are. own: those its own containers hold.

    Raises:
        FailedPrecondition: one that was asked for is somebody's.
        ResourceExhausted: there is none free.
    """
    given: dict[str, int] = {}
    for name, port in asked.items():
        if port not in own:
            _refuse_taken(name, port, others)
        given[name] = port
    for _, row in ports_of(template):
        name = row["name"]
        if name in given:
            continue
        before = had.get(name)
        first = before or row.get("host") or max(row["container"], LOWEST)
        given[name] = (
            first if first in own or (before and first not in {*given.values(), *others}) else next_free(first, {*given.values(), *others})
        )
    return given


def next_free(first: int, taken: Collection[int]) -> int:
    """The first port from `first` on that nobody has. Blocking. Raises ResourceExhausted."""
    for port in range(first, min(first + TRIES, 65536)):
        if port not in taken and port_holder(port) is None:
            return port
    raise ResourceExhausted(f"no port is free from {first} on", hint="config {ports: …} says which to take")


def _refuse_taken(name: str, port: int, others: Mapping[int, str]) -> None:
    if holder := f"the app {others[port]}" if port in others else port_holder(port):
        message = f"config.ports.{name}: port {port} is taken by {holder}"
        raise FailedPrecondition(message, hint="leave it out: the next free one is taken", details={"field": f"config.ports.{name}"})
