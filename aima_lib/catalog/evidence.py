"""How a recipe's figures are known: measured here, measured elsewhere, or by nobody; and how much that weighs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

HERE, ELSEWHERE, UNVERIFIED = "measured here", "measured elsewhere", "unverified"
WEIGHTS = {HERE: 1.0, ELSEWHERE: 0.5, UNVERIFIED: 0.0}
CHANGED = 0.6  # what is left of a figure's weight for each of engine and driver that is another one now
Evidence = dict[str, Any]


def of(
    recipe: Mapping[str, Any],
    device: Mapping[str, Any],
    engine: str,
    version: str | None,
    fingerprint: str | None,
    records: Iterable[Mapping[str, Any]],
) -> Evidence:
    """The weightiest evidence that a recipe works so on a device. `records` are those of benchmark.run, newest first."""
    found = [_of_record(record, device, version, fingerprint) for record in records if record["engine"] == engine]
    found += [_of_figures(figures, device, engine, version) for figures in recipe.get("expected", ())]
    best = max(found, key=lambda each: float(each["weight"]), default=None)
    return best or {"kind": UNVERIFIED, "weight": 0.0, "text": "nobody has measured it", "benchmark_id": None, "figures": None}


def _of_record(record: Mapping[str, Any], device: Mapping[str, Any], version: str | None, fingerprint: str | None) -> Evidence:
    kind = HERE if record["hardware"]["fingerprint"] == fingerprint else ELSEWHERE
    changes = _changes(record["engine_version"], version, record["hardware"]["driver"], device.get("driver"))
    figures = {"tokens_per_second": record["tokens_per_second"], "ttft_ms": record["ttft_ms"]["p50"], "concurrency": record["concurrency"]}
    text = f"{kind} on {record['created_at'][:10]} with {record['engine']} {record['engine_version'] or ''}".rstrip()
    return _told(kind, changes, text, record["id"], figures)


def _of_figures(figures: Mapping[str, Any], device: Mapping[str, Any], engine: str, version: str | None) -> Evidence:
    measured = figures.get("measured")
    shown = {key: figures.get(key) for key in ("tokens_per_second", "ttft_ms")} | {"concurrency": figures.get("concurrency", 1)}
    if measured is None or measured["engine"] != engine:
        return _told(UNVERIFIED, [], figures["evidence"], None, shown)
    changes = _changes(measured.get("engine_version"), version, measured.get("driver"), device.get("driver"))
    if measured["device"] != device["name"]:
        changes = [*changes, f"on {measured['device']}"]
    return _told(ELSEWHERE, changes, figures["evidence"], None, shown)


def _changes(version: str | None, now: str | None, driver: str | None, driver_now: str | None) -> list[str]:
    changed = [f"engine {version}, now {now}"] if version and now and version != now else []
    return changed + ([f"driver {driver}, now {driver_now}"] if driver and driver_now and driver != driver_now else [])


def _told(kind: str, changes: Sequence[str], text: str, id: str | None, figures: Mapping[str, Any]) -> Evidence:
    weight = round(WEIGHTS[kind] * CHANGED ** len(changes), 3)
    said = f"{text} ({'; '.join(changes)})" if changes else text
    return {"kind": kind, "weight": weight, "text": said, "benchmark_id": id, "figures": dict(figures)}
