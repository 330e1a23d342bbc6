"""Whether a sample is fine: pure decisions, with hysteresis so that a value at the edge does not flicker."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aima_lib.infra.hal import Fault, Reading

Issue = dict[str, Any]
RANK = ("healthy", "unknown", "warning", "critical")
# How far a value must fall below its threshold before it counts as fine again: fractions by 0.03, temperatures by 3 °C.
SLACK = {"memory_fraction": 0.03, "temperature_celsius": 3.0}
MEMORY_CRITICAL = 0.99  # beyond it the kernel starts to end processes


@dataclass(frozen=True, slots=True)
class Level:
    """A metric at or above its threshold (or not yet far enough below it again)."""

    metric: str
    value: float
    threshold: float


def levels(reading: Reading, limits: Mapping[str, Any], raised: Collection[str] = ()) -> list[Level]:
    """The metrics that are too high. `raised` are those that were so before; `limits` is the configuration's `devices`."""
    found = []
    for metric, value, threshold in _watched(reading, limits):
        if value is not None and value >= threshold - (SLACK[metric] if metric in raised else 0.0):
            found.append(Level(metric, round(value, 4), threshold))
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


def _watched(reading: Reading, limits: Mapping[str, Any]) -> list[tuple[str, float | None, float]]:
    used, total = reading.memory_used_bytes, reading.memory_total_bytes
    share = used / total if used is not None and total else None
    hottest = float(limits["temperature_alert_celsius"])
    if reading.temperature_limit_celsius:  # a device that slows itself down earlier is hot earlier
        hottest = min(hottest, reading.temperature_limit_celsius)
    fullest = float(limits["memory_alert_fraction"])
    return [("memory_fraction", share, fullest), ("temperature_celsius", reading.temperature_celsius, hottest)]


def _level_issue(device_id: str, reading: Reading, level: Level, source: str) -> Issue:
    if level.metric == "memory_fraction":
        code, critical = "memory_pressure", level.value >= MEMORY_CRITICAL
        message = f"{device_id} has {reading.memory_used_bytes} of {reading.memory_total_bytes} bytes of memory in use ({level.value:.1%})"
    else:
        limit = reading.temperature_limit_celsius
        code, critical = "temperature_high", limit is not None and level.value >= limit
        message = f"{device_id} is at {level.value:g} °C" + (f"; it slows down from {limit:g} °C" if limit else "")
    evidence = {"metric": level.metric, "value": level.value, "threshold": level.threshold, "source": source}
    severity = "critical" if critical else "warning"
    return {"device_id": device_id, "code": code, "severity": severity, "message": message, "evidence": evidence}
