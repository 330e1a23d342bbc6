"""Recipes: models that are known to work, and which of them suits a machine. Pure functions over what the machine says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from aima_lib.errors import InvalidArgument, NotFound, ResourceExhausted
from aima_lib.names import did_you_mean
from aima_lib.registry import PACKAGE, SCHEMAS, Judge

FOLDER = PACKAGE / "recipes"
RESERVE = 0.1
# A processor reads all weights from memory for each token, so their size decides how fast it talks: cores below → most bytes.
CPU_LIMITS = ((8, 1_000_000_000), (24, 3_000_000_000))
# Quick is a download of minutes. Bigger ones are a matter of asking for them by name.
QUICK_BYTES = 6_000_000_000
Recipe = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """A recipe, the device it was chosen for, and why this one."""

    recipe: Recipe
    device_id: str
    reason: str


def load(folder: Path = FOLDER) -> list[Recipe]:
    """Every recipe of a folder, smallest first.

    Raises:
        InvalidArgument: a file is no recipe.
    """
    judge = Judge(json.loads((SCHEMAS / "recipe.schema.json").read_text(encoding="utf-8")))
    recipes = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"{path} is not YAML: {error}") from error
        if wrong := judge.first_error(recipe) or (None if recipe["name"] == path.stem else f"name: is not {path.stem}"):
            raise InvalidArgument(f"{path}: {wrong}", hint="see schemas/recipe.schema.json")
        recipes.append(recipe)
    return sorted(recipes, key=lambda recipe: int(recipe["size_bytes"]))


def named(recipes: Sequence[Recipe], name: str) -> Recipe:
    """The recipe called `name`. Raises NotFound naming the nearest."""
    known = {recipe["name"]: recipe for recipe in recipes}
    if name not in known:
        raise NotFound(f"no recipe called {name!r}", hint=did_you_mean(name, known) or f"there are: {', '.join(known)}")
    return known[name]


def choose(recipes: Sequence[Recipe], devices: Sequence[Mapping[str, Any]], free: Mapping[str, int | None]) -> Choice:
    """The biggest recipe that fits the best device and is still quick there.

    free: what is free on each device, in bytes; None where it is not known, then the device's whole memory counts.

    Raises:
        ResourceExhausted: not even the smallest fits.
    """
    ranked = sorted(devices, key=lambda device: (device["type"] == "gpu", device["memory"]["total_bytes"] or 0), reverse=True)
    for device in (device for device in ranked if device["type"] in ("gpu", "cpu")):
        room, limit = _room(device, free), _limit(device)
        fitting = [recipe for recipe in recipes if recipe["size_bytes"] <= limit and recipe["memory_bytes"] <= room]
        if fitting:
            return Choice(max(fitting, key=lambda recipe: int(recipe["size_bytes"])), device["id"], _reason(device, room, limit))
    smallest = min(recipes, key=lambda recipe: int(recipe["memory_bytes"]))
    rooms = ", ".join(f"{device['id']} {_room(device, free) / 1e9:.1f} GB" for device in devices)
    raise ResourceExhausted(
        f"the smallest recipe, {smallest['name']}, needs {smallest['memory_bytes'] / 1e9:.1f} GB of memory; free are: {rooms}",
        hint="end what uses the memory, or stop an engine",
        next=[{"unit": "engine.list", "arguments": {"status": "running"}}],
    )


def _room(device: Mapping[str, Any], free: Mapping[str, int | None]) -> float:
    known = free.get(device["id"])
    return (1 - RESERVE) * (known if known is not None else device["memory"]["total_bytes"] or 0)


def _limit(device: Mapping[str, Any]) -> int:
    if device["type"] != "cpu":
        return QUICK_BYTES
    cores = _cores(device)
    return next((limit for most, limit in CPU_LIMITS if cores < most), QUICK_BYTES)


def _cores(device: Mapping[str, Any]) -> int:
    counted = device["cores"] or {}
    return int(counted.get("physical") or counted.get("logical") or 1)


def _reason(device: Mapping[str, Any], room: float, limit: int) -> str:
    what = f"{_cores(device)} cores, " if device["type"] == "cpu" else ""
    return f"{device['id']} ({device['name']}): {what}{room / 1e9:.1f} GB of room, quick with weights up to {limit / 1e9:.0f} GB"
