"""Slots taken, changed and given back, by the same books that let engines start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aima_lib.errors import AlreadyExists, FailedPrecondition, InvalidArgument, ResourceExhausted
from aima_lib.infra.clock import now
from aima_lib.infra.events import Events
from aima_lib.infra.store import Document, Store
from aima_lib.names import slug
from aima_lib.services.books import GIB, Account, Books
from aima_lib.services.device import DeviceService
from aima_lib.services.serving import ServingService
from aima_lib.services.slots import IN_USE, RESERVED, SHORT, fresh, started

BOOKS: Sequence[Document] = [{"unit": "resource.status", "arguments": {}}, {"unit": "resource.allocations", "arguments": {}}]


class Reservations:
    """The slots of one home."""

    def __init__(self, store: Store, events: Events, devices: DeviceService, books: Books, serving: ServingService) -> None:
        self._store, self._events, self._devices, self._books, self._serving = store, events, devices, books, serving

    async def allocate(self, name: str, given: Mapping[str, Any]) -> Document:
        """Keep memory of a device free under a name; the same call again changes nothing.

        given: type, memory_bytes, device_id, gpu_fraction, priority, preemptible, pid.

        Raises:
            NotFound: there is no such device.
            InvalidArgument: a share of a processor, or a process that is not there.
            AlreadyExists: a slot of that name is for something else.
            FailedPrecondition: the device does not tell how much memory it has.
            ResourceExhausted: it is more than may be taken, or than a whole GPU.
        """
        device_id = await self._devices.meant(given["device_id"])
        record = fresh(slug(name), {"name": name, **given, "device_id": device_id}, now())
        async with self._books.lock(device_id):
            if old := self._store.peek("slot", record["id"]):
                return await self._books.slots.view(self._same(old, record))
            self._refuse_share(record)
            await self._take(record, (await self._books.slots.view(record))["held_bytes"])
            await self._store.insert("slot", record)
        self._events.publish("resource.allocated", {"slot_id": record["id"], **{key: record[key] for key in SHORT}}, subject=record["id"])
        return await self._books.slots.view(record)

    async def release(self, slot_id: str) -> Document:
        """Give a slot's memory back; the slot as it was. Raises NotFound where there is none, or no more."""
        async with self._books.lock(self._store.get("slot", slot_id)["device_id"]):
            slot = await self._books.slots.view(self._store.get("slot", slot_id))
            await self._books.slots.drop(slot)
        return slot

    async def update(self, slot_id: str, changes: Mapping[str, Any]) -> Document:
        """Change a slot's memory_bytes, status, pid, priority or preemptible; None leaves one as it is.

        Raises:
            NotFound: there is no such slot.
            InvalidArgument: there is no such process.
            FailedPrecondition: its program takes more than that already.
            ResourceExhausted: it would keep more free than may be taken.
        """
        async with self._books.lock(self._store.get("slot", slot_id)["device_id"]):
            old = self._store.get("slot", slot_id)
            record = old | _changed(changes)
            wanted, before = await self._books.slots.view(record), await self._books.slots.view(old)
            if record["memory_bytes"] < old["memory_bytes"] and record["memory_bytes"] < (wanted["measured_bytes"] or 0):
                raise _in_use(wanted)
            if wanted["held_bytes"] > before["held_bytes"]:
                await self._take(record, wanted["held_bytes"])
            await self._store.put("slot", record)
        if record != old:
            self._events.publish("resource.allocated", {"slot_id": slot_id, **{key: record[key] for key in SHORT}}, subject=slot_id)
        return wanted

    async def leaving(self, device_id: str | None, wanted: int, priority: int, but: str | None = None) -> list[str]:
        """The slots that would give way to another of that size and priority."""
        account = await self._books.account(await self._devices.meant(device_id), but=but)
        room = account.room(priority, engine=False)
        return [] if room is None or wanted > room else [slot["id"] for slot in account.giving_way(wanted, priority)]

    async def _take(self, record: Document, wanted: int) -> None:
        """Make sure that so much may be kept free for a slot; preemptible ones give way. For who holds the device's lock."""
        id, device_id, priority = record["id"], record["device_id"], record["priority"]
        account = await self._books.asked(device_id, wanted, priority, engine=False, but=id)
        room = account.room(priority, engine=False)
        if room is None:
            calls = [{"unit": "device.metrics", "arguments": {"device_id": device_id}}]
            message = f"{device_id} does not tell how much of its memory is free, so none of it can be kept for {id}"
            raise FailedPrecondition(message, hint="device.metrics says why under unknown", next=calls)
        if wanted > room:
            raise self._overbooked(record, account, wanted, max(0, room))
        for slot in account.giving_way(wanted, priority):
            await self._books.slots.drop(slot, id)

    def _overbooked(self, record: Document, account: Account, wanted: int, room: int) -> ResourceExhausted:
        message = (
            f"{record['id']} needs {wanted / GIB:.3f} GiB on {account.device_id}, and {room / GIB:.3f} GiB may be taken "
            f"({self._books.why(account, engine=False)})"
        )
        lacking = wanted - room
        victims = self._serving.residence.making_way("", record["priority"], lacking, account.device_id)
        calls = [{"unit": "service.stop", "arguments": {"service_id": victim}} for victim in victims]
        hint = f"it fits once {', '.join(victims)} {'is' if len(victims) == 1 else 'are'} stopped" if victims else "take less"
        details = {"needed_bytes": wanted, "usable_bytes": room, "device_id": account.device_id}
        return ResourceExhausted(message, hint=f"{hint}, or release a slot", next=[*calls, *BOOKS], details=details)

    def _same(self, old: Document, record: Document) -> Document:
        """A slot that is there already, if it is what was asked for."""
        keys = (*SHORT, "gpu_fraction", "pid")
        if other := [key for key in keys if old[key] != record[key]]:
            update = {"unit": "resource.update_slot", "arguments": {"slot_id": old["id"], "memory_bytes": record["memory_bytes"]}}
            release = {"unit": "resource.release", "arguments": {"slot_id": old["id"]}}
            message = f"there is a slot called {old['id']!r} already, with another {', '.join(other)}"
            raise AlreadyExists(message, hint="change it, release it, or take another name", next=[update, release])
        return old

    def _refuse_share(self, record: Document) -> None:
        share, device_id = record["gpu_fraction"], record["device_id"]
        if share is None:
            return
        if self._devices.device(device_id)["type"] != "gpu":
            raise InvalidArgument(f"gpu_fraction: {device_id} is no GPU", hint="leave it out, or name a GPU's device_id")
        taken = sum(each["gpu_fraction"] or 0 for each in self._store.find("slot", device_id=device_id))
        if taken + share > 1 + 1e-9:
            message = f"gpu_fraction: {share:g} of {device_id} was asked, and {max(0.0, 1 - taken):g} is left beside other slots"
            raise ResourceExhausted(message, hint="release a slot, or ask for less", next=[*BOOKS])


def _changed(changes: Mapping[str, Any]) -> Document:
    """What of a slot's record becomes other. A process makes it one in use; one that is reserved again has none."""
    given = {key: value for key, value in changes.items() if value is not None}
    if "pid" in given:
        if given.get("status") == RESERVED:
            raise InvalidArgument("pid: a slot that is reserved has no process yet", hint="leave out pid, or status")
        return {**given, "pid_started": started(given["pid"]), "status": IN_USE}
    return {**given, "pid": None, "pid_started": None} if given.get("status") == RESERVED else given


def _in_use(slot: Document) -> FailedPrecondition:
    measured, id = slot["measured_bytes"], slot["id"]
    message = f"process {slot['pid']} of {id} takes {measured / GIB:.3f} GiB already, and {slot['memory_bytes'] / GIB:.3f} GiB is less"
    enough = {"unit": "resource.update_slot", "arguments": {"slot_id": id, "memory_bytes": measured}}
    hint = "end its process first, or keep at least what it takes"
    return FailedPrecondition(message, hint=hint, next=[enough], details={"measured_bytes": measured})
