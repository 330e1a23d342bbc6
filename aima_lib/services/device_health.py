"""Whether a sample is fine: pure decisions, with hysteresis so that a value at the edge does not flicker."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aima_lib.infra.hal import Fault, Reading

Issue = dict[str, Any]
RANK = ("healthy", "unknown", "warning", "critical")
# How far a value must fall below its threshold before it counts as fine again: fractions by 0.03, temperatures by 3 °C.
SLACK = {"memory_fraction": 0.03, "temperature_celsius": 3.0}
NOTHING: Mapping[str, str] = {}
MEMORY_CRITICAL = 0.99  # beyond it the kernel starts to end processes


@dataclass(frozen=True, slots=True)
class Level:
    """A metric at or above its threshold (or not yet far enough below it again)."""

    metric: str
    value: float
    threshold: float
    severity: str


def levels(reading: Reading, limits: Mapping[str, Any], raised: Mapping[str, str] = NOTHING) -> list[Level]:
    """The metrics that are too high. `raised` has the severities of those that were so before; `limits` is the config's `devices`."""
    found = []
    for metric, value, threshold, critical in _watched(reading, limits):
        if value is None or value < threshold - (SLACK[metric] if metric in raised else 0.0):
            continue
        edge = critical - (SLACK[metric] if raised.get(metric) == "critical" else 0.0)
        found.append(Level(metric, round(value, 4), threshold, "critical" if value >= edge else "warning"))
    return found


def issues(device_id: str, reading: Reading, high: Iterable[Level], source: str) -> list[Issue]:
    """What is wrong with a device: its levels that are too high, and what its hardware reports."""
    found = [_level_issue(device_id, reading, level, source) for level in high]
    return found + [fault_issue(fault) for fault in reading.faults]


def fault_issue(fault: Fault) -> Issue:
    """A fault in an issue's words."""
    evidence = {"metric": fault.metric, "value": fault.value, "threshold": None, "source": fault.source}
    return {"device_id": fault.device_id, "code": fault.code, "severity": fault.severity, "message": fault.message, "evidence": evidence}


def status(found: Iterable[Issue], reading: Reading | None = None) -> str:
    """healthy, warning, critical, or unknown when nothing at all could be read."""
    ranks = [issue["severity"] for issue in found]
    if reading is not None and not ranks and all(value is None for value in reading.values().values()):
        return "unknown"
    return worst(ranks)


def worst(statuses: Iterable[str]) -> str:
    """The worst of these; healthy when there are none."""
    return max(statuses, key=RANK.index, default="healthy")


def _watched(reading: Reading, limits: Mapping[str, Any]) -> list[tuple[str, float | None, float, float]]:
    """(metric, value, where it is too high, where it is critical)."""
    used, total = reading.memory_used_bytes, reading.memory_total_bytes
    share = used / total if used is not None and total else None
    own = reading.temperature_limit_celsius or math.inf  # a device that slows itself down earlier is hot earlier
    hottest = min(float(limits["temperature_alert_celsius"]), own)
    fullest = float(limits["memory_alert_fraction"])
    return [
        ("memory_fraction", share, fullest, MEMORY_CRITICAL),
        ("temperature_celsius", reading.temperature_celsius, hottest, own),
    ]


def _level_issue(device_id: str, reading: Reading, level: Level, source: str) -> Issue:
    if level.metric == "memory_fraction":
        code = "memory_pressure"
        message = f"{device_id} has {reading.memory_used_bytes} of {reading.memory_total_bytes} bytes of memory in use ({level.value:.1%})"
    else:
        code, limit = "temperature_high", reading.temperature_limit_celsius
        message = f"{device_id} is at {level.value:g} °C" + (f"; it slows down from {limit:g} °C" if limit else "")
    evidence = {"metric": level.metric, "value": level.value, "threshold": level.threshold, "source": source}
    return {"device_id": device_id, "code": code, "severity": level.severity, "message": message, "evidence": evidence}
