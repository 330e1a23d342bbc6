"""What can be used up, which calls use it, and how it is said that it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from aima_lib.door import Caller
from aima_lib.errors import ResourceExhausted
from aima_lib.registry import Unit


@dataclass(frozen=True, slots=True)
class Kind:
    """Something that can be used up: the limit that bounds it, its window, and how much of what is counted makes one of the limit's."""

    limit: str
    seconds: float
    least: float = 1  # what the next call takes at the very least
    size: int = 1


REQUESTS = Kind("requests_per_minute", 60)
TOKENS = Kind("tokens_per_hour", 3600)
DELETIONS = Kind("deletions_per_hour", 3600)
DOWNLOAD = Kind("download_gib_per_hour", 3600, size=1 << 30)
DEVICE_SECONDS = Kind("device_seconds_per_hour", 3600, least=0.001)
KINDS = {kind.limit: kind for kind in (REQUESTS, TOKENS, DELETIONS, DOWNLOAD, DEVICE_SECONDS)}


def kinds_of(unit: Unit) -> tuple[Kind, ...]:
    """What a call of the unit uses up."""
    scope = unit.definition["scope"]
    if scope == "inference" and "model" in unit.definition.get("inputSchema", {}).get("properties", {}):
        return (REQUESTS, TOKENS, DEVICE_SECONDS)
    return (REQUESTS, DELETIONS) if scope == "delete" and unit.kind == "command" else (REQUESTS,)


def refusal(caller: Caller, kind: Kind, limit: float, used: float, amount: float, wait: float | None) -> ResourceExhausted:
    """The error: the limit, what is used of it, and when so much will be free again, if ever."""
    said = {"allowance": kind.limit, "limit": limit, "used": shown(kind, used), "window_seconds": kind.seconds}
    calls = [{"unit": "key.list", "arguments": {}}] if caller.may("admin") else []
    if wait is None:
        message = f"{caller.name} may use {limit:g} {kind.limit}, and this alone would be {amount / kind.size:.3g}"
        return ResourceExhausted(message, hint="ask for less, or for a key that may use more", next=calls, details=said)
    seconds = max(1, math.ceil(wait))
    message = f"{caller.name} has used up its {limit:g} {kind.limit}"
    hint = f"call again in {seconds} s, or ask for a key that may use more"
    return ResourceExhausted(message, hint=hint, next=calls, details=said | {"retry_after_seconds": seconds})


def shown(kind: Kind, amount: float) -> float:
    """An amount in the limit's own measure."""
    return round(amount if kind.size == 1 else amount / kind.size, 6)
