"""NVIDIA GPUs, against a driver on file: NVML's own errors and constants, its functions answered from a table."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import psutil
import pynvml
import pytest

from aima_lib import config
from aima_lib.infra.events import Events
from aima_lib.infra.hal import Hardware, system_memory
from aima_lib.infra.hal.nvidia import Nvidia
from aima_lib.infra.store import Store
from aima_lib.registry import Registry
from aima_lib.services import memory
from aima_lib.services.device import DeviceService
from aima_lib.services.measurements import Measurements, load_of
from aima_lib.services.measuring import Measuring
from aima_lib.services.memory import RUNTIMES, UNKNOWN_RUNTIME_BYTES
from tests.tiny import write_tiny_gguf
from tests.unit.test_model import shop

NOT_SUPPORTED, NO_PERMISSION = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED), pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)
LOST, MISMATCH = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST), pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
NO_LIBRARY, NOT_LOADED = pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND), pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
GIB = 1024**3
DRIVER = {"nvmlInit": None, "nvmlShutdown": None, "nvmlSystemGetDriverVersion": "580.173.02", "nvmlSystemGetCudaDriverVersion": 13000}
H200 = {
    "nvmlDeviceGetName": "NVIDIA H200", "nvmlDeviceGetUUID": "GPU-6c1d9a52-0000-0000-0000-000000000001",
    "nvmlDeviceGetCudaComputeCapability": (9, 0), "nvmlDeviceGetArchitecture": pynvml.NVML_DEVICE_ARCH_HOPPER,
    "nvmlDeviceGetMigMode": [0, 0], "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=140 * GIB, free=100 * GIB, used=39 * GIB),
    "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=37, memory=12), "nvmlDeviceGetTemperature": 41, "nvmlDeviceGetPowerUsage": 121_500,
    "nvmlDeviceGetTemperatureThreshold": 87, "nvmlDeviceGetCurrentClocksThrottleReasons": 0, "nvmlDeviceGetTotalEccErrors": 0,
}  # fmt: skip
# As seen on a DGX Spark: no framebuffer figures, no power limit, no MIG, no ECC.
GB10 = H200 | {
    "nvmlDeviceGetName": "NVIDIA GB10", "nvmlDeviceGetCudaComputeCapability": (12, 1), "nvmlDeviceGetMemoryInfo": NOT_SUPPORTED,
    "nvmlDeviceGetArchitecture": pynvml.NVML_DEVICE_ARCH_BLACKWELL, "nvmlDeviceGetMigMode": NOT_SUPPORTED,
    "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=0, memory=0), "nvmlDeviceGetTemperature": 35, "nvmlDeviceGetPowerUsage": 11_170,
    "nvmlDeviceGetTemperatureThreshold": NOT_SUPPORTED, "nvmlDeviceGetTotalEccErrors": NOT_SUPPORTED,
}  # fmt: skip


class Library:
    """libnvidia-ml as a module object. Its table is what the driver would answer; an error there is raised."""

    def __init__(self, *gpus: Any, **driver: Any) -> None:
        self.gpus, self.driver = list(gpus), DRIVER | driver
        for name, value in vars(pynvml).items():
            if name.startswith(("NVML_", "NVMLError", "nvmlClocks")):
                setattr(self, name, value)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name in self.driver:
            return lambda: self._answer(self.driver[name])
        if any(name in gpu for gpu in self.gpus if isinstance(gpu, dict)):
            return lambda gpu, *arguments: self._answer(gpu[name])
        raise AttributeError(name)

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        return self._answer(self.gpus[index])

    def _answer(self, value: Any) -> Any:
        if isinstance(value, pynvml.NVMLError):
            raise value
        return value


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def found(library: Library, root: Path, machine: str = "x86_64") -> Any:
    hardware = Hardware(root, library, machine)
    return hardware, hardware.detect()["nvml"]


def test_a_discrete_gpu(tmp_path: Path) -> None:
    hardware, nvml = found(Library(H200), tmp_path)
    gpu = nvml.devices[0]
    assert (gpu["id"], gpu["name"], gpu["vendor"]) == ("gpu-0", "NVIDIA H200", "nvidia")
    assert (gpu["architecture"], gpu["driver"]) == ("hopper", "580.173.02")
    assert gpu["memory"] == {"total_bytes": 140 * GIB, "kind": "dedicated", "physical_bytes": 140 * GIB, "limited_by": None}
    assert gpu["capabilities"] == ["cuda", "cuda-13.0", "sm_90", "fp16", "int8", "bf16", "fp8"]
    reading = hardware.read(gpu)
    assert (reading.utilization, reading.temperature_celsius, reading.power_watts) == (0.37, 41, 121.5)
    assert (reading.memory_used_bytes, reading.memory_total_bytes) == (40 * GIB, 140 * GIB)  # what the driver reserves cannot be had
    assert reading.temperature_limit_celsius == 87 and reading.unknown == {} and reading.faults == []


@pytest.mark.parametrize("memory", [NOT_SUPPORTED, SimpleNamespace(total=0, free=0, used=0)], ids=["not supported", "zeros"])
def test_gb10_shares_the_machines_memory(tmp_path: Path, memory: Any) -> None:
    hardware, nvml = found(Library(GB10 | {"nvmlDeviceGetMemoryInfo": memory}), tmp_path, "aarch64")
    gpu, machine = nvml.devices[0], system_memory()
    assert gpu["memory"]["kind"] == "unified" and gpu["memory"]["total_bytes"] == machine.physical_bytes
    assert "memory.total_bytes" not in gpu["unknown"]
    assert gpu["architecture"] == "blackwell" and {"sm_121", "fp4"} <= set(gpu["capabilities"])
    reading = hardware.read(gpu)
    assert (reading.utilization, reading.power_watts, reading.unknown) == (0.0, 11.17, {})
    assert reading.memory_total_bytes == machine.physical_bytes and reading.memory_used_bytes


def test_an_integrated_gpu_of_another_name_is_known_by_its_machine(tmp_path: Path) -> None:
    chip = GB10 | {"nvmlDeviceGetName": "NVIDIA Next"}
    assert found(Library(chip), tmp_path, "aarch64")[1].devices[0]["memory"]["kind"] == "unified"
    memory = found(Library(chip), tmp_path, "x86_64")[1].devices[0]["memory"]
    assert (memory["kind"], memory["total_bytes"]) == ("dedicated", None)


def pci(root: Path) -> Path:
    slots = (("0000:01:00.0", "0x10de", "0x030200"), ("0000:01:00.1", "0x10de", "0x040300"), ("0000:00:02.0", "0x8086", "0x030000"))
    for slot, vendor, kind in slots:
        folder = root / "sys/bus/pci/devices" / slot
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "class").write_text(f"{kind}\n")
    return root


@pytest.mark.parametrize("error", [NO_LIBRARY, NOT_LOADED], ids=str)
def test_a_gpu_without_a_driver_is_told(tmp_path: Path, error: Any) -> None:
    _, nvml = found(Library(H200, nvmlInit=error), pci(tmp_path))
    assert nvml.devices == [] and str(nvml.absent).startswith("NVML: ")
    assert [(fault.code, fault.value) for fault in nvml.faults] == [("driver_missing", "0000:01:00.0")]  # neither its sound nor Intel's


def test_no_gpu_and_no_driver_is_no_fault(tmp_path: Path) -> None:
    _, nvml = found(Library(nvmlInit=NO_LIBRARY), tmp_path)
    assert nvml.faults == [] and nvml.absent == "NVML: NVML Shared Library Not Found"


@pytest.mark.parametrize(("error", "code"), [(MISMATCH, "driver_mismatch"), (NO_PERMISSION, "permission_denied")], ids=str)
def test_a_driver_that_refuses_says_what_to_do(tmp_path: Path, error: Any, code: str) -> None:
    _, nvml = found(Library(H200, nvmlInit=error), pci(tmp_path))
    assert [(fault.code, fault.severity) for fault in nvml.faults] == [(code, "critical")]


def test_a_driver_loaded_later_is_seen(tmp_path: Path) -> None:
    library = Library(H200, nvmlInit=NOT_LOADED)
    source = Nvidia(library, tmp_path)
    assert source.detect().devices == []
    library.driver["nvmlInit"] = None
    assert [gpu["id"] for gpu in source.detect().devices] == ["gpu-0"]
    assert [gpu["id"] for gpu in source.detect().devices] == ["gpu-0"]


def test_mig_and_missing_rights_leave_reasons(tmp_path: Path) -> None:
    sliced = H200 | {
        "nvmlDeviceGetMigMode": [1, 1], "nvmlDeviceGetUtilizationRates": NOT_SUPPORTED, "nvmlDeviceGetMemoryInfo": NO_PERMISSION,
    }  # fmt: skip
    hardware, nvml = found(Library(sliced), tmp_path)
    gpu = nvml.devices[0]
    assert "mig" in gpu["capabilities"] and gpu["memory"]["kind"] == "dedicated" and gpu["memory"]["total_bytes"] is None
    assert gpu["unknown"]["memory.total_bytes"] == "NVML: Insufficient Permissions"
    reading = hardware.read(gpu)
    assert reading.utilization is None and reading.unknown["utilization"] == "NVML: Not Supported"
    assert reading.unknown["memory_used_bytes"] == reading.unknown["memory_total_bytes"] == "NVML: Insufficient Permissions"
    assert reading.temperature_celsius == 41


def test_one_gpu_that_cannot_be_opened_hides_no_other(tmp_path: Path) -> None:
    _, nvml = found(Library(LOST, H200), tmp_path)
    assert [gpu["id"] for gpu in nvml.devices] == ["gpu-1"]
    assert [fault.code for fault in nvml.faults] == ["gpu_unreadable"]


def test_slowdowns_and_memory_errors_are_faults(tmp_path: Path) -> None:
    slow = pynvml.nvmlClocksThrottleReasonHwThermalSlowdown | pynvml.nvmlClocksThrottleReasonSwPowerCap
    ill = H200 | {"nvmlDeviceGetCurrentClocksThrottleReasons": slow, "nvmlDeviceGetTotalEccErrors": 2}
    hardware, nvml = found(Library(ill), tmp_path)
    faults = hardware.read(nvml.devices[0]).faults
    assert [(fault.code, fault.severity, fault.device_id) for fault in faults] == [
        ("throttled", "warning", "gpu-0"), ("memory_errors", "critical", "gpu-0")
    ]  # fmt: skip
    assert faults[0].value == "too hot (hardware)"  # a power cap is no fault


def test_on_a_jetson_the_better_witness_is_heard(tmp_path: Path) -> None:
    tree = tmp_path / "proc/device-tree"
    tree.mkdir(parents=True)
    (tree / "model").write_text("NVIDIA Jetson Orin Nano\0")
    (tree / "compatible").write_text("nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0")
    hardware = Hardware(tmp_path, Library(GB10 | {"nvmlDeviceGetName": "Orin (nvgpu)"}), "aarch64")
    assert [len(hardware.detect()[source].devices) for source in ("nvml", "tegra")] == [1, 0]
    load = tmp_path / "sys/devices/platform/gpu.0/load"
    load.parent.mkdir(parents=True)
    load.write_text("12\n")
    assert [len(hardware.detect()[source].devices) for source in ("nvml", "tegra")] == [0, 1]


@pytest.mark.anyio
async def test_a_hot_gpu_is_told_once_and_its_recovery_too(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[devices]\nsample_seconds = 0.1\n")
    settings, store, gpu = config.load(tmp_path), Store(tmp_path / "aima.db"), dict(H200)
    events = Events(store, {unit.name: unit for unit in Registry.described().of("event")})
    service = DeviceService(settings, store, events, Hardware(tmp_path, Library(gpu), "x86_64"))
    try:
        async with anyio.create_task_group() as loops:
            await loops.start(service.run)
            assert (await service.metrics())["device_id"] == "gpu-0"
            cursor, ill, well = 0, ("healthy", "critical"), ("critical", "healthy")
            for degrees, change in ((41, None), (91, ill), (85, None), (91, None), (70, well), (LOST, ill)):
                gpu["nvmlDeviceGetTemperature"] = degrees
                if change:
                    cursor = await _changed(events, cursor, change)
                else:
                    await _sampled(service, degrees)
            health = await service.health("gpu-0")
            alerts = [event["payload"] for event in events.page(0, 99, ["device.metrics_alert"]) if event["subject"] == "gpu-0"]
            loops.cancel_scope.cancel()
    finally:
        store.close()
    assert health["status"] == "critical" and [issue["code"] for issue in health["issues"]] == ["gpu_lost"]
    assert [(alert["metric"], alert["value"], alert["threshold"]) for alert in alerts] == [("temperature_celsius", 91, 87)]


async def _changed(events: Events, cursor: int, change: tuple[str, str]) -> int:
    """Where in the log the GPU's next change of health stands; it must be this one."""
    with anyio.fail_after(10):
        async for event in events.follow(cursor, ["device.health_changed"]):
            if event["subject"] == "gpu-0":
                assert (event["payload"]["old_status"], event["payload"]["new_status"]) == change
                return int(event["seq"])
    raise AssertionError("the follower ended")


async def _sampled(service: DeviceService, degrees: float) -> None:
    """Until the loop itself has seen that temperature."""
    with anyio.fail_after(10):
        while [point["temperature_celsius"] for point in (await service.metrics("gpu-0"))["history"][-1:]] != [degrees]:
            await anyio.sleep(0.02)


def process(pid: int, held: int | None) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=held)


def test_memory_of_our_processes_is_told_apart_or_not_at_all(tmp_path: Path) -> None:
    running = [process(11, GIB), process(12, 2 * GIB), process(13, 4 * GIB)]
    hardware, nvml = found(Library(H200 | {"nvmlDeviceGetComputeRunningProcesses": running}), tmp_path)
    assert hardware.held(nvml.devices[0], [11, 13, 99]) == 5 * GIB
    assert hardware.held(nvml.devices[0], [99]) is None, "a driver outside the container has other numbers"
    for unknown in ([process(11, None)], NO_PERMISSION):
        hardware, nvml = found(Library(H200 | {"nvmlDeviceGetComputeRunningProcesses": unknown}), tmp_path)
        assert hardware.held(nvml.devices[0], [11]) is None


def devices_of(library: Library, store: Store, folder: Path) -> DeviceService:
    events = Events(store, {unit.name: unit for unit in Registry.described().of("event")})
    return DeviceService(config.load(folder), store, events, Hardware(folder, library, "aarch64"))


@pytest.mark.anyio
@pytest.mark.parametrize(("gpu", "by_process", "expected"), [(H200, True, 3 * GIB), (H200, False, 7 * GIB), (GB10, True, None)])
async def test_what_an_engine_takes_of_a_gpu(store: Store, tmp_path: Path, gpu: Any, by_process: bool, expected: int | None) -> None:
    """By process where the driver tells, else what the device holds more than before; shared memory is the processes' own and the GPU's."""
    running = [process(os.getpid() if by_process else 1, 3 * GIB)]
    library = Library(gpu | {"nvmlDeviceGetComputeRunningProcesses": running})
    devices = devices_of(library, store, tmp_path)
    measuring = Measuring(store, devices, Measurements(store), lambda _: [os.getpid()])
    geometry = {"block_count": 1, "cache": [], "embedding_length": 8, "vocabulary_size": 8, "tensor_bytes": {}}
    await store.put("model", {"id": "m", "geometry": geometry, "size_bytes": GIB, "digest": "sha256:m"})
    instance = {"id": "i", "started_at": "2026", "model_id": "m", "engine": "e", "device": "gpu-0", "options": {}}
    await measuring.expect("i", "gpu-0")
    if not by_process:
        library.gpus[0]["nvmlDeviceGetMemoryInfo"] = SimpleNamespace(total=140 * GIB, free=93 * GIB, used=46 * GIB)
    await measuring.started(instance, "1")
    [(taken, kind, source)] = store.read("SELECT peak_bytes, device_kind, source FROM measurements")
    assert (kind, source) == ("gpu", "nvml")
    assert taken == expected if expected else taken > 3 * GIB + psutil.Process().memory_info().rss // 2


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("gpu", "tells", "expected"),
    [(H200, "processes", 3 * GIB), (H200, "the device", 5 * GIB), (H200, "nothing", 7), (GB10, "processes", 3 * GIB + 7)],
)
async def test_what_a_gpu_gets_back_when_an_engine_ends(store: Store, tmp_path: Path, gpu: Any, tells: str, expected: int) -> None:
    """Its own memory, not what the process had of the machine's; where the two are one, both."""
    running = [process(os.getpid() if tells == "processes" else 1, 3 * GIB)]
    memory = {"nvmlDeviceGetMemoryInfo": NO_PERMISSION} if tells == "nothing" else {}
    library = Library(gpu | memory | {"nvmlDeviceGetComputeRunningProcesses": running})
    alive = [os.getpid()]
    measuring = Measuring(store, devices_of(library, store, tmp_path), Measurements(store), lambda _: alive)

    async def stop() -> int:
        alive.clear()
        if tells == "the device":
            library.gpus[0]["nvmlDeviceGetMemoryInfo"] = SimpleNamespace(total=140 * GIB, free=105 * GIB, used=34 * GIB)
        return 7

    assert await measuring.freeing({"id": "i", "device": "gpu-0"}, stop) == expected
    alive[:] = [os.getpid()]
    assert await measuring.freeing({"id": "i", "device": "cpu"}, stop) == 7


@pytest.mark.anyio
async def test_an_estimate_counts_what_the_gpus_runtime_holds(tmp_path: Path) -> None:
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf")
    plain = H200 | {"nvmlDeviceGetMemoryInfo": SimpleNamespace(total=GIB, free=GIB, used=0)}
    async with shop(tmp_path / "home", hardware=Hardware(tmp_path, Library(plain, plain), "x86_64")) as here:
        await here.models.import_all(str(tiny), name="m")
        found = await here.models.estimate("m", context_length=512)
        said, on_cpu = found["memory"], (await here.models.estimate("m", context_length=512, device_id="cpu"))["memory"]
        assert found["device_id"] == "gpu-0"
        assert (said["runtime_bytes"], said["overhead_bytes"], on_cpu["runtime_bytes"]) == (RUNTIMES["cuda"], 0, 0)
        assert on_cpu["overhead_bytes"] > 0 and said["reason"] is None
        parts = [said[f"{part}_bytes"] for part in ("weights", "kv_cache", "compute", "projector", "repacked", "checkpoint", "overhead")]
        assert said["total_bytes"] == sum(parts) + RUNTIMES["cuda"]
        assert [share["total_bytes"] > RUNTIMES["cuda"] for share in found["split"]] == [True, True, False], "once on each GPU"


def test_a_runtime_that_nobody_measured_widens_the_interval() -> None:
    model = {"geometry": {"block_count": 1, "cache": [], "embedding_length": 8, "vocabulary_size": 8}, "size_bytes": GIB}
    known, unknown = (
        memory.estimate(model["geometry"], GIB, 512, 1, load_of(model, {"context_length": 512}, {"type": "gpu", "capabilities": able}))
        for able in (["cuda", "sm_90"], ["gfx942"])
    )
    assert unknown["runtime_bytes"] is None and "never measured" in unknown["reason"]
    assert unknown["total_bytes"] == known["total_bytes"] - RUNTIMES["cuda"]
    assert unknown["high_bytes"] > known["high_bytes"] and unknown["low_bytes"] == known["low_bytes"]
    assert unknown["high_bytes"] - unknown["total_bytes"] > UNKNOWN_RUNTIME_BYTES


@pytest.mark.parametrize(
    ("size", "blocks", "width", "inner", "taken"),
    [(1_950_732_864, 16, 2048, 8192, (2749, 3145, 3649)), (13_968_307_168, 32, 4096, 14_336, (14_641, 16_189, 18_229))],
    ids=["1B", "8B"],
)
def test_the_formula_says_what_cuda_took(size: int, blocks: int, width: int, inner: int, taken: tuple[int, ...]) -> None:
    """MiB that an H200 held more while llama-server had these models of random F16 weights, as nvidia-smi said."""
    keys = {"layers": blocks, "key_elements": 8 * width // 32, "value_elements": 8 * width // 32, "window": None}
    geometry = {"block_count": blocks, "head_count": 32, "embedding_length": width, "feed_forward_length": inner, "cache": [keys]}
    geometry |= {"vocabulary_size": 400, "context_length": 32_768, "tensor_bytes": {}}
    for (context, parallel), peak in zip(((4096, 1), (16_384, 1), (8192, 4)), taken, strict=True):
        options = {"context_length": context, "parallel": parallel}
        load = load_of({"geometry": geometry}, options, {"type": "gpu", "capabilities": ["cuda"]})
        said = memory.estimate(geometry, size, context, parallel, load)
        assert abs(said["total_bytes"] / (peak << 20) - 1) < 0.02
        assert said["low_bytes"] <= peak << 20 <= said["high_bytes"]
