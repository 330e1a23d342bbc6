"""Slots: memory kept free for what AIMA does not start itself, a desktop program say, or a container of the owner's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import anyio.to_thread
import psutil

from aima_lib.errors import InvalidArgument
from aima_lib.infra.events import Events
from aima_lib.infra.home import create_time, is_alive
from aima_lib.infra.store import Document, Store
from aima_lib.services.device import DeviceService
from aima_lib.services.measuring import taken

RESERVED, IN_USE = "reserved", "in_use"
SHORT = ("name", "type", "device_id", "memory_bytes", "priority", "preemptible")


class Slots:
    """What is on record of them, and what each holds now."""

    def __init__(self, store: Store, devices: DeviceService, events: Events) -> None:
        self._store, self._devices, self._events = store, devices, events

    async def all(self, device_ids: Collection[str] | None = None) -> list[Document]:
        """The slots, of these devices or of all, the oldest first, as they are now."""
        return [await self.view(record) for record in self._store.find("slot") if device_ids is None or record["device_id"] in device_ids]

    async def view(self, record: Document) -> Document:
        """A slot as it is now: types/slot.json.

        What its program has taken is in what the device says is used, so it is not kept free a second time. Where that cannot be
        measured, a slot that is in use keeps nothing free.
        """
        shown = {key: value for key, value in record.items() if key != "pid_started"}
        pids = [] if record["pid"] is None else await anyio.to_thread.run_sync(_tree, record["pid"], record["pid_started"])
        if record["status"] == RESERVED or (record["pid"] is not None and not pids):
            why = f"process {record['pid']} has ended" if record["pid"] is not None else "nothing has taken it yet"
            return {**shown, "status": RESERVED, "held_bytes": record["memory_bytes"], "measured_bytes": None, "reason": why}
        measured, reason = await self._measured(record, pids)
        held = 0 if measured is None else max(0, record["memory_bytes"] - measured)
        return {**shown, "held_bytes": held, "measured_bytes": measured, "reason": reason}

    async def drop(self, slot: Document, taker: str | None = None) -> None:
        """A slot is released; or, to a taker, it gives way."""
        await self._store.delete("slot", slot["id"])
        payload = {"slot_id": slot["id"], **{key: slot[key] for key in SHORT}}
        if taker is None:
            self._events.publish("resource.released", payload, subject=slot["id"])
        else:
            self._events.publish("resource.preemption", {**payload, "preempted_by": taker}, subject=slot["id"])

    async def _measured(self, record: Document, pids: Sequence[int]) -> tuple[int | None, str | None]:
        """What the program of a slot takes of its device, or why that is not known."""
        if not pids:
            return None, "no pid says which process it is; what it takes is in what the device says is used"
        device = next((each for each in self._devices.devices() if each["id"] == record["device_id"]), None)
        found = await taken(self._devices, device, pids) if device else None
        return (found.bytes, None) if found else (None, f"{record['device_id']} does not tell what a process takes of it")


def started(pid: int) -> float:
    """When a process began, by which it is told from a later one of that number. Raises InvalidArgument where there is none."""
    if (found := create_time(pid)) is None:
        raise InvalidArgument(f"pid: there is no process {pid}", hint="leave it out where its program does not run yet")
    return found


def _tree(pid: int, since: float) -> Sequence[int]:
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))] if is_alive(pid, since) else []
    except psutil.Error:
        return []


def fresh(id: str, given: dict[str, Any], created_at: str) -> Document:
    """The record of a new slot."""
    pid = given["pid"]
    since = None if pid is None else started(pid)
    return {"id": id, **given, "status": RESERVED if pid is None else IN_USE, "pid_started": since, "created_at": created_at}
