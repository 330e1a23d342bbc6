"""What resource.* shows: the books of memory as admission reads them, and what a start would meet."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread

from aima_lib.infra.kinds import ABILITIES
from aima_lib.infra.store import Document, Store
from aima_lib.services.books import GIB, USUAL_PRIORITY, Account, Books
from aima_lib.services.device import DeviceService
from aima_lib.services.serving import ServingService

CHAT = "chat"


class Occupancy:
    """Views of one home's books."""

    def __init__(self, home: Path, store: Store, devices: DeviceService, books: Books, serving: ServingService) -> None:
        self._home, self._store, self._devices, self._books, self._serving = home, store, devices, books, serving

    async def status(self) -> Document:
        """Memory of every device, the disk of the home, the slots, and whether memory is short."""
        accounts = await self._accounts()
        disk = await anyio.to_thread.run_sync(shutil.disk_usage, self._home)
        short = [account.is_short for account in accounts]
        return {
            "memory": [self._line(account) for account in accounts],
            "storage": {"total_bytes": disk.total, "free_bytes": disk.free},
            "slots": await self._books.slots.all(),
            "pressure": "warning" if any(short) else "unknown" if None in short else "none",
        }

    async def budget(self) -> Document:
        """What each device has, what is kept back, and what of it is planned with, by what for."""
        rows = await self.rows()
        return {"devices": [self._budget(account, rows) for account in await self._accounts()]}

    async def allocations(self, slot_id: str | None = None, type: str | None = None) -> Document:
        """Everything that takes memory: engines, starts under way, slots. Raises NotFound where there is no such slot."""
        if slot_id is not None:
            self._store.get("slot", slot_id)
        found = [row for row in await self.rows() if type in (None, row["type"])]
        return {"allocations": [row for row in found if slot_id is None or (row["kind"], row["id"]) == ("slot", slot_id)]}

    async def can_allocate(self, wanted: int, device_id: str | None, priority: int) -> Document:
        """Whether a start that needs so much would be let in now, why, and who would give way. Raises NotFound for a device."""
        device = await self._devices.meant(device_id)
        account = await self._books.asked(device, wanted, priority)
        room = account.room(priority)
        slots, victims, able = list[Document](), list[str](), None if room is None else wanted <= room
        if room is not None:
            slots = account.giving_way(wanted, priority) if able or not account.is_bound_by_limit(priority) else []
            victims = [] if able else self._serving.residence.making_way("", priority, wanted - room, device)
        gone = slots if able or victims else []  # those who leave for nothing are not asked to
        preempted = [{"kind": "slot", "id": slot["id"], "memory_bytes": slot["held_bytes"]} for slot in gone]
        preempted += [self._victim(victim, device) for victim in victims]
        return {
            "can_allocate": able,
            "reason": self._reason(account, wanted, room, [slot["id"] for slot in gone], victims),
            "would_preempt": preempted,
            "fits_with_make_room": None if able is None else able or bool(victims),
            "device_id": device,
            "needed_bytes": wanted,
            "usable_bytes": None if room is None else max(0, room),
        }

    def _reason(self, account: Account, wanted: int, room: int | None, slots: Sequence[str], victims: Sequence[str]) -> str:
        if room is None:
            return f"{account.device_id} does not tell how much of its memory is free: a start would be tried, and its engine would see"
        what = self._books.why(account, USUAL_PRIORITY)
        text = f"{wanted / GIB:.3f} GiB on {account.device_id}, where {max(0, room) / GIB:.3f} GiB may be used: {what}"
        if wanted <= room:
            return f"fits: {text}" + (f"; {', '.join(slots)} would give way" if slots else "")
        if victims:
            return f"does not fit: {text}; it would with make_room, which unloads {', '.join(victims)}"
        return f"does not fit: {text}; nobody who may be unloaded would make it fit"

    def _victim(self, service_id: str, device_id: str) -> Document:
        size = self._serving.memory_bytes(self._serving.get(service_id), device_id)
        return {"kind": "service", "id": service_id, "memory_bytes": size}

    async def _accounts(self) -> list[Account]:
        return [await self._books.account(device["id"]) for device in await self._devices.known()]

    def _line(self, account: Account) -> Document:
        figures = ("free_bytes", "used_bytes", "total_bytes", "reserved_bytes", "promised_bytes", "slot_bytes")
        return {
            "device_id": account.device_id,
            "pressure": "unknown" if account.is_short is None else "warning" if account.is_short else "none",
            "usable_bytes": None if (room := account.room()) is None else max(0, room),
            **{key: getattr(account, key) for key in figures},
            "shared_with": [id for id in self._books.sharing(account.device_id) if id != account.device_id],
        }

    def _budget(self, account: Account, rows: Sequence[Document]) -> Document:
        among, pools = self._books.sharing(account.device_id), defaultdict[str, Document](_pool)
        for row in rows:
            if row["device_id"] not in among:
                continue
            pool = pools[row["type"]]
            pool["slots" if row["kind"] == "slot" else "engines"] += 1
            pool["bytes"] += row["planned_bytes"] or 0
            pool["unknown"] += row["planned_bytes"] is None
        plan = {key: getattr(account, key) for key in ("device_id", "total_bytes", "reserved_bytes", "limit_bytes")}
        return {**plan, "planned_bytes": self._books.planned(account.device_id), "pools": dict(sorted(pools.items()))}

    async def rows(self) -> list[Document]:
        """One row for each engine that runs, each start, and each slot: types/allocation.json."""
        await self._devices.known()
        alive = {instance["id"]: instance for instance in self._books.alive()}
        starts = [self._engine(id, alive.get(id)) for id in self._books.promised]
        engines = [self._engine(id, instance) for id, instance in alive.items() if id not in self._books.promised]
        return [*engines, *starts, *[_slot(slot) for slot in await self._books.slots.all()]]

    def _engine(self, id: str, instance: Document | None) -> Document:
        found, promise = instance or {}, self._books.promised.get(id)
        service = self._store.peek("service", found.get("service_id") or "") or {}
        return {
            "kind": "start" if promise else "engine",
            "id": id,
            "type": self._task(found),
            "device_id": promise[0] if promise else found["device"],
            "status": found.get("status", "starting"),
            "planned_bytes": promise[1] if promise else self._books.planned_bytes(found),
            "measured_bytes": None if promise else self._books.measured_bytes(found),
            "held_bytes": (promise[1] or 0) if promise else 0,
            "predicted_bytes": promise[1] if promise else found.get("predicted_bytes"),
            "model_id": found.get("model_id"),
            "service_id": found.get("service_id"),
            "priority": service.get("priority", USUAL_PRIORITY),
            "preemptible": bool(service) and not service.get("pinned"),
            "since": found.get("started_at"),
        }

    def _task(self, instance: Mapping[str, Any]) -> str:
        """What an engine is for; of one that is being started, what its model's type does."""
        if instance.get("tasks"):
            return str(instance["tasks"][0])
        model = self._store.peek("model", instance.get("model_id") or "") or {}
        able = ABILITIES.get(model.get("type", ""), ("unknown",))[0]
        return CHAT if able == "complete" else able


def _slot(slot: Document) -> Document:
    same = ("id", "type", "device_id", "status", "measured_bytes", "held_bytes", "priority", "preemptible")
    more = {
        "model_id": None,
        "service_id": None,
        "predicted_bytes": slot["memory_bytes"],
        "planned_bytes": slot["memory_bytes"],
        "since": slot["created_at"],
    }
    return {"kind": "slot", **{key: slot[key] for key in same}, **more}


def _pool() -> Document:
    return {"bytes": 0, "engines": 0, "slots": 0, "unknown": 0}
