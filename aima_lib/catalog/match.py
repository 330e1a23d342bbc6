"""Which recipes suit a machine: hard conditions first, then a score whose every part is said."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aima_lib.catalog import evidence
from aima_lib.catalog.fit import GIB, Fit, Seat, judged
from aima_lib.catalog.machine import Machine, described, here
from aima_lib.catalog.recipe import Recipe, engines
from aima_lib.errors import FailedPrecondition, ResourceExhausted
from aima_lib.services import Services
from aima_lib.services.measurements import Measurements

# What a part of the score may bring; they sum to 1.
SIZE, PROFILE, EVIDENCE, ENGINE, DEVICE, PRESENT = 0.40, 0.10, 0.15, 0.10, 0.15, 0.10
# A processor reads all weights from memory for each token, so their size decides how fast it talks: cores below → most bytes.
CPU_LIMITS = ((8, 1_000_000_000), (24, 3_000_000_000))
MOST_CPU = 6_000_000_000
UNIFIED_LIMIT = 15_000_000_000  # memory that a GPU shares with the processor is read at some 200 to 300 GB a second
SMALLEST, DECADES = 1e8, 3.5  # parameters that are worth nothing and, so many powers of ten more, all
SLOW = 0.5  # what is left of the score of one that is slow there
TALKS = ("llm", "vlm")


@dataclass(frozen=True, slots=True)
class Match:
    """A recipe that fits: on which device, by which engine, how well, and why."""

    fit: Fit
    score: float
    reasons: Sequence[str]
    evidence: Mapping[str, Any]


class Matcher:
    """Judges the recipes of a home against a machine, as it stands now."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._measurements = Measurements(services.store)

    async def machine(self, device_id: str | None, overrides: Mapping[str, Any] | None) -> Machine:
        """This machine, one device of it, or the device that is described."""
        devices = self._services.devices
        if overrides is None:
            return await here(devices, self._services.books, device_id)
        await devices.known()
        return described(overrides, devices.device(device_id) if device_id else None, self._services.books.reserve)

    async def all(self, recipes: Iterable[Recipe], machine: Machine) -> tuple[list[Match], list[Fit]]:
        """Those that fit, the best first, and of the others the nearest miss of each."""
        seats, matches, misses = await self._seats(machine), [], []
        for recipe in recipes:
            fits = [self._fit(recipe, device, machine, seats) for device in machine.devices]
            good = [self._scored(fit, machine) for fit in fits if fit.reason is None]
            if good:
                matches.append(max(good, key=lambda match: match.score))
            else:
                misses.append(_nearest(fits))
        return sorted(matches, key=_order), misses

    async def _seats(self, machine: Machine) -> Mapping[str, Seat]:
        """The engines, as they stand on the machine: there, to be installed, or not to be had."""
        if machine.described:
            return {name: Seat(name, None, False) for name in engines()}
        seats, catalog = {}, self._services.engines.catalog
        for name in engines():
            adapter, found = catalog.adapter(name), await catalog.find(name)
            fetched = found.installed or adapter.install is not None
            image = self._services.engines.containers.image(name)
            seats[name] = Seat(name, found.version, found.installed, None if fetched else found.reason, image)
        return seats

    def _fit(self, recipe: Recipe, device: Mapping[str, Any], machine: Machine, seats: Mapping[str, Seat]) -> Fit:
        present = None if machine.described else self._services.store.peek("model", recipe["name"])
        return judged(recipe, device, machine, seats, engines(), self._measurements, present)

    def _scored(self, fit: Fit, machine: Machine) -> Match:
        assert fit.seat is not None
        recipe, device, seat = fit.recipe, fit.device, fit.seat
        fingerprint = None if machine.described else machine.fingerprint
        records = self._services.store.find("benchmark", model_id=recipe["name"], newest_first=True, limit=50)
        known = evidence.of(recipe, device, seat.name, seat.version, fingerprint, records)
        present = not machine.described and self._services.models.has(recipe["name"])
        return scored(fit, machine.described, known, present)

    async def one(self, recipe: Recipe) -> Match:
        """A recipe on this machine.

        Raises:
            ResourceExhausted: it is for such a device, and needs more memory than is free.
            FailedPrecondition: it does not fit, for the reason that the error says.
        """
        matches, misses = await self.all([recipe], await self.machine(None, None))
        if matches:
            return matches[0]
        miss, name = misses[0], recipe["name"]
        kind = FailedPrecondition if miss.needs_bytes is None else ResourceExhausted
        told = {"limit": 3, "type": recipe["type"]}
        calls = [{"unit": "catalog.match", "arguments": told}]
        raise kind(f"{name} does not fit {miss.device['id']}: {miss.reason}", hint="catalog.match names those that fit", next=calls)


def scored(fit: Fit, described: bool, known: Mapping[str, Any], present: bool) -> Match:
    """The score of a recipe that fits, from 0 to 1, and the reasons in words."""
    assert fit.seat is not None
    recipe, device, seat = fit.recipe, fit.device, fit.seat
    needs, free = fit.needs_bytes or 0, fit.free_bytes or 1
    how = "by the sum of model.estimate_resources" if fit.exact else "by the recipe's own figure"
    reasons = [f"{device['id']} ({device['name']}): needs {needs / GIB:.1f} of {free / GIB:.1f} GiB, {how}"]
    score = SIZE * _ability(recipe)
    named = [key for key in ("names", "architectures", "vendors", "memory_kinds") if key in recipe.get("hardware", {})]
    score += PROFILE * (1.0 if {"names", "architectures"} & set(named) else 0.8 if named else 0.6)
    words = ", ".join(named).replace("_", " ")
    reasons.append(f"it is made for such a device, by {words}" if named else "it is for any device with the memory")
    score += DEVICE * (1.0 if device["type"] == "gpu" else 0.3)
    score += EVIDENCE * known["weight"]
    reasons.append(str(known["text"]) if known["kind"] == "unverified" else f"{known['text']}, weight {known['weight']:g}")
    if described:
        reasons.append(f"{seat.name} runs on such a device; whether it is installed there is not known")
    else:
        score += ENGINE * (1.0 if seat.installed else 0.3)
        version = f" {seat.version}" if seat.version else ""
        reasons.append(f"{seat.name}{version} is installed" if seat.installed else f"{seat.name} would be installed first")
    if present:
        score += PRESENT
        reasons.append("its weights are here already")
    if (limit := _slow(recipe, device)) is not None:
        read = recipe.get("active_bytes", recipe["size_bytes"])
        score *= SLOW * limit / read
        reasons.append(f"slow there: {read / 1e9:.1f} GB are read for each token, and such a device is quick up to {limit / 1e9:.0f}")
    return Match(fit, round(score, 3), reasons, known)


def _ability(recipe: Recipe) -> float:
    """A guess, from 0 to 1, at what a model can do, by its parameters; of a mixture of experts between all of them and those at work."""
    count = recipe.get("parameters", recipe["size_bytes"])
    working = count * recipe.get("active_bytes", recipe["size_bytes"]) / recipe["size_bytes"]
    return min(1.0, max(0.0, math.log10((count * working) ** 0.5 / SMALLEST) / DECADES))


def _slow(recipe: Recipe, device: Mapping[str, Any]) -> int | None:
    """The most the device reads quickly for each token, where the recipe's weights are more."""
    read = recipe.get("active_bytes", recipe["size_bytes"])
    if recipe["type"] not in TALKS or device["memory"]["kind"] == "dedicated":
        return None
    if device["type"] != "cpu":
        return UNIFIED_LIMIT if read > UNIFIED_LIMIT else None
    counted = device["cores"] or {}
    cores = int(counted.get("physical") or counted.get("logical") or 1)
    limit = next((limit for most, limit in CPU_LIMITS if cores < most), MOST_CPU)
    return limit if read > limit else None


def _order(match: Match) -> tuple[float, bool, str]:
    """The best first; of equals, what is made for one kind of work comes after what is made for any."""
    return -match.score, "code" in match.fit.recipe.get("tags", ()), str(match.fit.recipe["name"])


def _nearest(fits: Sequence[Fit]) -> Fit:
    """Of several refusals the one that says most: what was compared by size, else the first GPU's."""
    return max(fits, key=lambda fit: (fit.needs_bytes is not None, fit.seat is not None, fit.device["type"] == "gpu"))


def shown(match: Match, about: Mapping[str, Any]) -> dict[str, Any]:
    """As catalog.match tells it."""
    fit = match.fit
    assert fit.seat is not None
    return {
        "recipe_id": about["id"],
        "recipe": dict(about),
        "score": match.score,
        "device_id": fit.device["id"],
        "engine": fit.seat.name,
        "installed": fit.seat.installed,
        "fits": True,
        "needs_bytes": fit.needs_bytes,
        "free_bytes": fit.free_bytes,
        "reasons": [*match.reasons],
        "evidence": dict(match.evidence),
    }
