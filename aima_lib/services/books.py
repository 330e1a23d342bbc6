"""The books of memory: what each device has, what is used of it, kept back, promised to starts and held by slots.

There is one set of them. Admission lets starts through by it, estimates and catalog.match look at it, and resource.* shows it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anyio

from aima_lib.infra.events import Events
from aima_lib.infra.hal import Reading
from aima_lib.infra.store import Document, Store
from aima_lib.services.device import FRESH_SECONDS, DeviceService
from aima_lib.services.measurements import Measurements
from aima_lib.services.slots import Slots

GIB = 1 << 30
USUAL_PRIORITY = 50
REREAD_SECONDS = 0.1  # nobody is refused by a reading older than that
SLACK = 0.03  # of the memory must come free beyond the reserve before a device can be short again
ALIVE = ("starting", "ready")


@dataclass(frozen=True, slots=True)
class Account:
    """One device. None is unknown: it is never counted as a number.

    planned_bytes is what its engines and starts may take together, reckoned where the owner's limit bounds it; slot_bytes what slots keep
    free.
    """

    device_id: str
    total_bytes: int | None
    used_bytes: int | None
    reserved_bytes: int | None
    promised_bytes: int
    planned_bytes: int
    limit_bytes: int | None
    slots: tuple[Document, ...]

    @property
    def slot_bytes(self) -> int:
        return sum(slot["held_bytes"] for slot in self.slots)

    @property
    def free_bytes(self) -> int | None:
        return None if self.total_bytes is None or self.used_bytes is None else max(0, self.total_bytes - self.used_bytes)

    @property
    def is_short(self) -> bool | None:
        """Whether less is free than is to be kept back."""
        return None if self.free_bytes is None or self.reserved_bytes is None else self.free_bytes < self.reserved_bytes

    def room(self, priority: int | None = None, *, engine: bool = True) -> int | None:
        """What may be taken there now; less than 0 where too much is taken already. With a priority, once slots have given way to it.

        engine: the owner's limit, which is for engines, counts.
        """
        bounds = [] if self.limit_bytes is None or not engine else [self.limit_bytes - self.planned_bytes]
        if (left := self._left()) is not None:
            bounds.append(left + (0 if priority is None else sum(slot["held_bytes"] for slot in self._yielding(priority))))
        return min(bounds, default=None)

    def is_bound_by_limit(self, priority: int) -> bool:
        """Whether the owner's limit leaves less than the memory does."""
        beyond = self.room(priority, engine=False)
        return self.limit_bytes is not None and (beyond is None or self.limit_bytes - self.planned_bytes < beyond)

    def giving_way(self, wanted: int, priority: int) -> list[Document]:
        """The slots that give way so that so much can be taken, the lowest priority first, and of those the newest."""
        lacking, chosen = wanted - (self._left() or 0), list[Document]()
        for slot in self._yielding(priority) if self._left() is not None else ():
            if lacking <= 0:
                break
            chosen.append(slot)
            lacking -= slot["held_bytes"]
        return chosen

    def _left(self) -> int | None:
        if self.total_bytes is None or self.used_bytes is None or self.reserved_bytes is None:
            return None
        return max(0, self.total_bytes - self.reserved_bytes - self.used_bytes) - self.promised_bytes - self.slot_bytes

    def _yielding(self, priority: int) -> list[Document]:
        newest = [slot for slot in self.slots[::-1] if slot["preemptible"] and slot["priority"] <= priority and slot["held_bytes"]]
        return sorted(newest, key=lambda slot: int(slot["priority"]))


class Books:
    """Of one home. `promised` has what starts under way were let in with, by instance: (device, bytes or None)."""

    def __init__(self, settings: Mapping[str, Any], store: Store, devices: DeviceService, events: Events) -> None:
        self.reserve = float(settings["memory_reserve_fraction"])
        limit = settings["memory_limit_gib"]
        self.limit_bytes = None if limit is None else int(limit * GIB)
        self._store, self._devices, self._events = store, devices, events
        self.slots, self._measurements = Slots(store, devices, events), Measurements(store)
        self.promised: dict[str, tuple[str, int | None]] = {}
        self._locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._short: set[str] = set()
        self.reckon: Callable[[Mapping[str, Any]], int | None] = lambda instance: instance.get("predicted_bytes")
        devices.listeners.append(self._seen)

    async def account(self, device_id: str, *, but: str | None = None, fresh_seconds: float = FRESH_SECONDS) -> Account:
        """A device's account now. `but`: an instance, or a slot, that is left out.

        Raises:
            NotFound: there is no such device.
        """
        await self._devices.known()
        total, used = await self._devices.memory(device_id, fresh_seconds)
        among = self.sharing(device_id)
        slots = tuple(slot for slot in await self.slots.all(among) if slot["id"] != but)
        promised = {id: size or 0 for id, (device, size) in self.promised.items() if device in among and id != but}
        planned = 0 if self.limit_bytes is None else self.planned(device_id, but)
        reserved = None if total is None else total - int(total * (1 - self.reserve))
        return Account(device_id, total, used, reserved, sum(promised.values()), planned, self.limit_bytes, slots)

    async def asked(self, device_id: str, wanted: int, priority: int, *, engine: bool = True, but: str | None = None) -> Account:
        """The account that a wish is judged by. One that refuses it is from a reading of this moment: memory may just have come free."""
        account = await self.account(device_id, but=but)
        room = account.room(priority, engine=engine)
        if room is None or wanted <= room:
            return account
        return await self.account(device_id, but=but, fresh_seconds=REREAD_SECONDS)

    def why(self, account: Account, priority: int | None = None, *, engine: bool = True) -> str:
        """What makes up what may be taken, in words."""
        if engine and priority is not None and account.is_bound_by_limit(priority):
            return f"what is left of the owner's limit of {(account.limit_bytes or 0) / GIB:.3f} GiB, engines.memory_limit_gib"
        less = [f"a reserve of {self.reserve:.0%}"]
        less += ["what is promised to other starts"] if account.promised_bytes else []
        less += [f"{account.slot_bytes / GIB:.3f} GiB that slots hold"] if account.slot_bytes else []
        return f"what is free, less {' and '.join(less)}"

    def lock(self, device_id: str) -> anyio.Lock:
        """Held from a look at a device's account until what was decided by it is entered."""
        return self._locks[min(self.sharing(device_id))]

    @contextmanager
    def promise(self, instance_id: str, device_id: str, size: int | None) -> Iterator[None]:
        """A start is let in: while the block lasts its memory counts as taken, though the engine has not touched it yet."""
        self.promised[instance_id] = (device_id, size)
        try:
            yield
        finally:
            del self.promised[instance_id]
            self._devices.stale()  # what was read before does not have what it took

    def planned(self, device_id: str, but: str | None = None) -> int:
        """What engines and starts may take of a device together, as far as anybody can reckon it."""
        among = self.sharing(device_id)
        promised = {id: size or 0 for id, (device, size) in self.promised.items() if device in among and id != but}
        alive = [each for each in self.alive() if each["device"] in among and each["id"] not in promised and each["id"] != but]
        return sum(promised.values()) + sum(self.planned_bytes(each) or 0 for each in alive)

    def alive(self) -> list[Document]:
        """The instances that run, or are being started."""
        return [each for each in self._store.find("instance") if each["status"] in ALIVE]

    def planned_bytes(self, instance: Mapping[str, Any]) -> int | None:
        """What an instance may take, after all that was measured since it was let in; None where nobody knows."""
        found = self.reckon(instance)
        return self._measurements.peak(instance) if found is None else found

    def measured_bytes(self, instance: Mapping[str, Any]) -> int | None:
        """The most an instance was seen to take; None when it was not measured."""
        return self._measurements.peak(instance)

    def sharing(self, device_id: str) -> list[str]:
        """The devices whose memory is the same: a GPU with unified memory and the processor draw on one."""
        kinds = {device["id"]: device["memory"]["kind"] for device in self._devices.devices()}
        if kinds.get(device_id, "dedicated") == "dedicated":
            return [device_id]
        return [id for id, kind in kinds.items() if kind != "dedicated"]

    def _seen(self, device_id: str, reading: Reading) -> None:
        """A device was sampled: say so when it has become short of memory, and not again before that was over."""
        total, used, whose = reading.memory_total_bytes, reading.memory_used_bytes, min(self.sharing(device_id))
        if total is None or used is None:
            return
        free, reserved = max(0, total - used), total - int(total * (1 - self.reserve))
        if free < reserved and whose not in self._short:
            self._short.add(whose)
            payload = {"device_id": device_id, "free_bytes": free, "reserved_bytes": reserved, "total_bytes": total}
            self._events.publish("resource.pressure_warning", payload, subject=device_id)
        elif free >= reserved + SLACK * total:
            self._short.discard(whose)
