"""Looks at running engines and keeps what they take: at their first token, every probe, and before their end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio.to_thread

from aima_lib.infra.store import Document, Store
from aima_lib.launchers.footprint import Footprint, measure
from aima_lib.services.device import DeviceService
from aima_lib.services.measurements import Measurements

Pids = Callable[[str], Sequence[int]]


class Measuring:
    """`pids` gives the processes of an instance. A GPU whose driver does not tell processes apart is judged by what it held before."""

    def __init__(self, store: Store, devices: DeviceService, measurements: Measurements, pids: Pids) -> None:
        self._store, self._devices, self._measurements, self._pids = store, devices, measurements, pids
        self._before: dict[str, int] = {}

    async def expect(self, instance_id: str, device_id: str) -> None:
        """A start is about to happen: remember what the device holds without it."""
        if self._kind(device_id) == "gpu":
            self._before[instance_id] = (await self._devices.metrics(device_id, 1))["now"]["memory_used_bytes"] or 0

    async def started(self, instance: Document, version: str | None) -> None:
        """An instance is ready: keep what it takes, beside the estimate."""
        model = self._store.peek("model", instance["model_id"])
        if model is None or (found := await self._look(instance)) is None:
            return
        await self._measurements.record(instance, model, version, self._kind(instance["device"]), found)

    async def look(self, instance: Document) -> None:
        """Raise its peak if it takes more than was seen."""
        known = self._measurements.peak(instance)
        if known is not None and (found := await self._look(instance)) is not None and found.peak_bytes > known:
            await self._measurements.raise_peak(instance, found)

    async def _look(self, instance: Mapping[str, Any]) -> Footprint | None:
        device, id = instance["device"], instance["id"]
        pids = await anyio.to_thread.run_sync(self._pids, id)
        own = await anyio.to_thread.run_sync(measure, pids) if pids else None
        if own is None or self._kind(device) != "gpu":
            return own
        held = await self._devices.held(device, pids)
        if held is None and id in self._before:
            used = (await self._devices.metrics(device, 1))["now"]["memory_used_bytes"]
            held = None if used is None else max(0, used - self._before[id])
        if held is None:
            return None
        if self._devices.device(device)["memory"]["kind"] == "unified":  # what the GPU holds is memory that the processes do not count
            return Footprint(own.bytes + held, own.peak_bytes + held, "nvml", own.rss_bytes, own.cgroup_bytes)
        return Footprint(held, held, "nvml", own.rss_bytes, own.cgroup_bytes)

    def _kind(self, device_id: str) -> str:
        return next((str(device["type"]) for device in self._devices.devices() if device["id"] == device_id), "cpu")
