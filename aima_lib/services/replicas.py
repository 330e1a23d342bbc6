"""Which engines a service is to have now, and which of them are asked: read off its record, also while they are being replaced.

A record's `rollout` is what it is on its way to: a definition, the `numbers` of its engines that have passed, the one that is being
`tried`, and how many of the old ones are `replaced`. Without one there is only what the record itself says.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count, islice
from typing import Any, NamedTuple

from aima_lib.infra.store import Document
from aima_lib.names import replica_id

DEFINITION = ("model_id", "engine", "options")


class Replica(NamedTuple):
    """One engine of a service."""

    id: str
    number: int
    model_id: str
    engine: str
    options: Mapping[str, Any]


def definition(record: Mapping[str, Any]) -> Document:
    """What it serves, and how."""
    return {key: record[key] for key in DEFINITION}


def numbers(record: Mapping[str, Any]) -> list[int]:
    """The numbers of its engines, as many as are wanted: those it has, then the lowest that are free."""
    kept = list(record.get("numbers") or ())[: record["desired_replicas"]]
    return kept + list(islice((number for number in count(1) if number not in kept), record["desired_replicas"] - len(kept)))


def replica(record: Mapping[str, Any], number: int, of: Mapping[str, Any] | None = None) -> Replica:
    """The engine of this number, of the record's definition or another."""
    found = record if of is None else of
    return Replica(replica_id(found["engine"], record["id"], number), number, found["model_id"], found["engine"], found["options"])


def asked(record: Mapping[str, Any]) -> list[Replica]:
    """Those that requests go to, once they are ready."""
    rollout = record.get("rollout")
    if not rollout or not record["desired_replicas"]:
        return [replica(record, number) for number in numbers(record)]
    old = [replica(record, number) for number in numbers(record)[rollout["replaced"] :]]
    return old + [replica(record, number, rollout) for number in rollout["numbers"]]


def wanted(record: Mapping[str, Any]) -> list[Replica]:
    """Those that are to run: what is being tried, too."""
    rollout = record.get("rollout")
    tried = rollout["tried"] if rollout and record["desired_replicas"] else None
    return asked(record) + ([replica(record, tried, rollout)] if tried else [])
