"""What measurements teach the formula: pure functions over rows of starts that were measured.

A start of the very same model, engine, version and settings is its own best estimate. Others move the formula: those of the same model by
the bytes they were off, those of other models by the share. The interval narrows as they agree, and never below what they differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from aima_lib.engines.base import CHECKPOINTS
from aima_lib.services.memory import USUAL, Load, Memory

# Changes whenever the formula does: what was said by another is no measure of this one.
FORMULA = 2
FEWEST_OTHERS, PATIENCE, FLOOR = 3, 2, 0.015
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ran:
    """Who ran: the model and the engine of an estimate. None is not known, and equals nothing."""

    engine: str
    version: str | None
    kind: str
    digest: str | None
    architecture: str | None
    quantization: str | None = None


def settings_of(load: Load, options: Mapping[str, Any]) -> dict[str, Any]:
    """What else must be equal for two starts to be the same."""
    return {"cache_type": load.cache_type, "flash_attention": load.flash_attention, "gpu_layers": options.get("gpu_layers")}


def corrected(memory: Memory, rows: Sequence[Row], ran: Ran, load: Load, settings: Mapping[str, Any]) -> Memory:
    """The formula's answer, after what was measured. `rows` are of the same engine, kind of device, and formula."""
    if same := [row for row in rows if _is_same(row, ran, load, settings)]:
        return _measured(memory, same, load)
    foretold = [row for row in rows if row["predicted_bytes"]]  # where the formula knew nothing, it learns nothing
    return memory if memory["total_bytes"] is None or not foretold else _adjusted(memory, foretold, ran)


def peak_of(row: Row) -> int:
    """What a start took at its peak, as far as it shows: a processor's buffers are touched by the first long text only."""
    untouched = row["compute_bytes"] if row["device_kind"] == "cpu" else 0
    return int(max(row["peak_bytes"], row["ready_bytes"] + untouched))


def _is_same(row: Row, ran: Ran, load: Load, settings: Mapping[str, Any]) -> bool:
    who = ran.digest is not None and row["digest"] == ran.digest and ran.version is not None and row["version"] == ran.version
    how = (row["context_length"], row["parallel"], row["batch_size"]) == (load.context_length, load.parallel, load.batch)
    return who and how and row["settings"] == settings


def _measured(memory: Memory, same: Sequence[Row], load: Load) -> Memory:
    peaks = [peak_of(row) for row in same]
    copies = memory["checkpoint_bytes"] // USUAL * CHECKPOINTS if load.kind == "cpu" else 0
    furthest = max(
        max(peaks), max(row["ready_bytes"] + row["compute_bytes"] for row in same if load.kind == "cpu") + copies if copies else 0
    )
    margin = 0.02 + 0.06 / len(peaks)
    found = {"total_bytes": int(median(peaks)), "low_bytes": int(min(row["ready_bytes"] for row in same) * 0.98)}
    return memory | found | {"high_bytes": int(furthest * (1 + margin)), "basis": "measured", "observations": len(same), "reason": None}


def _adjusted(memory: Memory, rows: Sequence[Row], ran: Ran) -> Memory:
    formula = memory["total_bytes"]
    own = [row for row in rows if ran.digest is not None and row["digest"] == ran.digest]
    others = [row for row in rows if row not in own]
    kin = [row for row in others if ran.architecture is not None and row["architecture"] == ran.architecture]
    others = kin if len(kin) >= FEWEST_OTHERS else others
    if not own and len(others) < FEWEST_OTHERS:
        return memory
    share = median(_off(row) / row["predicted_bytes"] for row in others) if len(others) >= FEWEST_OTHERS else 0.0
    by_others = share * formula
    by_own = median(_off(row) for row in own) if own else 0.0
    shift = (len(own) * by_own + by_others) / (len(own) + 1) if own else by_others
    used = own or others
    spread = max(_differs(row, shift if own else share * row["predicted_bytes"]) for row in used)
    above, below = (memory["high_bytes"] - formula) / formula, (formula - memory["low_bytes"]) / formula
    # of a stranger many starts teach no more than one: what they share is theirs
    total, count = int(formula + shift), len(own) or len({row["digest"] for row in others})

    def narrowed(width: float) -> float:
        """Between the formula's width and what the measurements leave, by how many there are."""
        return min(width, (count * (spread + FLOOR) + PATIENCE * width) / (count + PATIENCE))

    found = {"total_bytes": total, "low_bytes": int(total * (1 - narrowed(below))), "high_bytes": int(total * (1 + narrowed(above)))}
    return memory | found | {"basis": "adjusted", "observations": len(used)}


def _differs(row: Row, shift: float) -> float:
    """By what share of the formula a measurement is off after the correction."""
    return abs(_off(row) - shift) / float(row["predicted_bytes"])


def _off(row: Row) -> float:
    return float(peak_of(row) - row["predicted_bytes"])
