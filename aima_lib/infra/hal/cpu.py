"""The processor and the system's memory, on Linux, macOS and Windows, by psutil and /proc/cpuinfo."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aima_lib.infra.hal.memory import ROOT, system_memory
from aima_lib.infra.hal.reading import Device, Found, Reading, text

ID = "cpu"
SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz")
WINDOW_SECONDS = 0.1
# cpuinfo's flag -> the names engines and people use for it. An exact flag is kept where llama.cpp and onnxruntime tell it apart.
FLAGS = {
    "sse4_2": ("sse4_2",), "avx": ("avx",), "f16c": ("f16c",), "fma": ("fma",), "avx2": ("avx2",), "avx_vnni": ("avx_vnni",),
    "avx512f": ("avx512",), "avx512bw": ("avx512bw",), "avx512vl": ("avx512vl",), "avx512vbmi": ("avx512vbmi",),
    "avx512_vnni": ("avx512_vnni",), "avx512_bf16": ("avx512_bf16",), "avx512_fp16": ("avx512_fp16",), "amx_tile": ("amx",),
    "amx_int8": ("amx_int8",), "amx_bf16": ("amx_bf16",), "asimd": ("neon",), "neon": ("neon",), "asimdhp": ("fp16",),
    "asimddp": ("dotprod",), "i8mm": ("i8mm",), "bf16": ("bf16",), "sve": ("sve",), "sve2": ("sve2",), "sme": ("sme",),
}  # fmt: skip
VENDORS = {"authenticamd": "amd", "genuineintel": "intel", "amd": "amd", "intel": "intel", "apple": "apple", "0x41": "arm",
           "0x4e": "nvidia", "0x51": "qualcomm", "0xc0": "ampere", "0x48": "hisilicon", "0x61": "apple"}  # fmt: skip
# Arm's cpuinfo has numbers for names: the cores of NVIDIA's boards and of common servers.
PARTS = {"0xd03": "Cortex-A53", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72", "0xd0b": "Cortex-A76", "0xd0c": "Neoverse-N1",
         "0xd40": "Neoverse-V1", "0xd42": "Cortex-A78AE", "0xd49": "Neoverse-N2", "0xd4f": "Neoverse-V2", "0xd85": "Cortex-X925",
         "0xd87": "Cortex-A725"}  # fmt: skip


class Cpu:
    """The one device every machine has."""

    name = "psutil"

    def __init__(self, root: Path = ROOT) -> None:
        self._root, self._lock = root, threading.Lock()
        self._last: tuple[float, float, float] | None = None
        self._utilization = 0.0

    def detect(self) -> Found:
        """The processor with the memory a process here can have."""
        import psutil

        info, memory = cpuinfo(self._root), system_memory(self._root)
        unknown = {"driver": "a processor needs none", "uuid": "a processor has none"}
        name, vendor, capabilities = _named(info), _vendor(info), _capabilities(info)
        cores = {"physical": psutil.cpu_count(logical=False), "logical": psutil.cpu_count()}
        reasons = {"vendor": (vendor, "the system does not name it"), "capabilities": (capabilities, "this system does not list CPU flags"),
                   "cores": (cores["physical"], "the system does not count physical cores")}  # fmt: skip
        unknown |= {key: reason for key, (value, reason) in reasons.items() if not value}
        device: Device = {
            "id": ID, "name": name, "vendor": vendor, "type": "cpu", "architecture": platform.machine().lower() or None,
            "memory": memory.described("system"), "cores": cores, "driver": None, "uuid": None, "capabilities": capabilities,
            "source": self.name, "unknown": unknown,
        }  # fmt: skip
        return Found([device])

    def read(self, device: Mapping[str, Any]) -> Reading:  # noqa: ARG002  there is one
        """Sample load, temperature and memory. Takes a tenth of a second when nobody sampled just before."""
        memory = system_memory(self._root)
        reading = Reading(utilization=self._busy(), memory_used_bytes=memory.used_bytes, memory_total_bytes=memory.total_bytes)
        reading.temperature_celsius, reading.temperature_limit_celsius = _temperature()
        if reading.temperature_celsius is None:
            reading.unknown["temperature_celsius"] = "the system shows no CPU temperature sensor"
        reading.unknown["power_watts"] = "processor power is not measured"
        return reading

    def _busy(self) -> float:
        """The share of time the processors worked since the last call, over a tenth of a second at least."""
        with self._lock:
            if self._last is None:
                self._last = _times()
            wait = self._last[0] + WINDOW_SECONDS - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            last, self._last = self._last, _times()
            elapsed = self._last[2] - last[2]
            if elapsed > 0:
                self._utilization = round(min(1.0, max(0.0, (self._last[1] - last[1]) / elapsed)), 4)
            return self._utilization


def cpuinfo(root: Path = ROOT) -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo, keys in lower case; empty where there is no such file.

    On Arm, `model name` is made of the names of all its kinds of core.
    """
    fields: dict[str, str] = {}
    cores: dict[str, None] = {}
    for line in (text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
        if key.strip() == "CPU part" and fields.get("cpu implementer") == "0x41":
            cores[PARTS.get(value.strip(), f"Arm part {value.strip()}")] = None
    if cores:
        fields.setdefault("model name", " + ".join(cores))
    return fields


def _times() -> tuple[float, float, float]:
    """(when, seconds worked, seconds in all) over every processor. Waiting for a disk, and for the hypervisor, is not work."""
    import psutil

    times = psutil.cpu_times()
    # guest time is inside user time on Linux: adding every field would count it twice
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    rest = times.idle + getattr(times, "iowait", 0.0) + getattr(times, "steal", 0.0)
    return time.monotonic(), total - rest, total


def _named(info: Mapping[str, str]) -> str:
    spoken = info.get("model name") or info.get("hardware") or _sysctl("machdep.cpu.brand_string") or platform.processor()
    return spoken or f"{platform.machine() or 'unnamed'} processor"


def _vendor(info: Mapping[str, str]) -> str | None:
    told = (info.get("vendor_id") or info.get("cpu implementer") or "").lower()
    if told in VENDORS:
        return VENDORS[told]
    words = _named(info).lower().replace(",", " ").replace("(r)", " ").split()
    return next((VENDORS[word] for word in words if word in VENDORS), None)


def _capabilities(info: Mapping[str, str]) -> list[str]:
    flags = (info.get("flags") or info.get("features") or "").split()
    found = {name for flag in flags for name in FLAGS.get(flag, ())}
    if platform.machine().lower() in ("arm64", "aarch64"):
        found.add("neon")  # the 64-bit Arm architecture requires it
    return sorted(found)


def _sysctl(key: str) -> str | None:
    if sys.platform != "darwin":
        return None
    try:
        return subprocess.run(["/usr/sbin/sysctl", "-n", key], capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _temperature() -> tuple[float | None, float | None]:
    """(the hottest CPU sensor, where the system calls it critical)."""
    import psutil

    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    for name in SENSORS:
        if entries := [entry for entry in sensors.get(name, []) if entry.current and entry.current > 0]:
            hottest = max(entries, key=lambda entry: entry.current)
            return float(hottest.current), float(hottest.critical) if hottest.critical else None
    return None, None
