"""Devices of this machine, against what the system itself says; and of machines on file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from jsonschema import Draft202012Validator

from aima_lib import config
from aima_lib.errors import NotFound
from aima_lib.infra.events import Events
from aima_lib.infra.hal import Hardware, Reading, system_memory
from aima_lib.infra.hal.cpu import Cpu, cpuinfo
from aima_lib.infra.store import Store
from aima_lib.registry import SCHEMAS, Registry, inline
from aima_lib.services import device_health as judged
from aima_lib.services.device import DeviceService

linux = pytest.mark.skipif(sys.platform != "linux", reason="compares with /proc")
LIMITS = {"memory_alert_fraction": 0.95, "temperature_alert_celsius": 90}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def opened(home: Path, toml: str = "", hardware: Hardware | None = None) -> AsyncIterator[tuple[DeviceService, Events, Store]]:
    (home / "config.toml").write_text(toml)
    settings = config.load(home)
    store = Store(home / "aima.db")
    try:
        events = Events(store, {unit.name: unit for unit in Registry.described().of("event")})
        yield DeviceService(settings, store, events, hardware), events, store
    finally:
        store.close()


async def first(events: Events, type: str, fits: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
    with anyio.fail_after(10):
        async for event in events.follow(after=0, types=[type]):
            if fits(event["payload"]):
                return event["payload"]
    raise AssertionError("the follower ended")


def check(schema: str, value: Any, pointer: str | None = None) -> None:
    path = SCHEMAS / f"{schema}.json"
    definition = inline(json.loads(path.read_text()), path)
    Draft202012Validator(definition[pointer] if pointer else definition).validate(value)


@linux
@pytest.mark.anyio
async def test_the_processor_is_what_lscpu_and_meminfo_say(tmp_path: Path) -> None:
    async with opened(tmp_path) as (service, _, _):
        cpu = (await service.detect())[0]
    told = subprocess.run(["lscpu", "--json"], capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"}).stdout
    rows = {row["field"].rstrip(":"): row["data"] for row in json.loads(told)["lscpu"]}
    total = int(next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))) * 1024
    assert cpu["id"] == "cpu" and cpu["memory"]["kind"] == "system"
    assert cpu["memory"]["physical_bytes"] == total
    assert cpu["memory"]["total_bytes"] == total if cpu["memory"]["limited_by"] is None else cpu["memory"]["total_bytes"] < total
    assert cpu["architecture"] == rows["Architecture"]
    assert cpu["cores"]["logical"] == int(rows["CPU(s)"])
    if platform.machine() == "x86_64":
        assert cpu["name"] == rows["Model name"]
        assert {flag for flag in ("avx", "avx2", "fma", "avx512_vnni") if flag in rows["Flags"].split()} <= set(cpu["capabilities"])
        assert cpu["cores"]["physical"] == int(rows["Core(s) per socket"]) * int(rows["Socket(s)"])


@pytest.mark.anyio
async def test_answers_obey_their_schemas_and_every_null_has_a_reason(tmp_path: Path) -> None:
    async with opened(tmp_path) as (service, _, _):
        devices = await service.detect()
        metrics, health = await service.metrics(), await service.health()
        check("device/detect", {"devices": devices, "sources": service.sources()}, "outputSchema")
        check("device/metrics", metrics, "outputSchema")
        check("device/health", health, "outputSchema")
        for device in devices:
            assert {key for key, value in device.items() if value is None} <= set(device["unknown"])
        for entry in metrics["devices"]:
            assert {key for key, value in entry["now"].items() if value is None} == set(entry["now"]["unknown"])
        assert all(source["found"] or source["reason"] for source in service.sources())


@pytest.mark.anyio
async def test_a_fresh_sample_needs_no_loop(tmp_path: Path) -> None:
    async with opened(tmp_path) as (service, events, store):
        now = (await service.metrics("cpu"))["now"]
        assert 0 <= now["utilization"] <= 1
        assert 0 < now["memory_used_bytes"] < now["memory_total_bytes"]
        assert store.find("device") == [] and events.page(0, 10) == []  # a query leaves no trace


@linux
def test_work_shows_in_utilization() -> None:
    cpu = Cpu()
    cpu.read({})
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    assert (cpu.read({}).utilization or 0) > 0


@pytest.mark.anyio
async def test_an_unknown_device_is_named_with_the_call_that_lists_them(tmp_path: Path) -> None:
    async with opened(tmp_path) as (service, _, _):
        await service.detect()
        for call in (service.metrics("cpu-0"), service.health("cpu-0")):
            with pytest.raises(NotFound, match="cpu-0") as refused:
                await call
            assert refused.value.hint == "did you mean cpu?"
            assert refused.value.next == [{"unit": "device.info", "arguments": {}}]


@pytest.mark.anyio
async def test_detection_tells_what_came_and_went(tmp_path: Path) -> None:
    async with opened(tmp_path) as (service, events, store):
        await store.put("device", {"id": "gpu-7", "name": "taken out"})
        await service.detect()
        await service.detect()
        heard = await first(events, "device.detected", lambda payload: not payload["added"])
        before = await first(events, "device.detected", lambda payload: bool(payload["added"]))
    assert before["removed"] == ["gpu-7"] and "cpu" in before["added"]
    assert heard["removed"] == [] and "cpu" in heard["device_ids"]


@pytest.mark.anyio
async def test_memory_above_the_threshold_is_told_once(tmp_path: Path) -> None:
    toml = "[devices]\nmemory_alert_fraction = 0.0001\nsample_seconds = 0.1\n"
    async with opened(tmp_path, toml) as (service, events, _), anyio.create_task_group() as loops:
        await loops.start(service.run)
        alert = await first(events, "device.metrics_alert", lambda payload: payload["device_id"] == "cpu")
        change = await first(events, "device.health_changed", lambda payload: payload["device_id"] == "cpu")
        with anyio.fail_after(10):
            while len((await service.metrics("cpu"))["history"]) < 3:
                await anyio.sleep(0.02)
        alerts = [event for event in events.page(0, 100, ["device.metrics_alert"]) if event["subject"] == "cpu"]
        health = await service.health("cpu")
        whole = (await service.metrics("cpu", 3600, 3600))["history"]
        loops.cancel_scope.cancel()
    assert alert["metric"] == "memory_fraction" and alert["value"] >= alert["threshold"] == 0.0001
    assert (change["old_status"], change["new_status"]) == ("unknown", "warning")
    assert len(alerts) == 1
    assert health["status"] == "warning" and health["issues"][0]["code"] == "memory_pressure"
    assert health["issues"][0]["evidence"]["threshold"] == 0.0001
    assert 1 <= len(whole) <= 2  # an hour's step may begin between two samples


def test_a_value_at_the_edge_does_not_flicker() -> None:
    def severity(degrees: float, before: str | None = None) -> str | None:
        reading = Reading(temperature_celsius=degrees, temperature_limit_celsius=100)
        high = judged.levels(reading, LIMITS, {"temperature_celsius": before} if before else {})
        return high[0].severity if high else None

    assert severity(89) is None and severity(90) == "warning" and severity(100) == "critical"
    assert severity(88, "warning") == "warning" and severity(86, "warning") is None
    assert severity(98, "critical") == "critical" and severity(98, "warning") == "warning" and severity(96, "critical") == "warning"


def test_a_device_that_slows_itself_down_is_critical() -> None:
    reading = Reading(temperature_celsius=84, temperature_limit_celsius=83)
    found = judged.issues("gpu-0", reading, judged.levels(reading, LIMITS), "nvml")
    assert judged.status(found, reading) == "critical" and found[0]["evidence"]["threshold"] == 83
    assert judged.status([], Reading.blank("no answer")) == "unknown"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_the_control_groups_limit_counts(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/system.slice/aima.service"
    v2 = write(tmp_path / "v2", {
        "proc/self/cgroup": "0::/system.slice/aima.service\n",
        f"{group}/memory.max": "max\n", f"{group}/memory.current": "90000000\n",
        "sys/fs/cgroup/system.slice/memory.max": "200000000\n", "sys/fs/cgroup/system.slice/memory.current": "150000000\n",
        "sys/fs/cgroup/system.slice/memory.stat": "anon 100000000\ninactive_file 30000000\n",
    })  # fmt: skip
    memory = system_memory(v2)
    assert (memory.total_bytes, memory.available_bytes) == (200_000_000, 80_000_000)
    assert memory.limited_by == "control group /system.slice" and memory.physical_bytes > memory.total_bytes
    v1 = write(tmp_path / "v1", {
        "proc/self/cgroup": "5:cpu:/x\n4:memory:/docker/3fa\n0::/\n",  # the container sees its own group at the base
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "100000000\n", "sys/fs/cgroup/memory/memory.usage_in_bytes": "40000000\n",
    })  # fmt: skip
    memory = system_memory(v1)
    assert (memory.total_bytes, memory.used_bytes, memory.limited_by) == (100_000_000, 40_000_000, "control group /")


def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    root = write(tmp_path, {
        "proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
    })  # fmt: skip
    memory = system_memory(root)
    assert memory.limited_by is None and memory.total_bytes == memory.physical_bytes


def test_an_arm_board_names_its_kinds_of_core(tmp_path: Path) -> None:
    core = "processor\t: {}\nFeatures\t: fp asimd asimddp sve2 i8mm bf16\nCPU implementer\t: 0x41\nCPU part\t: {}\n\n"
    root = write(tmp_path, {"proc/cpuinfo": core.format(0, "0xd85") + core.format(1, "0xd85") + core.format(2, "0xd87")})
    assert cpuinfo(root)["model name"] == "Cortex-X925 + Cortex-A725"
    cpu = Cpu(root).detect().devices[0]
    assert cpu["vendor"] == "arm" and {"neon", "dotprod", "sve2", "i8mm", "bf16"} <= set(cpu["capabilities"])


ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "sys/devices/platform/gpu.0/load": "437\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n", "sys/class/thermal/thermal_zone0/temp": "51000\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n", "sys/class/thermal/thermal_zone1/temp": "46812\n",
    "sys/class/thermal/thermal_zone1/trip_point_0_type": "critical\n", "sys/class/thermal/thermal_zone1/trip_point_0_temp": "104500\n",
    "sys/class/hwmon/hwmon3/in1_label": "VDD_GPU_SOC\n", "sys/class/hwmon/hwmon3/in1_input": "19000\n",
    "sys/class/hwmon/hwmon3/curr1_input": "250\n",
}  # fmt: skip


def test_a_jetson_is_read_from_its_files(tmp_path: Path) -> None:
    hardware = Hardware(write(tmp_path, ORIN))
    found = hardware.detect()["tegra"].devices
    check("types/device", found[0])
    gpu = found[0]
    assert (gpu["id"], gpu["name"], gpu["architecture"]) == ("gpu-0", "NVIDIA Jetson AGX Orin Developer Kit GPU", "ampere")
    assert (gpu["memory"]["kind"], gpu["driver"], gpu["capabilities"]) == ("unified", "R36.4.3", ["cuda", "sm_87"])
    reading = hardware.read(gpu)
    assert (reading.utilization, reading.temperature_celsius, reading.temperature_limit_celsius) == (0.437, 46.812, 104.5)
    assert reading.memory_total_bytes == gpu["memory"]["total_bytes"]
    assert reading.power_watts is None and reading.unknown == {"power_watts": "the rail VDD_GPU_SOC feeds other parts too: 4.8 W in all"}


def test_a_sleeping_jetson_says_so(tmp_path: Path) -> None:
    asleep = {"sys/class/thermal/thermal_zone1/temp": "-256000\n", "sys/class/hwmon/hwmon3/in1_label": "VDD_GPU\n"}
    hardware = Hardware(write(tmp_path, ORIN | asleep))
    reading = hardware.read(hardware.detect()["tegra"].devices[0])
    assert reading.temperature_celsius is None and "sleeps" in reading.unknown["temperature_celsius"]
    assert reading.power_watts == 4.75


def test_another_board_is_no_jetson(tmp_path: Path) -> None:
    found = Hardware(write(tmp_path, {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"})).detect()["tegra"]
    assert found.devices == [] and "Raspberry Pi 5" in str(found.absent)


@pytest.mark.anyio
async def test_a_clock_that_is_set_back_does_not_make_the_history_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path, "[devices]\nsample_seconds = 1\nhistory_seconds = 10\n") as (service, _, _):
        cpu = (await service.known())[0]
        reading, start = await service._read(cpu), time.time()
        for second in range(100):
            monkeypatch.setattr(time, "time", lambda at=start - second: at)
            service._remember("cpu", reading)
        assert len(service._history["cpu"]) <= 11
