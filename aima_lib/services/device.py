"""The machine's devices: what there is, what they do now and did lately, and whether they are well."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread

from aima_lib.errors import NotFound
from aima_lib.infra import lineage
from aima_lib.infra.clock import stamp
from aima_lib.infra.events import Events
from aima_lib.infra.hal import METRICS, Device, Found, Hardware, Reading
from aima_lib.infra.store import Store
from aima_lib.names import did_you_mean, nearest
from aima_lib.services import device_health as judged

Sample = tuple[float, dict[str, float | int | None]]
FRESH_SECONDS = 0.5  # callers within half a second share one reading: a hundred watchers cost no more than two


class DeviceService:
    """Knows the devices since the last detection. `hardware` is another machine than this one, for those who have it on file."""

    def __init__(self, config: Mapping[str, Any], store: Store, events: Events, hardware: Hardware | None = None) -> None:
        self._limits, self._store, self._events = config["devices"], store, events
        self._hardware = hardware or Hardware()
        self._found: dict[str, Found] = {}
        self._devices: dict[str, Device] | None = None
        self._readings: dict[str, tuple[float, float, Reading]] = {}
        self._history: dict[str, deque[Sample]] = {}
        self._raised: dict[str, dict[str, str]] = {}
        self._status: dict[str, str] = {}
        self._detecting = anyio.Lock()
        self.listeners: list[Callable[[str, Reading], None]] = []  # hear of every sample of the loop

    async def detect(self) -> list[Device]:
        """Look at the hardware anew, remember it, publish device.detected."""
        async with self._detecting:
            found = await anyio.to_thread.run_sync(self._hardware.detect)
            before = {document["id"]: document for document in self._store.find("device")}
            devices = self._adopt(found)
            after = {device["id"]: device for device in devices}
            changed = [id for id, device in after.items() if id in before and before[id] != device]
            added, removed = [id for id in after if id not in before], [id for id in before if id not in after]
            for id in [*added, *changed]:
                await self._store.put("device", after[id])
            for id in removed:
                await self._store.delete("device", id)
            self._events.publish("device.detected", {"device_ids": list(after), "added": added, "removed": removed, "changed": changed})
            return devices

    async def known(self) -> list[Device]:
        """The devices of the last detection; looks once, without an event, when there was none."""
        if self._devices is None:
            self._adopt(await anyio.to_thread.run_sync(self._hardware.detect))
        return self.devices()

    def devices(self) -> list[Device]:
        """The devices of the last detection, the processor first. The very first call looks, and waits for the driver."""
        if self._devices is None:
            self._adopt(self._hardware.detect())
        return list((self._devices or {}).values())

    def device(self, id: str) -> Device:
        """One device.

        Raises:
            NotFound: there is none of that id; the nearest are named.
        """
        known = {device["id"]: device for device in self.devices()}
        if id not in known:
            hint = did_you_mean(id, known) or f"there are: {', '.join(known)}"
            calls = [{"unit": "device.info", "arguments": {}}]
            raise NotFound(f"no device called {id!r}", hint=hint, next=calls, details={"nearest": nearest(id, known)})
        return known[id]

    async def meant(self, id: str | None) -> str:
        """The id of a device; without one, of that which engines are started on: the first GPU, else the processor. Raises NotFound."""
        await self.known()
        return str((self._main() if id is None else self.device(id))["id"])

    def sources(self) -> list[dict[str, Any]]:
        """How each kind of hardware was looked for: {source, found, reason}, the reason where nothing was found."""
        return [{"source": name, "found": len(found.devices), "reason": found.absent} for name, found in self._found.items()]

    async def metrics(
        self, device_id: str | None = None, window_seconds: float = 300, resolution_seconds: float | None = None
    ) -> dict[str, Any]:
        """A fresh sample and the history of one device (the first GPU, else the processor), and a fresh sample of every one asked for.

        Raises:
            NotFound: there is no such device.
        """
        await self.known()
        main = self.device(device_id) if device_id else self._main()
        asked = [main] if device_id else self.devices()
        now = [{"device_id": device["id"], "now": await self._now(device)} for device in asked]
        oldest = time.time() - window_seconds
        samples = [sample for sample in self._history.get(main["id"], ()) if sample[0] >= oldest]
        mine = next(entry["now"] for entry in now if entry["device_id"] == main["id"])
        return {"device_id": main["id"], "now": mine, "history": _points(samples, resolution_seconds), "devices": now}

    async def held(self, device_id: str, pids: Collection[int]) -> int | None:
        """Bytes of a GPU's memory that these processes hold; None when its driver does not tell."""
        return await anyio.to_thread.run_sync(self._hardware.held, self.device(device_id), pids, abandon_on_cancel=True)

    async def memory(self, device_id: str, fresh_seconds: float = FRESH_SECONDS) -> tuple[int | None, int | None]:
        """Bytes of a device's memory, and how many of them are taken, by a reading not older than that. Raises NotFound."""
        reading = await self._read(self.device(device_id), fresh_seconds)
        return reading.memory_total_bytes, reading.memory_used_bytes

    def stale(self) -> None:
        """What was read of the devices is known to be past."""
        self._readings.clear()

    async def used(self, device_id: str) -> int | None:
        """Bytes of a device's memory that are taken at this very moment; None when it does not tell, or is gone."""
        found = next((device for device in self.devices() if device["id"] == device_id), None)
        return (await self._read(found, fresh=0)).memory_used_bytes if found else None

    def sample(self, device_id: str, before: datetime, within_seconds: float = 60) -> dict[str, Any] | None:
        """The last sample of a device in the seconds before a moment, if one was taken and is still kept."""
        latest = before.timestamp()
        found = [sample for sample in self._history.get(device_id, ()) if latest - within_seconds <= sample[0] <= latest]
        return {"time": _moment(found[-1][0]), **found[-1][1]} if found else None

    async def health(self, device_id: str | None = None) -> dict[str, Any]:
        """Status and issues of one device, or of all and of the machine's drivers.

        Raises:
            NotFound: there is no such device.
        """
        await self.known()
        issues, devices = [], []
        for device in [self.device(device_id)] if device_id else self.devices():
            reading = await self._read(device)
            high = judged.levels(reading, self._limits, self._raised.get(device["id"], {}))
            found = judged.issues(device["id"], reading, high, device["source"])
            issues += found
            devices.append({"device_id": device["id"], "status": judged.status(found, reading)})
        machine = [] if device_id else [judged.fault_issue(fault) for found in self._found.values() for fault in found.faults]
        status = judged.worst([device["status"] for device in devices] + [issue["severity"] for issue in machine])
        return {"status": status, "issues": machine + issues, "devices": devices}

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Sample every device into the history; publish what becomes too high, and changes of health. Runs until cancelled."""
        if self._devices is None:
            await self.detect()
        task_status.started()
        while True:
            for device in self.devices():
                await self._watch(device)
            await anyio.sleep(self._limits["sample_seconds"])

    async def _watch(self, device: Device) -> None:
        id, reading = device["id"], await self._read(device, fresh=0.0)
        raised = self._raised.get(id, {})
        high = judged.levels(reading, self._limits, raised)
        new = [level for level in high if level.metric not in raised]
        self._raised[id] = {level.metric: level.severity for level in high}
        self._remember(id, reading)
        for listener in self.listeners:
            listener(id, reading)
        alert = None
        for level in new:
            payload = {"device_id": id, "metric": level.metric, "value": level.value, "threshold": level.threshold}
            alert = self._events.publish("device.metrics_alert", payload, subject=id)
        status = judged.status(judged.issues(id, reading, high, device["source"]), reading)
        before, self._status[id] = self._status.get(id), status
        if status != (before or "healthy"):  # a device that is well when first seen is no news
            payload = {"device_id": id, "old_status": before or "unknown", "new_status": status}
            with lineage.after(alert):
                self._events.publish("device.health_changed", payload, subject=id)

    def _remember(self, id: str, reading: Reading) -> None:
        kept = int(self._limits["history_seconds"] / self._limits["sample_seconds"]) + 1  # also when the clock is set back, and ages stop
        history = self._history.setdefault(id, deque(maxlen=kept))
        history.append((time.time(), reading.values()))
        while history[0][0] < time.time() - self._limits["history_seconds"]:
            history.popleft()

    async def _read(self, device: Device, fresh: float = FRESH_SECONDS) -> Reading:
        last = self._readings.get(device["id"])
        if last is not None and time.monotonic() - last[0] < fresh:
            return last[2]
        # a driver that hangs must not hold up a caller who gave up
        reading = await anyio.to_thread.run_sync(self._hardware.read, device, abandon_on_cancel=True)
        self._readings[device["id"]] = (time.monotonic(), time.time(), reading)
        return reading

    async def _now(self, device: Device) -> dict[str, Any]:
        reading = await self._read(device)
        return {"time": _moment(self._readings[device["id"]][1]), **reading.values(), "unknown": reading.unknown}

    def _main(self) -> Device:
        devices = self.devices()
        return next((device for device in devices if device["type"] == "gpu"), devices[0])

    def _adopt(self, found: dict[str, Found]) -> list[Device]:
        devices = {device["id"]: device for source in found.values() for device in source.devices}
        for id in set(self._devices or {}) - set(devices):
            for memory in (self._readings, self._history, self._raised, self._status):
                memory.pop(id, None)
        self._found, self._devices = found, devices
        self._readings.clear()  # a driver started anew may answer otherwise
        return list(devices.values())


def _moment(seconds: float) -> str:
    return stamp(datetime.fromtimestamp(seconds, UTC))


def _points(samples: Iterable[Sample], resolution_seconds: float | None) -> list[dict[str, Any]]:
    """One point for each `resolution_seconds`: the means of its samples, at the time of its last one."""
    buckets: dict[float, list[Sample]] = {}
    for sample in samples:
        buckets.setdefault(sample[0] // resolution_seconds if resolution_seconds else sample[0], []).append(sample)
    return [{"time": _moment(group[-1][0])} | {name: _mean([s[1][name] for s in group]) for name in METRICS} for group in buckets.values()]


def _mean(values: Iterable[float | int | None]) -> float | int | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = sum(known) / len(known)
    return round(mean) if all(isinstance(value, int) for value in known) else round(mean, 4)
