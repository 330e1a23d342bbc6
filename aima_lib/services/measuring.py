"""Looks at running engines and keeps what they take: at their first token, every probe, and before their end."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import anyio.to_thread

from aima_lib.errors import AimaError
from aima_lib.infra.store import Document, Store
from aima_lib.launchers.footprint import Footprint, measure, resident_peak
from aima_lib.services.device import DeviceService
from aima_lib.services.measurements import Measurements

log = logging.getLogger(__name__)
GROWTH, DRIVER_SECONDS = 1 << 20, 1.0
Pids = Callable[[str], Sequence[int]]


class Measuring:
    """`pids` gives the processes of an instance. A GPU whose driver does not tell processes apart is judged by what it held before."""

    def __init__(self, store: Store, devices: DeviceService, measurements: Measurements, pids: Pids) -> None:
        self._store, self._devices, self._measurements, self._pids = store, devices, measurements, pids
        self._before: dict[str, int] = {}
        self._resident_before: dict[str, int] = {}

    async def expect(self, instance_id: str, device_id: str) -> None:
        """A start is about to happen: remember what the device holds without it."""
        if self._kind(device_id) == "gpu":
            self._before[instance_id] = await self._devices.used(device_id) or 0

    async def started(self, instance: Document, version: str | None) -> None:
        """An instance is ready: keep what it takes, beside the estimate."""
        if instance["device"] is None or instance["options"].get("rpc"):  # what it takes, it takes elsewhere, or there too
            return
        model = self._store.peek("model", instance["model_id"])
        with _only_logged(instance):
            if model is not None and (found := await self._look(instance)) is not None:
                await self._measurements.record(instance, model, version, self._device(instance["device"]), found)

    async def look(self, instance: Document) -> None:
        """Raise its peak if it takes more than was seen."""
        known = self._measurements.peak(instance)
        if known is None:
            return
        with _only_logged(instance):
            if await self._has_grown(instance) and (found := await self._look(instance)) is not None and found.peak_bytes > known:
                await self._measurements.raise_peak(instance, found)

    async def freeing(self, instance: Document, stop: Callable[[], Awaitable[int]]) -> int:
        """Let `stop` end an instance; the bytes that its device got back: of a GPU its own memory, where its driver tells.

        `stop` returns what the processor's memory got back.
        """
        device = instance["device"]
        try:
            return await self._freeing(instance, device, stop)
        finally:
            self._devices.stale()  # what was read before has what it held

    async def _freeing(self, instance: Document, device: str, stop: Callable[[], Awaitable[int]]) -> int:
        if self._kind(device) != "gpu":
            return await stop()
        held, used = await self._held(instance), await self._devices.used(device)
        own = await stop()
        gone = await self._given_back(device, used) if held is None else held - (await self._held(instance) or 0)
        if gone is None:
            return own
        return gone + own if (self._device(device).get("memory") or {}).get("kind") == "unified" else max(0, gone)

    async def _given_back(self, device_id: str, before: int | None) -> int | None:
        """What a device holds less than before; its driver clears up a moment after a process is gone."""
        after = await self._devices.used(device_id)
        with anyio.move_on_after(DRIVER_SECONDS):
            while after is not None and before is not None and before - after < GROWTH:
                await anyio.sleep(0.05)
                after = await self._devices.used(device_id)
        return None if after is None or before is None else max(0, before - after)

    async def _held(self, instance: Document) -> int | None:
        pids = await anyio.to_thread.run_sync(self._pids, instance["id"])
        return await self._devices.held(instance["device"], pids) if pids else None

    async def _has_grown(self, instance: Mapping[str, Any]) -> bool:
        """Whether it is worth a look: one that walks all pages of a large engine is not free for it."""
        if self._kind(instance["device"]) == "gpu":
            return True
        peak, before = await anyio.to_thread.run_sync(self._resident, instance["id"]), self._resident_before.get(instance["id"], 0)
        grown = not peak or not before <= peak <= before + GROWTH  # no peak: this system does not tell; a lower one: started anew
        if grown:
            self._resident_before[instance["id"]] = peak
        return grown

    def _resident(self, instance_id: str) -> int:
        return resident_peak(self._pids(instance_id))

    async def _look(self, instance: Mapping[str, Any]) -> Footprint | None:
        pids = await anyio.to_thread.run_sync(self._pids, instance["id"])
        return await taken(self._devices, self._device(instance["device"]), pids, self._before.get(instance["id"]))

    def _kind(self, device_id: str) -> str:
        return str(self._device(device_id)["type"])

    def _device(self, device_id: str) -> Mapping[str, Any]:
        return next((device for device in self._devices.devices() if device["id"] == device_id), {"type": "cpu"})


async def taken(devices: DeviceService, device: Mapping[str, Any], pids: Sequence[int], before: int | None = None) -> Footprint | None:
    """What processes take of a device. None: they have ended, or its driver does not tell them apart, nor is known what it held before."""
    own = await anyio.to_thread.run_sync(measure, pids) if pids else None
    if own is None or device["type"] != "gpu":
        return own
    held = await devices.held(device["id"], pids)
    if held is None and before is not None:
        used = await devices.used(device["id"])
        held = None if used is None else max(0, used - before)
    if held is None:
        return None
    if device["memory"]["kind"] == "unified":  # what the GPU holds is memory that the processes do not count
        return Footprint(own.bytes + held, own.peak_bytes + held, "nvml", own.rss_bytes, own.cgroup_bytes)
    return Footprint(held, held, "nvml", own.rss_bytes, own.cgroup_bytes)


@contextmanager
def _only_logged(instance: Mapping[str, Any]) -> Iterator[None]:
    """A measurement that fails costs nobody an engine."""
    try:
        yield
    except AimaError as error:
        log.warning("%s was not measured: %s", instance["id"], error)
