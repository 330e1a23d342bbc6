"""Where an engine is meant to run, and where it turned out to: a silent fallback is not silent here."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

Device = Mapping[str, Any]
USED_BYTES = 1 << 20  # less than this taken from a GPU's memory means that nothing was put there


def cores() -> int:
    """Physical cores that this process may use: hyper-threads only slow llama.cpp down."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or usable, usable))


def choose(devices: Sequence[Device], options: Mapping[str, Any], kinds: Collection[str] = ("cpu", "gpu")) -> tuple[Device, str | None]:
    """The device to start on, of the kinds that the engine knows, and why it is not the one that was asked for."""
    processor = next(device for device in devices if device["type"] == "cpu")
    gpus = [device for device in devices if device["type"] == "gpu"]
    layers = options.get("gpu_layers")
    if layers == 0 or "gpu" not in kinds:
        return processor, None
    if gpus:
        return gpus[0], None
    return processor, f"gpu_layers={layers} was asked, but no GPU was detected on this machine" if layers else None


def observed(
    instance: Mapping[str, Any], devices: Sequence[Device], announced: Mapping[str, Any] | None, gpus: Sequence[str] | None
) -> dict[str, Any]:
    """Where it runs, judged by what the engine says it can use and by how much of a GPU's memory it took."""
    if announced is not None and "node" in announced:
        return elsewhere(announced)
    meant = next(device for device in devices if device["id"] == instance["device"])
    if meant["type"] != "gpu":
        return dict(instance["placement"])
    processor = next(device["id"] for device in devices if device["type"] == "cpu")
    if announced is not None and "on" in announced:
        if announced["on"] == "elsewhere":
            return dict(instance["placement"])
        if announced["on"] != "gpu":
            return _fallen(processor, f"{instance['engine']} found no GPU that it can use: it computes on the CPU")
    elif announced is not None:
        before = {row["name"]: row for row in announced["before"] if row["type"] in ("gpu", "igpu")}
        if not before:
            return _fallen(processor, f"this build of {instance['engine']} has no GPU support: it computes on the CPU")
        after = {row["name"]: row["free_bytes"] for row in announced["after"]}
        taken = {name: row["free_bytes"] - after.get(name, row["free_bytes"]) for name, row in before.items()}
        if max(taken.values()) < USED_BYTES:
            return _fallen(processor, f"{instance['engine']} sees {', '.join(before)} and put nothing there")
    elif gpus is not None and not gpus:
        return _fallen(processor, f"{instance['engine']} lists no GPU it can use: it computes on the CPU, not on {meant['id']}")
    return {"device": meant["id"], "fallback": None}


def elsewhere(announced: Mapping[str, Any]) -> dict[str, Any]:
    """On a node of another launcher's, which is no device of this machine's."""
    return {"device": None, "fallback": announced["fallback"], "node": announced["node"]}


def _fallen(device: str, reason: str) -> dict[str, Any]:
    return {"device": device, "fallback": reason}
