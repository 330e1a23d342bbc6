"""Thirty machines on file: what NVML, psutil and /proc say on each. `await devices_of(...)` is what HAL makes of one."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import psutil
import pynvml

GIB = 1 << 30
NOT_SUPPORTED = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
ARCHITECTURES = {
    "turing": ("TURING", (7, 5)),
    "ampere": ("AMPERE", (8, 6)),
    "a100": ("AMPERE", (8, 0)),
    "ada": ("ADA", (8, 9)),
    "hopper": ("HOPPER", (9, 0)),
    "blackwell": ("BLACKWELL", (12, 0)),
    "b200": ("BLACKWELL", (10, 0)),
    "gb10": ("BLACKWELL", (12, 1)),
    "thor": ("BLACKWELL", (11, 0)),
}


def gpu(name: str, chip: str, gib: float | None, used: float = 0.5) -> Mapping[str, Any]:
    """What NVML answers of one GPU; without a size it shares the machine's memory, and says so by [N/A]."""
    generation, capability = ARCHITECTURES[chip]
    total = None if gib is None else int(gib * GIB)
    memory = NOT_SUPPORTED if total is None else SimpleNamespace(total=total, free=total - int(used * GIB), used=int(used * GIB))
    return {
        "nvmlDeviceGetName": name,
        "nvmlDeviceGetUUID": "GPU-00000000-0000-0000-0000-000000000001",
        "nvmlDeviceGetCudaComputeCapability": capability,
        "nvmlDeviceGetArchitecture": getattr(pynvml, f"NVML_DEVICE_ARCH_{generation}"),
        "nvmlDeviceGetMigMode": NOT_SUPPORTED,
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=0, memory=0),
        "nvmlDeviceGetTemperature": 40,
        "nvmlDeviceGetPowerUsage": 20_000,
        "nvmlDeviceGetTemperatureThreshold": NOT_SUPPORTED,
        "nvmlDeviceGetCurrentClocksThrottleReasons": 0,
        "nvmlDeviceGetTotalEccErrors": NOT_SUPPORTED,
    }


def orin(model: str, chip: str = "tegra234") -> Mapping[str, str]:
    """The files by which a Jetson is known."""
    return {
        "proc/device-tree/model": f"{model}\0",
        "proc/device-tree/compatible": f"nvidia,p3737\0nvidia,{chip}\0",
        "sys/devices/gpu.0/load": "0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic",
    }


@dataclass(frozen=True)
class Described:
    """One machine. processor: the name its system gives the processor; gib: its memory, used of which is taken."""

    name: str
    processor: str
    cores: int
    gib: float
    used: float = 2.0
    gpus: tuple[Mapping[str, Any], ...] = ()
    machine: str = "x86_64"
    os: str = "Linux"
    files: Mapping[str, str] = field(default_factory=dict)


def arm(name: str, cores: int, gib: float, **more: Any) -> Described:
    return Described(name, more.pop("processor", "Cortex-A78AE"), cores, gib, machine="aarch64", **more)


def mac(name: str, cores: int, gib: float) -> Described:
    return Described(name, f"Apple {name.partition(' ')[2]}", cores, gib, 4.0, machine="arm64", os="Darwin")


def pc(name: str, chip: str, gib: float, memory: float = 64, cores: int = 12, used: float = 0.5) -> Described:
    return Described(name, "AMD Ryzen 9", cores, memory, 4.0, (gpu(f"NVIDIA GeForce {name}", chip, gib, used),))


def server(name: str, chip: str, gib: float, count: int = 1) -> Described:
    return Described(name, "AMD EPYC 9554", 64, 512, 8.0, tuple(gpu(f"NVIDIA {name}", chip, gib) for _ in range(count)))


MACHINES = (
    arm("DGX Spark GB10", 20, 119.7, used=6.0, processor="Cortex-X925 + Cortex-A725", gpus=(gpu("NVIDIA GB10", "gb10", None),)),
    arm("DGX Spark GB10, half taken", 20, 119.7, used=64.0, processor="Cortex-X925 + Cortex-A725", gpus=(gpu("NVIDIA GB10", "gb10", None),)),
    arm("Jetson Thor 128", 14, 122.8, used=4.0, processor="Neoverse-V3AE", gpus=(gpu("NVIDIA Thor", "thor", None),)),
    arm("Jetson AGX Orin 64", 12, 61.4, files=orin("NVIDIA Jetson AGX Orin Developer Kit")),
    arm("Jetson AGX Orin 32", 8, 29.8, files=orin("NVIDIA Jetson AGX Orin 32GB")),
    arm("Jetson Orin NX 16", 8, 15.3, files=orin("NVIDIA Jetson Orin NX Engineering Reference Developer Kit")),
    arm("Jetson Orin Nano 8", 6, 7.4, used=1.2, files=orin("NVIDIA Jetson Orin Nano Developer Kit")),
    pc("RTX 2060", "turing", 6),
    pc("RTX 3060", "ampere", 12),
    pc("RTX 3060 Ti", "ampere", 8),
    pc("RTX 3090", "ampere", 24),
    pc("RTX 4060", "ada", 8, memory=16, cores=8),
    pc("RTX 4070", "ada", 12),
    pc("RTX 4080", "ada", 16),
    pc("RTX 4090", "ada", 23.99),
    pc("RTX 4090, nearly full", "ada", 23.99, used=20.0),
    pc("RTX 5070 Ti", "blackwell", 16),
    pc("RTX 5090", "blackwell", 31.8),
    server("A100-SXM4-40GB", "a100", 40),
    server("A100-SXM4-80GB", "a100", 80),
    server("L40S", "ada", 45),
    server("H100 80GB HBM3", "hopper", 79.6),
    server("H200", "hopper", 140.4),
    server("B200", "b200", 179, 2),
    mac("MacBook M2 8", 8, 8),
    mac("Mac M4 Pro 48", 14, 48),
    mac("Mac M3 Ultra 192", 24, 192),
    Described("CPU 8 GB", "Intel(R) Core(TM) i5-8250U", 4, 7.6),
    Described("CPU 16 GB", "AMD Ryzen 7 5700U", 8, 15.4, 3.0),
    Described("CPU 32 GB", "13th Gen Intel(R) Core(TM) i7-13700", 16, 31.2, 4.0),
    Described("CPU 64 GB", "AMD EPYC 7302", 32, 62.7, 4.0),
    Described("CPU of a small container", "Intel(R) Xeon(R)", 2, 1.0, 0.4),
)  # fmt: skip


@contextmanager
def being(machine: Described, root: Path) -> Iterator[None]:
    """The system answers as that machine's would, and `root` holds its /proc, /sys and /etc."""
    files = dict(machine.files)
    if machine.os == "Linux":
        files["proc/cpuinfo"] = f"model name : {machine.processor}\n"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    total, used = int(machine.gib * GIB), int(machine.used * GIB)
    answers = {
        (psutil, "virtual_memory"): lambda: SimpleNamespace(total=total, available=total - used, used=used),
        (psutil, "cpu_count"): lambda logical=True: machine.cores,
        (platform, "machine"): lambda: machine.machine,
        (platform, "processor"): lambda: machine.processor,
        (platform, "system"): lambda: machine.os,
    }
    patches = [mock.patch.object(module, name, answer) for (module, name), answer in answers.items()]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()
