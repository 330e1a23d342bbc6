"""Whether a recipe can run on a device: every hard condition, and the reason of the first that does not hold. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from aima_lib.catalog.machine import Machine
from aima_lib.catalog.recipe import Recipe, engine_of
from aima_lib.engines.base import Engine
from aima_lib.services.measurements import Measurements, load_of

FRACTIONS = {"vllm": 0.9, "sglang": 0.88}  # of a GPU's memory that they take when they start, unless told otherwise
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Seat:
    """An engine that a recipe names, as it stands on a machine. reason: why it cannot run there; image: what serves it as a container
    there; contained: that it is to be one.
    """

    name: str
    version: str | None
    installed: bool
    reason: str | None = None
    image: str | None = None
    contained: bool = False


@dataclass(frozen=True, slots=True)
class Fit:
    """What came of asking. reason: the first hard condition that does not hold, None where all do. free_bytes and needs_bytes are those
    that were compared; exact is false where the sum is the recipe's own figure."""

    recipe: Recipe
    device: Mapping[str, Any]
    reason: str | None
    seat: Seat | None = None
    needs_bytes: int | None = None
    free_bytes: int | None = None
    exact: bool = False


def judged(
    recipe: Recipe,
    device: Mapping[str, Any],
    machine: Machine,
    seats: Mapping[str, Seat],
    adapters: Mapping[str, Engine],
    measurements: Measurements,
    present: Mapping[str, Any] | None = None,
) -> Fit:
    """Whether it fits. seats: the engines of the machine; present: the record of its model, where that is here."""
    if (reason := next(_misses(recipe.get("hardware", {}), device, machine), None)) is not None:
        return Fit(recipe, device, reason)
    reasons, free = [], machine.free[device["id"]]
    for given in map(engine_of, recipe["engines"]):
        seat = _seat(given, seats, adapters, device)
        if seat.reason is not None:
            reasons.append(f"{seat.name}: {seat.reason}")
            continue
        needs, exact = needed(recipe, device, seat, measurements, present)
        if reason := _too_big(recipe, device, seat, needs, free):
            return Fit(recipe, device, reason, seat, needs, free, exact)
        return Fit(recipe, device, None, seat, needs, free, exact)
    return Fit(recipe, device, f"no engine of it can run there: {'; '.join(reasons)}")


def needed(
    recipe: Recipe, device: Mapping[str, Any], seat: Seat, measurements: Measurements, present: Mapping[str, Any] | None
) -> tuple[int, bool]:
    """The upper edge of its memory there, by the sum of model.estimate_resources; else the recipe's own figure, and false."""
    options = recipe.get("options", {})
    model = present if present is not None and present.get("geometry") else as_model(recipe)
    high = measurements.estimate(model, seat.name, seat.version, load_of(model, options, device), options)["high_bytes"]
    return (int(recipe["memory_bytes"]), False) if high is None else (int(high), True)


def as_model(recipe: Recipe) -> dict[str, Any]:
    """What is known of its model before that is here, by the names of types/model.json."""
    geometry = dict(recipe.get("geometry", {}))
    if geometry.pop("forgetful", False):
        geometry["cache"] = []
    return {
        "id": recipe["name"],
        "type": recipe["type"],
        "size_bytes": recipe["size_bytes"],
        "context_length": geometry.get("context_length"),
        "geometry": geometry,
        "capabilities": [],
        "quantization": None,
        "digest": None,
        "architecture": None,
    }


def _misses(wanted: Mapping[str, Any], device: Mapping[str, Any], machine: Machine) -> Iterator[str]:
    """The conditions of its hardware profile that do not hold. What is not known does not hold."""
    told = {
        "types": ("kind of device", device["type"]),
        "vendors": ("maker", device["vendor"]),
        "architectures": ("architecture", device["architecture"]),
        "memory_kinds": ("memory", device["memory"]["kind"]),
        "os": ("system", machine.os),
        "machines": ("processor", machine.machine),
    }
    for key, (word, value) in told.items():
        if key in wanted and value not in wanted[key]:
            yield f"it is for {' or '.join(wanted[key])}; the {word} is {value or 'not known'}"
    name = str(device["name"]).lower()
    if "names" in wanted and not any(fnmatchcase(name, pattern.lower()) for pattern in wanted["names"]):
        yield f"it is for {' or '.join(wanted['names'])}; this is {device['name']}"
    if lacking := [each for each in wanted.get("capabilities", ()) if each not in device["capabilities"]]:
        yield f"the device is not known to have {', '.join(lacking)}"
    cores = (device["cores"] or {}).get("physical") or (device["cores"] or {}).get("logical")
    if "min_cores" in wanted and (cores is None or cores < wanted["min_cores"]):
        yield f"it is for {wanted['min_cores']} cores or more; there are {cores or 'an unknown number'}"
    yield from _sizes(wanted.get("memory_bytes", {}), device["memory"]["total_bytes"])


def _sizes(bounds: Mapping[str, int], total: int | None) -> Iterator[str]:
    if bounds and total is None:
        yield "the device does not tell its memory"
    elif total is not None and not bounds.get("min", 0) <= total <= bounds.get("max", 1 << 62):
        most = f" to {_shown(bounds['max'])}" if "max" in bounds else " or more"
        yield f"it is for {_shown(bounds.get('min', 0))}{most} of memory; there are {_shown(total)}"


def _seat(given: Mapping[str, Any], seats: Mapping[str, Seat], adapters: Mapping[str, Engine], device: Mapping[str, Any]) -> Seat:
    name = given["name"]
    seat = seats.get(name) or Seat(name, None, False, "AIMA knows no such engine")
    if "image" in given:
        lacks = f"config.toml does not name {given['image']} under [engines.images.{name}]"
        seat = Seat(name, given["image"], False, None if seat.image == given["image"] else lacks, seat.image, contained=True)
    if seat.reason is not None:
        return seat
    kinds = getattr(adapters[name], "devices", ("cpu", "gpu"))
    if device["type"] not in kinds:
        return Seat(name, seat.version, seat.installed, f"it computes on {', '.join(kinds)} only")
    return seat


def _too_big(recipe: Recipe, device: Mapping[str, Any], seat: Seat, needs: int, free: int | None) -> str | None:
    if free is None:
        return "the device does not tell its memory"
    if needs > free:
        return f"needs {_shown(needs)}, {_shown(free)} are free"
    limit = recipe.get("limits", {}).get("memory_bytes")
    if limit is not None and needs > limit:
        return f"needs {_shown(needs)}, its own limit is {_shown(limit)}"
    options = recipe.get("options", {})
    if options.get("tensor_parallel", 1) > 1:
        return "it is for several GPUs together, which are not matched"
    if seat.name in FRACTIONS and device["type"] == "gpu":
        share = int(options.get("memory_fraction", FRACTIONS[seat.name]) * (device["memory"]["total_bytes"] or 0))
        if needs > share:
            return f"needs {_shown(needs)}, and {seat.name} takes {_shown(share)} by its memory_fraction"
    return None


def _shown(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
