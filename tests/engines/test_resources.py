"""The books of memory: what slots hold no start is let into, and what is shown is what admission goes by."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from aima_lib import runtime
from aima_lib.errors import AimaError, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from aima_lib.gateway import Gateway
from aima_lib.infra.hal import Hardware
from aima_lib.infra.home import Home
from tests.engines.conftest import Hosted
from tests.machines import MACHINES, NOT_SUPPORTED, being, gpu
from tests.unit.test_nvidia import Library

pytestmark = [pytest.mark.anyio, pytest.mark.engine]
GIB, MIB = 1 << 30, 1 << 20
USABLE = int(8 * GIB * 0.9) - GIB // 2  # of the card, as it is at first
HELD = {"type": "desktop", "device_id": "gpu-0"}


async def with_card(gateway: Gateway, folder: Path, used: float = 0.5) -> Mapping[str, Any]:
    """Let the machine have a card of 8 GiB besides; returns what its driver answers. Engines fall back to the processor."""
    card: dict[str, Any] = dict(gpu("NVIDIA GeForce RTX 3060 Ti", "ampere", 8, used))
    await become(gateway, Hardware(folder, Library(card), "x86_64"))
    return card


async def become(gateway: Gateway, hardware: Hardware) -> None:
    gateway.services.devices._hardware = hardware
    await gateway.services.devices.detect()


def takes(card: Any, gib: float) -> None:
    """So much of the card is in use from now on."""
    card["nvmlDeviceGetMemoryInfo"] = SimpleNamespace(total=8 * GIB, free=int((8 - gib) * GIB), used=int(gib * GIB))


async def line(hosted: Hosted, device_id: str = "gpu-0") -> Mapping[str, Any]:
    """A device's account."""
    memory = (await hosted.call("resource.status"))["memory"]
    return next(dict(row) for row in memory if row["device_id"] == device_id)


async def could(hosted: Hosted, size: int, **more: Any) -> Mapping[str, Any]:
    return await hosted.call("resource.can_allocate", memory_bytes=size, **{"device_id": "gpu-0", **more})


async def test_nothing_is_started_into_a_slot_until_it_is_released(hosted: Hosted, tmp_path: Path) -> None:
    card: Any = await with_card(hosted.gateway, tmp_path)
    model = await hosted.tiny()
    order = {"name": "llamacpp", "model_id": model, "options": {"context_length": 256}}
    needed = hosted.gateway.services.engines.needed_bytes(**order)  # type: ignore[arg-type]
    assert needed and (await line(hosted))["usable_bytes"] == USABLE
    slot = (await hosted.call("resource.allocate", name="Game", memory_bytes=USABLE - needed + 1, **HELD))["slot"]
    assert (slot["id"], slot["status"], slot["held_bytes"]) == ("game", "reserved", slot["memory_bytes"])
    seen = await line(hosted)
    assert (seen["slot_bytes"], seen["usable_bytes"]) == (slot["memory_bytes"], needed - 1)
    foretold = await could(hosted, needed)
    assert foretold["can_allocate"] is False and foretold["would_preempt"] == [] and foretold["usable_bytes"] == needed - 1
    assert "slots hold" in foretold["reason"]
    fits = (await hosted.call("model.estimate_resources", model_id=model, context_length=256, device_id="gpu-0"))["fits"]
    assert not fits[0]["fits"]
    with pytest.raises(ResourceExhausted, match="that slots hold") as refused:
        await hosted.call("engine.start", **order)
    assert refused.value.details["usable_bytes"] == needed - 1
    assert {"unit": "resource.allocations", "arguments": {}} in refused.value.next
    assert (await could(hosted, needed - 1))["can_allocate"] is True
    await hosted.call("resource.release", slot_id="game")
    assert (await could(hosted, needed))["can_allocate"] is True
    instance = (await hosted.call("engine.start", **order))["instance"]
    [row] = (await hosted.call("resource.allocations"))["allocations"]
    assert (row["kind"], row["id"], row["type"], row["held_bytes"]) == ("engine", instance["id"], "chat", 0)
    assert row["predicted_bytes"] == instance["predicted_bytes"] == needed
    await line(hosted)
    takes(card, 0.25)
    await hosted.call("engine.stop", name="llamacpp", instance_id=instance["id"])
    assert (await line(hosted))["used_bytes"] == GIB // 4, "what was read before an engine's end is not told after it"
    assert [event["type"] for event in hosted.events("resource.allocated", "resource.released")] == [
        "resource.allocated",
        "resource.released",
    ]


async def test_slots_that_are_preemptible_give_way_to_a_start_the_lowest_priority_first(hosted: Hosted, tmp_path: Path) -> None:
    await with_card(hosted.gateway, tmp_path)
    model, options = await hosted.tiny(), {"context_length": 256}
    needed = hosted.gateway.services.engines.needed_bytes("llamacpp", model, options)
    assert needed
    for name, size, more in (
        ("fixed", USABLE - 3 * needed, {"priority": 0}),
        ("above", needed, {"preemptible": True, "priority": 51}),
        ("even", needed, {"preemptible": True, "priority": 50}),
        ("low", needed, {"preemptible": True, "priority": 10}),
    ):
        await hosted.call("resource.allocate", name=name, memory_bytes=size, **HELD, **more)
    foretold = await could(hosted, needed)
    assert (foretold["can_allocate"], foretold["would_preempt"]) == (True, [{"kind": "slot", "id": "low", "memory_bytes": needed}])
    assert [each["id"] for each in (await could(hosted, 2 * needed))["would_preempt"]] == ["low", "even"]
    assert (await could(hosted, 2 * needed + 1))["can_allocate"] is False, "who is above, and who is fixed, stay"
    assert (await could(hosted, needed, priority=9))["can_allocate"] is False
    await hosted.call("engine.start", name="llamacpp", model_id=model, options=options)
    [gone] = hosted.events("resource.preemption")
    assert (gone["subject"], gone["payload"]["preempted_by"]) == ("low", "llamacpp-tiny")
    assert [slot["id"] for slot in (await hosted.call("resource.status"))["slots"]] == ["fixed", "above", "even"]
    with pytest.raises(NotFound):
        await hosted.call("resource.release", slot_id="low")


async def test_a_hundred_allocations_at_once_never_overbook(hosted: Hosted, tmp_path: Path) -> None:
    await with_card(hosted.gateway, tmp_path)
    kept, refused = list[str](), list[AimaError]()

    async def take(number: int) -> None:
        try:
            taken = await hosted.gateway.call("resource.allocate", {"name": f"slot {number}", "memory_bytes": USABLE // 40, **HELD})
            kept.append(taken["slot"]["id"])
        except ResourceExhausted as error:
            refused.append(error)

    async with anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(take, number)
    assert (len(kept), len(refused)) == (40, 60)
    account = await line(hosted)
    assert account["slot_bytes"] == USABLE // 40 * 40 and account["usable_bytes"] == USABLE % 40
    assert "may be taken" in str(refused[0]) and refused[0].next[-1]["unit"] == "resource.allocations"
    pools = (await hosted.call("resource.budget"))["devices"][1]["pools"]
    assert pools == {"desktop": {"bytes": USABLE // 40 * 40, "engines": 0, "slots": 40, "unknown": 0}}
    for id in kept:
        await hosted.gateway.services.store.delete("slot", id)


async def test_starts_and_slots_at_once_share_one_account(hosted: Hosted, tmp_path: Path) -> None:
    """A start's promise counts for slots as a slot does for starts, and is shown as one."""
    await with_card(hosted.gateway, tmp_path)
    services, model = hosted.gateway.services, await hosted.tiny()
    options: dict[str, Any] = {"context_length": 256}
    needed = services.engines.needed_bytes("llamacpp", model, options)
    assert needed
    order = (services.models.get(model), ("llamacpp", None), "gpu-0", options, {"unit": "engine.start", "arguments": {}}, 50)
    async with services.engines._admission.admitted("coming", *order) as promised:
        [row] = (await hosted.call("resource.allocations"))["allocations"]
        assert (row["kind"], row["id"], row["held_bytes"], row["measured_bytes"]) == ("start", "coming", promised, None)
        assert (await line(hosted))["promised_bytes"] == promised
        with pytest.raises(ResourceExhausted, match="promised to other starts"):
            await hosted.call("resource.allocate", name="all", memory_bytes=USABLE, **HELD)
        await hosted.call("resource.allocate", name="rest", memory_bytes=USABLE - (promised or 0), **HELD)
    assert (await line(hosted))["usable_bytes"] == promised


async def test_what_the_process_of_a_slot_has_taken_is_not_kept_free_twice(hosted: Hosted) -> None:
    script = "import sys; taken = b'x' * (64 << 20); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdin
        child.stdout.readline()
        given = {"name": "editor", "type": "desktop", "memory_bytes": 256 * MIB, "device_id": "cpu", "pid": child.pid}
        slot = (await hosted.call("resource.allocate", **given))["slot"]
        assert slot["status"] == "in_use" and 64 * MIB < slot["measured_bytes"] < 100 * MIB
        assert slot["held_bytes"] == 256 * MIB - slot["measured_bytes"]
        assert (await hosted.call("resource.allocate", **given))["slot"]["id"] == "editor", "the same again"
        with pytest.raises(FailedPrecondition, match=rf"process {child.pid} of editor takes 0\.0") as refused:
            await hosted.call("resource.update_slot", slot_id="editor", memory_bytes=MIB)
        [enough] = refused.value.next
        assert (await hosted.call(enough["unit"], **enough["arguments"]))["slot"]["held_bytes"] < MIB
        [row] = (await hosted.call("resource.allocations", slot_id="editor"))["allocations"]
        assert row["measured_bytes"] == pytest.approx(slot["measured_bytes"], rel=0.05)
        child.stdin.close()
        child.wait()
        [row] = (await hosted.call("resource.allocations", slot_id="editor"))["allocations"]
        assert (row["status"], row["measured_bytes"], row["held_bytes"]) == ("reserved", None, row["predicted_bytes"])
        with pytest.raises(InvalidArgument, match=f"there is no process {child.pid}"):
            await hosted.call("resource.update_slot", slot_id="editor", pid=child.pid)
    slot = (await hosted.call("resource.update_slot", slot_id="editor", status="in_use"))["slot"]
    assert "has ended" in slot["reason"], "its process is on record until another is named, or none"
    slot = (await hosted.call("resource.update_slot", slot_id="editor", status="reserved"))["slot"]
    assert slot["pid"] is None
    slot = (await hosted.call("resource.update_slot", slot_id="editor", status="in_use"))["slot"]
    assert (slot["held_bytes"], slot["measured_bytes"]) == (0, None)


async def test_what_is_not_possible_says_what_is(hosted: Hosted, tmp_path: Path) -> None:
    card: Any = await with_card(hosted.gateway, tmp_path)
    await hosted.call("resource.allocate", name="one", memory_bytes=GIB, gpu_fraction=0.75, **HELD)
    with pytest.raises(AlreadyExists, match="another memory_bytes") as taken:
        await hosted.call("resource.allocate", name="one", memory_bytes=2 * GIB, gpu_fraction=0.75, **HELD)
    assert taken.value.next[0] == {"unit": "resource.update_slot", "arguments": {"slot_id": "one", "memory_bytes": 2 * GIB}}
    with pytest.raises(ResourceExhausted, match=r"0\.25 is left"):
        await hosted.call("resource.allocate", name="two", memory_bytes=GIB, gpu_fraction=0.5, **HELD)
    with pytest.raises(ResourceExhausted, match="one needs 7"):
        await hosted.call("resource.update_slot", slot_id="one", memory_bytes=7 * GIB)
    with pytest.raises(InvalidArgument, match="no process yet"):
        await hosted.call("resource.update_slot", slot_id="one", status="reserved", pid=1)
    with pytest.raises(NotFound, match="no slot called 'won'") as absent:
        await hosted.call("resource.release", slot_id="won")
    assert "one" in str(absent.value.hint) and absent.value.next[0]["unit"] == "resource.allocations"
    assert (await line(hosted))["slot_bytes"] == GIB
    card["nvmlDeviceGetMemoryInfo"] = NOT_SUPPORTED
    await hosted.gateway.services.devices.detect()
    unknown = await line(hosted)
    assert {unknown[key] for key in ("total_bytes", "used_bytes", "free_bytes", "usable_bytes", "reserved_bytes")} == {None}
    assert unknown["pressure"] == "unknown"
    foretold = await could(hosted, GIB)
    assert foretold["can_allocate"] is None and foretold["fits_with_make_room"] is None and "does not tell" in foretold["reason"]
    with pytest.raises(FailedPrecondition, match="none of it can be kept") as refused:
        await hosted.call("resource.allocate", name="three", memory_bytes=GIB, **HELD)
    assert refused.value.next == [{"unit": "device.metrics", "arguments": {"device_id": "gpu-0"}}]


async def test_who_would_be_unloaded_is_who_make_room_chooses(hosted: Hosted) -> None:
    services, options = hosted.gateway.services, {"context_length": 256}
    for name, more in (("tiny", {"priority": 10}), ("kept", {"pinned": True})):
        await hosted.tiny(name)
        await hosted.call("service.create", model_id=name, engine="llamacpp", options=options, **more)
    planned = next(each for each in (await hosted.call("resource.budget"))["devices"] if each["device_id"] == "cpu")["planned_bytes"]
    services.engines.books.limit_bytes = planned
    foretold = await could(hosted, MIB, device_id="cpu")
    assert (foretold["can_allocate"], foretold["fits_with_make_room"], foretold["usable_bytes"]) == (False, True, 0)
    assert [(each["kind"], each["id"]) for each in foretold["would_preempt"]] == [("service", "tiny")]
    assert "engines.memory_limit_gib" in foretold["reason"] and "make_room, which unloads tiny" in foretold["reason"]
    assert (await could(hosted, MIB, device_id="cpu", priority=9))["would_preempt"] == []
    freed = foretold["would_preempt"][0]["memory_bytes"]
    assert (await could(hosted, freed + 1, device_id="cpu"))["fits_with_make_room"] is False
    rows = (await hosted.call("resource.allocations", type="chat"))["allocations"]
    assert {row["service_id"]: row["preemptible"] for row in rows} == {"tiny": True, "kept": False}
    assert all(row["measured_bytes"] and row["predicted_bytes"] for row in rows)
    assert sum(row["measured_bytes"] for row in rows) <= planned <= sum(row["predicted_bytes"] for row in rows), "what was learned counts"
    await hosted.tiny("third")
    order = {"model_id": "third", "engine": "llamacpp", "options": options, "make_room": True}
    assert (await hosted.gateway.plan("service.create", order))["changes"]["stops"] == [{"kind": "service", "id": "tiny"}]
    slot = (await hosted.call("resource.allocate", name="desk", type="desktop", memory_bytes=MIB, device_id="cpu"))["slot"]
    assert slot["held_bytes"] == MIB, "the limit is for engines"


async def test_memory_that_is_shared_is_counted_once(hosted: Hosted, tmp_path: Path) -> None:
    spark = next(machine for machine in MACHINES if machine.name == "DGX Spark GB10")
    with being(spark, tmp_path):
        await become(hosted.gateway, Hardware(tmp_path, Library(*spark.gpus), "aarch64"))
        before = await line(hosted, "cpu")
        assert before["shared_with"] == ["gpu-0"]
        await hosted.call("resource.allocate", name="desk", memory_bytes=10 * GIB, **HELD)
        for device in ("cpu", "gpu-0"):
            seen = await line(hosted, device)
            assert (seen["slot_bytes"], seen["usable_bytes"]) == (10 * GIB, before["usable_bytes"] - 10 * GIB)
        await hosted.call("resource.release", slot_id="desk")


async def test_a_device_that_becomes_short_is_told_once_for_each_time(hosted: Hosted, tmp_path: Path) -> None:
    card, devices = await with_card(hosted.gateway, tmp_path), hosted.gateway.services.devices
    for gib in (0.5, 7.3, 7.9, 7.15, 7.3, 6.0, 7.3):  # 0.8 GiB are to be kept free; 7.15 is not clearly more
        takes(card, gib)
        await devices._watch(devices.device("gpu-0"))
    await hosted.call(
        "resource.allocate", name="last", memory_bytes=1, type="desktop", device_id="cpu"
    )  # what was told before is on record
    told = [event["payload"] for event in hosted.events("resource.pressure_warning") if event["subject"] == "gpu-0"]
    assert [payload["free_bytes"] for payload in told] == [int((8 - 7.3) * GIB)] * 2
    assert told[0]["reserved_bytes"] == 8 * GIB - int(8 * GIB * 0.9)
    assert (await line(hosted))["pressure"] == (await hosted.call("resource.status"))["pressure"] == "warning"


async def test_a_slot_survives_its_host(home: Home, fixtures: Path, anyio_backend: str) -> None:
    async with runtime.host(home) as gateway:
        given = {"name": "desk", "type": "desktop", "memory_bytes": MIB, "device_id": "cpu", "priority": 70}
        await gateway.call("resource.allocate", given)
    async with runtime.host(home) as gateway:
        [slot] = (await gateway.call("resource.status"))["slots"]
        assert (slot["id"], slot["priority"], slot["held_bytes"]) == ("desk", 70, MIB)
        cpu = next(row for row in (await gateway.call("resource.status"))["memory"] if row["device_id"] == "cpu")
        assert cpu["slot_bytes"] == MIB
