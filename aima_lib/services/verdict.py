"""What of a timeline is the likely cause, and why: pure decisions over what was gathered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from aima_lib.infra.clock import parse
from aima_lib.infra.events import Event

HOPS = 50
NEAR_SECONDS = 60.0  # how long before an end a device's alarm counts as having to do with it
TRACE = re.compile(r"[0-9a-f]{32}")
STARVED = re.compile(r"SIGKILL|memory|allocate", re.IGNORECASE)


@dataclass(slots=True)
class Entry:
    """One line of a timeline. `failed`: something went wrong here; `telling`: a log line that says what."""

    time: str
    source: str
    kind: str
    subject: str | None
    text: str
    id: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    order: int = 0
    failed: bool = False
    telling: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def moment(self) -> datetime:
        return parse(self.time)

    @property
    def place(self) -> tuple[datetime, int]:
        """Where it stands: by time, and at one time as it was written."""
        return self.moment, self.order

    def named(self) -> str:
        """What it is, without the words of others."""
        about = f" of {self.subject}" if self.subject else ""
        return f"{'a line of the log' if self.source == 'log' else self.kind}{about}{f' ({self.id})' if self.id else ''}"


def has_failed(event: Event) -> bool:
    """Whether an event tells of something gone wrong."""
    type, payload = event["type"], event["payload"]
    if type == "inference.request_failed":
        return bool(payload.get("code") != "cancelled")
    if type in ("device.health_changed", "engine.health_changed", "app.health_changed"):
        return payload.get("new_status") in ("warning", "critical", "unhealthy")
    if type == "model.verified":
        return payload.get("valid") is False
    if type in ("app.restarted", "app.rolled_back"):  # one of its containers ended; another version did not work
        return True
    return type.rpartition(".")[2] in ("failed", "error", "step_failed", "metrics_alert", "oom_detected")


def verdict(entries: Sequence[Entry], own: frozenset[str]) -> tuple[Entry | None, str]:
    """The likely cause and why it is taken for one; None and why there is none. `own` are the ids that the subject goes by."""
    effect = _effect(entries, own)
    if effect is None:
        return _ended_by_somebody(entries, own)
    chain = _back(effect, {entry.id: entry for entry in entries if entry.id})
    root = chain[-1]
    if root is effect:  # a run, or what came of one: what went wrong in it first
        before = [entry for entry in entries if entry.failed and entry.source == "event" and _within(entry, effect)]
        root = min(before, key=lambda entry: entry.place, default=root)
    came_of_it = f"{effect.named()} came of it" if root is not effect else "nothing that is on record caused it"
    if (alarm := _alarm(entries, root)) is not None:
        seconds = (root.moment - alarm.moment).total_seconds()
        return alarm, f"{alarm.subject} ran out of memory {seconds:.0f} s before {root.named()}, which memory, or the kernel, ended"
    if (line := _line(entries, root)) is not None:
        return line, f"it is the most telling line that {line.subject} wrote before {root.named()}; {came_of_it}"
    if root is not effect:
        return root, f"it is the first in the chain of causes of {effect.named()}"
    return root, f"it is the last that went wrong, and {came_of_it}"


def _effect(entries: Sequence[Entry], own: frozenset[str]) -> Entry | None:
    """The newest failure of the subject itself, else of what belongs to it. Single requests only where there is nothing else."""
    failed = [entry for entry in entries if entry.failed]
    grave = [entry for entry in failed if entry.kind != "inference.request_failed" and not entry.kind.startswith("device.")]
    for some in ([entry for entry in grave if entry.id in own or entry.subject in own], grave, failed):
        if some:
            return max(some, key=lambda entry: entry.place)
    return None


def _back(effect: Entry, known: Mapping[str | None, Entry]) -> list[Entry]:
    """From an effect to its first cause, along what is written down."""
    chain = [effect]
    while len(chain) < HOPS:
        cause = known.get(chain[-1].causation_id)
        if cause is None or cause in chain or not cause.failed or cause.place > chain[-1].place:
            return chain
        chain.append(cause)
    return chain


def _within(entry: Entry, effect: Entry) -> bool:
    """Whether an entry before the effect belongs with it. A trace may hold a whole session: there it must be of the same run or call."""
    if entry.correlation_id is None or entry.correlation_id != effect.correlation_id or entry.place > effect.place:
        return False
    return not TRACE.fullmatch(entry.correlation_id) or entry.causation_id in (effect.causation_id, effect.id)


def _alarm(entries: Sequence[Entry], root: Entry) -> Entry | None:
    """Want of memory shortly before something ended in a way that want of memory makes likely."""
    if root.facts.get("memory_limit_bytes"):
        return None  # its own limit was reached, however much the machine had
    if not STARVED.search(str(root.facts.get("cause", root.text))):
        return None
    for entry in entries:
        is_want = entry.kind == "device.metrics_alert" and entry.facts.get("metric") == "memory_fraction"
        if is_want and 0 <= (root.moment - entry.moment).total_seconds() <= NEAR_SECONDS:
            return entry
    return None


def _line(entries: Sequence[Entry], root: Entry) -> Entry | None:
    """The telling line of the log of the engine that failed there."""
    instance = root.facts.get("instance_id") or root.facts.get("instance") or root.facts.get("app_id")
    lines = [entry for entry in entries if entry.telling and entry.subject == instance and entry.moment <= root.moment]
    return max(lines, key=lambda entry: entry.place, default=None) if instance else None


def _ended_by_somebody(entries: Sequence[Entry], own: frozenset[str]) -> tuple[Entry | None, str]:
    """Nothing failed: was it stopped?"""
    ends = ("stopped", "deleted", "revoked", "uninstalled")
    stops = [
        entry for entry in entries
        if entry.source == "event" and entry.subject in own and entry.kind.rpartition(".")[2] in ends
    ]  # fmt: skip
    last = max(stops, key=lambda entry: entry.place, default=None)
    begun = [entry for entry in entries if entry.source == "event" and entry.subject in own and entry.kind.endswith(".started")]
    if last is None or any(entry.place > last.place for entry in begun):
        return None, "nothing that went wrong is on record"
    for entry in entries:
        if entry.source == "audit" and entry.causation_id == last.causation_id and entry.causation_id:
            return entry, f"{last.named()} came of this call, and nothing failed"
    return last, "nothing failed: it was ended, and by whom stands in the audit log"
