"""Every start's predicted and measured memory, and estimates that have learned from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import apsw

from aima_lib.engines.base import batch_of, context_of, tasks_of
from aima_lib.infra.store import Store
from aima_lib.launchers.footprint import Footprint
from aima_lib.services import learning, memory
from aima_lib.services.learning import FORMULA, Ran
from aima_lib.services.memory import Load, Memory

NEWEST, KEPT = 500, 5_000
Device = Mapping[str, Any]
COLUMNS = (
    "digest", "architecture", "version", "context_length", "parallel", "batch_size", "settings", "predicted_bytes", "compute_bytes",
    "ready_bytes", "peak_bytes", "device_kind",
)  # fmt: skip


class Measurements:
    """The table `measurements` of one home."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def estimate(self, model: Mapping[str, Any], engine: str, version: str | None, load: Load, options: Mapping[str, Any]) -> Memory:
        """What a model takes when an engine runs it so: by formula, after what was measured here.

        `model` has geometry and size_bytes, and digest, architecture and quantization as far as they are known.
        """
        by_formula = memory.estimate(model.get("geometry") or {}, model.get("size_bytes"), load.context_length, load.parallel, load)
        ran = Ran(engine, version, load.kind, model.get("digest"), model.get("architecture"), model.get("quantization"))
        return learning.corrected(by_formula, self._rows(engine, load.kind), ran, load, learning.settings_of(load, options))

    def high_bytes(
        self, model: Mapping[str, Any], engine: str, version: str | None, device: Device, options: Mapping[str, Any]
    ) -> int | None:
        """The upper edge of the estimate of a start with these options; None for one that is spread over other machines too."""
        if options.get("rpc"):
            return None
        high = self.estimate(model, engine, version, load_of(model, options, device), options)["high_bytes"]
        return None if high is None else int(high)

    async def record(
        self, instance: Mapping[str, Any], model: Mapping[str, Any], version: str | None, device: Device, found: Footprint
    ) -> None:
        """Keep what a start took when it was ready, beside what had been foretold."""
        options = instance["options"]
        load = load_of(model, options, device)
        said = self.estimate(model, instance["engine"], version, load, options)
        formula = memory.estimate(model.get("geometry") or {}, model.get("size_bytes"), load.context_length, load.parallel, load)
        row = (
            instance["id"], instance["started_at"], model["id"], model.get("digest"), model.get("architecture"), model.get("quantization"),
            instance["engine"], version, instance["device"], device["type"], load.context_length, load.parallel, load.batch,
            json.dumps(learning.settings_of(load, options), sort_keys=True), FORMULA, formula["total_bytes"] or 0, said["low_bytes"] or 0,
            said["high_bytes"] or 0, formula["compute_bytes"] or 0, formula["checkpoint_bytes"], found.bytes, found.peak_bytes,
            found.rss_bytes, found.cgroup_bytes, found.source,
        )  # fmt: skip
        marks = ", ".join("?" * len(row))

        def write(db: apsw.Connection) -> None:
            db.execute(f"INSERT OR IGNORE INTO measurements VALUES ({marks})", row)
            oldest = "SELECT started_at FROM measurements ORDER BY started_at DESC LIMIT 1 OFFSET ?"
            db.execute(f"DELETE FROM measurements WHERE started_at < ({oldest})", (KEPT,))

        await self._store.submit(write)

    async def raise_peak(self, instance: Mapping[str, Any], found: Footprint) -> None:
        """A start was seen to take more than before."""
        which = "instance_id = ? AND started_at = ? AND peak_bytes < ?"
        sql = f"UPDATE measurements SET peak_bytes = ?, rss_bytes = ?, cgroup_bytes = ? WHERE {which}"
        values = (found.peak_bytes, found.rss_bytes, found.cgroup_bytes, instance["id"], instance["started_at"], found.peak_bytes)
        await self._store.submit(lambda db: db.execute(sql, values))

    def peak(self, instance: Mapping[str, Any]) -> int | None:
        """The most an instance was seen to take; None when it was not measured."""
        sql = "SELECT peak_bytes FROM measurements WHERE instance_id = ? AND started_at = ?"
        rows = self._store.read(sql, (instance["id"], instance["started_at"]))
        return int(rows[0][0]) if rows else None

    def _rows(self, engine: str, kind: str) -> list[dict[str, Any]]:
        sql = (
            f"SELECT {', '.join(COLUMNS)} FROM measurements WHERE engine = ? AND device_kind = ? AND formula = ?"
            " ORDER BY started_at DESC LIMIT ?"
        )
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in self._store.read(sql, (engine, kind, FORMULA, NEWEST))]
        return [row | {"settings": json.loads(row["settings"])} for row in rows]


def load_of(model: Mapping[str, Any], options: Mapping[str, Any], device: Device) -> Load:
    """How a start with these options runs a model on a device."""
    context, tasks = context_of(model, options), tasks_of(model, options)
    load = Load(
        context, int(options.get("parallel", 1)), batch_of(context, tasks, options), str(options.get("cache_type", "f16")),
        str(options.get("flash_attention", "auto")),
    )  # fmt: skip
    return load if options.get("gpu_layers") == 0 else memory.on(load, device)
