"""NVIDIA GPUs through NVML, the driver's own library (the nvidia-ml-py package, imported as pynvml when it is first needed)."""

from __future__ import annotations

import contextlib
import platform
import re
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from aima_lib.infra.hal.memory import ROOT, system_memory
from aima_lib.infra.hal.reading import Device, Fault, Found, Reading, text

ARCHITECTURES = ("KEPLER", "MAXWELL", "PASCAL", "VOLTA", "TURING", "AMPERE", "ADA", "HOPPER", "BLACKWELL", "RUBIN")
# Number formats the tensor cores of a compute capability work in, and all later ones: NVIDIA's CUDA programming guide.
FORMATS = (((5, 3), "fp16"), ((7, 2), "int8"), ((8, 0), "bf16"), ((8, 9), "fp8"), ((10, 0), "fp4"))
# Chips whose GPU has no memory of its own. Some drivers answer "not supported" for them, some answer with zeros or the machine's RAM.
INTEGRATED = re.compile(r"\b(GB10|Thor|Orin|Xavier|Tegra|nvgpu)\b", re.IGNORECASE)
# A power cap is how a GPU at full load is meant to run, so it is not here.
SLOWDOWNS = {"HwSlowdown": "hardware slowdown", "SwThermalSlowdown": "too hot (driver)", "HwThermalSlowdown": "too hot (hardware)",
             "HwPowerBrakeSlowdown": "external power brake"}  # fmt: skip


class Nvidia:
    """Every NVML call stands here. `nvml` is the module to talk to; None imports pynvml when first needed."""

    name = "nvml"

    def __init__(self, nvml: Any = None, root: Path = ROOT, machine: str | None = None) -> None:
        self._nvml, self._root, self._machine = nvml, root, (machine or platform.machine()).lower()
        self._lock = threading.Lock()  # a detection restarts NVML: no sample may run meanwhile
        self._started = False
        self._handles: dict[str, Any] = {}

    def detect(self) -> Found:
        """Ask the driver for its GPUs anew; a driver loaded or reloaded since the last call is seen."""
        with self._lock:
            self._handles = {}
            if absent := self._start():
                return absent
            return self._enumerate()

    def read(self, device: Mapping[str, Any]) -> Reading:
        """Sample one GPU."""
        with self._lock:
            handle = self._handles.get(device["id"])
            if handle is None:
                return Reading.blank("NVML does not reach this GPU any more", [_lost(device["id"], "NVML does not reach it")])
            return self._sample(device, handle)

    def held(self, device: Mapping[str, Any], pids: Collection[int]) -> int | None:
        """Bytes of the GPU's memory that these processes hold; None when the driver does not tell them apart.

        A driver outside the container counts processes by numbers of its own: then none of these is among them.
        """
        with self._lock:
            handle, ask = self._handles.get(device["id"]), _Questions(self._nvml)
            if handle is None:
                return None
            running = ask("processes", self._nvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
        held = [process.usedGpuMemory for process in running if process.pid in pids]
        return sum(held) if held and None not in held else None

    def _start(self) -> Found | None:
        """Start NVML, or say why it cannot be."""
        if self._nvml is None:
            try:
                import pynvml
            except ImportError:
                return Found(absent="the Python package nvidia-ml-py is not installed", faults=self._unused("nvidia-ml-py is missing"))
            self._nvml = pynvml
        nvml = self._nvml
        if self._started:
            with contextlib.suppress(nvml.NVMLError):  # a driver that went away cannot be shut down, only started again
                nvml.nvmlShutdown()
            self._started = False
        try:
            nvml.nvmlInit()
            self._started = True
        except nvml.NVMLError as error:
            return self._refused(error)
        return None

    def _refused(self, error: Any) -> Found:
        reason, nvml = f"NVML: {error}", self._nvml
        if error.value == nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
            message = "the NVIDIA driver in the kernel and its library differ: the driver was upgraded, restart the machine"
            return Found(absent=reason, faults=[Fault("driver_mismatch", message, "critical", "driver", str(error), self.name)])
        if error.value == nvml.NVML_ERROR_NO_PERMISSION:
            message = "this user may not talk to the NVIDIA driver: check the rights of /dev/nvidiactl, or the container's device list"
            return Found(absent=reason, faults=[Fault("permission_denied", message, "critical", "driver", str(error), self.name)])
        return Found(absent=reason, faults=self._unused(str(error)))

    def _unused(self, reason: str) -> list[Fault]:
        """A fault for each NVIDIA display controller on the PCI bus, which nothing drives."""
        message = "an NVIDIA GPU is on the PCI bus at {}, but NVML cannot use it ({}): install or load the NVIDIA driver"
        where = "/sys/bus/pci/devices"
        return [Fault("driver_missing", message.format(slot, reason), "warning", "pci", slot, where) for slot in pci_gpus(self._root)]

    def _enumerate(self) -> Found:
        nvml, devices, faults = self._nvml, [], []
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            return self._refused(error)
        for index in range(count):
            id = f"gpu-{index}"
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
            except nvml.NVMLError as error:
                message = f"NVML lists {id} but cannot open it: {error}"
                faults.append(Fault("gpu_unreadable", message, "critical", "driver", str(error), self.name))
                continue
            self._handles[id] = handle
            devices.append(self._describe(id, handle))
        absent = None if devices else "NVML is there and lists no GPU that can be opened"
        return Found(devices, absent, faults if count else self._unused("NVML lists none"))

    def _describe(self, id: str, handle: Any) -> Device:
        nvml, ask = self._nvml, _Questions(self._nvml)
        name = ask("name", nvml.nvmlDeviceGetName, handle)
        capability = ask("capabilities", nvml.nvmlDeviceGetCudaComputeCapability, handle)
        mig = ask("mig", nvml.nvmlDeviceGetMigMode, handle)
        driver, uuid = ask("driver", nvml.nvmlSystemGetDriverVersion), ask("uuid", nvml.nvmlDeviceGetUUID, handle)
        cuda = ask("cuda", nvml.nvmlSystemGetCudaDriverVersion)
        architecture = self._architecture(ask("architecture", nvml.nvmlDeviceGetArchitecture, handle))
        memory = self._memory(name, handle, ask)
        if architecture is None:
            ask.unknown.setdefault("architecture", "NVML names one that is not known here")
        unknown = {key: reason for key, reason in ask.unknown.items() if key not in ("mig", "cuda", "name")}
        unknown["cores"] = "NVML does not count the GPU's"
        return {
            "id": id, "name": _string(name) or f"NVIDIA GPU {id.removeprefix('gpu-')}", "vendor": "nvidia", "type": "gpu",
            "architecture": architecture, "memory": memory, "cores": None, "driver": _string(driver),
            "uuid": _string(uuid), "capabilities": _capabilities(capability, cuda, mig), "source": self.name, "unknown": unknown,
        }  # fmt: skip

    def _architecture(self, number: int | None) -> str | None:
        known = {getattr(self._nvml, f"NVML_DEVICE_ARCH_{name}", None): name.lower() for name in ARCHITECTURES}
        return None if number is None else known.get(number)

    def _memory(self, name: Any, handle: Any, ask: _Questions) -> dict[str, Any]:
        info = ask("memory.total_bytes", self._nvml.nvmlDeviceGetMemoryInfo, handle)
        if self._unified(_string(name), ask.codes.get("memory.total_bytes")):
            ask.unknown.pop("memory.total_bytes", None)
            return system_memory(self._root).described("unified")
        total = int(info.total) if info is not None else None
        return {"total_bytes": total, "kind": "dedicated", "physical_bytes": total, "limited_by": None}

    def _unified(self, name: str | None, code: int | None) -> bool:
        """Whether the GPU shares the machine's memory: by its name, or an Arm machine whose driver knows no memory of the GPU's own."""
        if name is not None and INTEGRATED.search(name):
            return True
        return code == self._nvml.NVML_ERROR_NOT_SUPPORTED and self._machine in ("aarch64", "arm64")

    def _sample(self, device: Mapping[str, Any], handle: Any) -> Reading:
        nvml, ask, reading = self._nvml, _Questions(self._nvml), Reading()
        rates = ask("utilization", nvml.nvmlDeviceGetUtilizationRates, handle)
        reading.utilization = None if rates is None else rates.gpu / 100
        reading.temperature_celsius = ask("temperature_celsius", nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        milliwatts = ask("power_watts", nvml.nvmlDeviceGetPowerUsage, handle)
        reading.power_watts = None if milliwatts is None else milliwatts / 1000
        if device["memory"]["kind"] == "unified":
            machine = system_memory(self._root)
            reading.memory_used_bytes, reading.memory_total_bytes = machine.used_bytes, machine.total_bytes
        elif (info := ask("memory_used_bytes", nvml.nvmlDeviceGetMemoryInfo, handle)) is not None:
            # what is not free cannot be had, whoever holds it: the driver reserves some for itself
            reading.memory_used_bytes, reading.memory_total_bytes = int(info.total - info.free), int(info.total)
        else:
            ask.unknown["memory_total_bytes"] = ask.unknown["memory_used_bytes"]
        reading.unknown = dict(ask.unknown)
        threshold = nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        reading.temperature_limit_celsius = ask("limit", nvml.nvmlDeviceGetTemperatureThreshold, handle, threshold)
        reading.faults = self._faults(device["id"], handle, ask)
        return reading

    def _faults(self, id: str, handle: Any, ask: _Questions) -> list[Fault]:
        nvml, faults = self._nvml, []
        reasons = ask("clocks", nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0
        slow = [words for key, words in SLOWDOWNS.items() if reasons & getattr(nvml, f"nvmlClocksThrottleReason{key}")]
        if slow:
            message = f"{id} runs slower than it could: {', '.join(slow)}"
            faults.append(Fault("throttled", message, "warning", "clocks", ", ".join(slow), self.name, id))
        errors = ask("ecc", nvml.nvmlDeviceGetTotalEccErrors, handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
        if errors:
            message = f"{id} counted {errors} uncorrected memory errors since the driver was loaded: its results may be wrong, reset it"
            faults.append(Fault("memory_errors", message, "critical", "ecc_uncorrected", float(errors), self.name, id))
        for what, code in ask.codes.items():
            if code in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED):
                return [*faults, _lost(id, ask.answers[what])]
        return faults


class _Questions:
    """Calls NVML and keeps, for each question that got no answer, the reason and the code."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self.unknown: dict[str, str] = {}
        self.answers: dict[str, str] = {}
        self.codes: dict[str, int] = {}

    def __call__(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._nvml.NVMLError as error:
            self.unknown[name], self.answers[name], self.codes[name] = f"NVML: {error}", str(error), error.value
            return None


def pci_gpus(root: Path = ROOT) -> list[str]:
    """Slots of NVIDIA display controllers on the PCI bus (Linux), with a driver or without."""
    folder = root / "sys/bus/pci/devices"
    slots = sorted(folder.iterdir()) if folder.is_dir() else []
    return [slot.name for slot in slots if text(slot / "vendor") == "0x10de" and (text(slot / "class") or "").startswith("0x03")]


def _lost(id: str, reason: str) -> Fault:
    return Fault("gpu_lost", f"{id} does not answer ({reason}): reset it, or restart the machine", "critical", "driver", reason, "nvml", id)


def _capabilities(capability: tuple[int, int] | None, cuda: int | None, mig: list[int] | None) -> list[str]:
    names = ["cuda"]
    if cuda is not None:  # 13010 is CUDA 13.1, the newest that this driver runs
        names.append(f"cuda-{cuda // 1000}.{cuda % 1000 // 10}")
    if capability is not None:
        names.append(f"sm_{capability[0]}{capability[1]}")
        names += [name for least, name in FORMATS if tuple(capability) >= least]
    if mig is not None and mig[0]:
        names.append("mig")
    return names


def _string(value: str | bytes | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
