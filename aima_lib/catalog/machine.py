"""The machine that recipes are matched to: this one, as its hardware says now, or one that somebody describes."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aima_lib.errors import InvalidArgument
from aima_lib.services.books import USUAL_PRIORITY, Books
from aima_lib.services.device import DeviceService

SYSTEMS = {"linux": "linux", "darwin": "macos", "windows": "windows"}
MACHINES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
Device = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Machine:
    """Its devices, and what is free on each once AIMA's reserve is kept: None where the device tells nothing of its memory.

    fingerprint: of the whole machine, also where one device of it was asked for. described: somebody told of it, so what is installed
    there is not known.
    """

    devices: Sequence[Device]
    free: Mapping[str, int | None]
    os: str | None
    machine: str | None
    fingerprint: str
    described: bool = False


async def here(devices: DeviceService, books: Books, device_id: str | None = None) -> Machine:
    """This machine now, or one device of it. Raises NotFound where there is no such device."""
    known = {each["id"]: each for each in await devices.known()}
    asked = [devices.device(device_id)] if device_id else list(known.values())
    free = {each["id"]: await _free(each, books) for each in asked}
    return Machine(asked, free, system(platform.system()), _architecture(known, platform.machine()), fingerprint(known.values()))


def described(overrides: Mapping[str, Any], base: Device | None, reserve: float) -> Machine:
    """A device that somebody describes, or one of this machine with other values.

    Raises:
        InvalidArgument: more is used than there is.
    """
    old = base or {}
    kind = overrides.get("type") or old.get("type") or ("gpu" if overrides.get("vendor") == "nvidia" else "cpu")
    before = old.get("memory") or {"kind": "system" if kind == "cpu" else "dedicated", "total_bytes": None}
    total, used = overrides.get("memory_bytes", before["total_bytes"]), int(overrides.get("used_bytes", 0))
    if total is not None and used > total:
        raise InvalidArgument(f"overrides.used_bytes: {used} is more than memory_bytes, {total}")
    kept = overrides.get("memory_kind", before["kind"])
    device = {
        "id": old.get("id", "described"),
        "name": overrides.get("name") or old.get("name") or f"a {kind} as described",
        "type": kind,
        **{key: overrides.get(key, old.get(key)) for key in ("vendor", "architecture", "driver")},
        "memory": {"kind": kept, "total_bytes": total, "physical_bytes": total, "limited_by": None},
        "cores": {"physical": overrides["cores"], "logical": None} if "cores" in overrides else old.get("cores"),
        "capabilities": [*overrides.get("capabilities", old.get("capabilities", ()))],
    }
    machine = overrides.get("machine") or (device["architecture"] if kind == "cpu" else None)
    runs = overrides.get("os") or (system(platform.system()) if base else "linux")
    free = None if total is None else max(0, int(total * (1 - reserve)) - used)
    return Machine([device], {str(device["id"]): free}, runs, None if machine is None else str(machine), fingerprint([device]), True)


def fingerprint(devices: Iterable[Device]) -> str:
    """The same for the same hardware, whatever drivers it has and however much of its memory is taken."""
    told = [[each["name"], each["vendor"], each["architecture"], _gib(each["memory"]["physical_bytes"]), each["cores"]] for each in devices]
    return hashlib.sha256(json.dumps(sorted(map(json.dumps, told))).encode()).hexdigest()[:16]


def system(name: str) -> str | None:
    """linux, macos or windows."""
    return SYSTEMS.get(name.lower())


def _architecture(known: Mapping[str, Device], told: str) -> str:
    processor = next((each["architecture"] for each in known.values() if each["type"] == "cpu" and each["architecture"]), told)
    name = str(processor).lower()
    return MACHINES.get(name, name)


async def _free(device: Device, books: Books) -> int | None:
    """As admission judges it. Where a device does not tell what is used, all of it counts, and the engine's start will see."""
    room = (await books.account(str(device["id"]))).room(USUAL_PRIORITY)
    total = device["memory"]["total_bytes"]
    return max(0, room) if room is not None else None if total is None else int(total * (1 - books.reserve))


def _gib(size: int | None) -> str:
    return "unknown" if size is None else str(round(size / (1 << 30)))
