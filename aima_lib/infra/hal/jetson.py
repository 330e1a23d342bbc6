"""NVIDIA Jetson's integrated GPU, from the device tree and sysfs: on Orin and older, NVML is missing or answers with zeros."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aima_lib.infra.hal.memory import ROOT, system_memory
from aima_lib.infra.hal.reading import Device, Found, Reading, number, text

# Chip by the device tree -> (architecture, CUDA compute capability)
CHIPS = {"tegra264": ("blackwell", "11.0"), "tegra234": ("ampere", "8.7"), "tegra194": ("volta", "7.2"), "tegra186": ("pascal", "6.2"),
         "tegra210": ("maxwell", "5.3")}  # fmt: skip
# Where the releases put the GPU's load, in tenths of a percent.
LOADS = ("sys/devices/gpu.0/load", "sys/devices/platform/gpu.0/load", "sys/devices/platform/*.gpu/load",
         "sys/devices/platform/bus@0/*.gpu/load", "sys/class/devfreq/*.gpu/device/load")  # fmt: skip
ID = "gpu-0"


class Jetson:
    """Files only: nothing is started, and no privilege is needed. `root` is another place to find /proc, /sys and /etc."""

    name = "tegra"

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root

    def detect(self) -> Found:
        """The board's one GPU, or the reason why there is none."""
        model = text(self._root / "proc/device-tree/model")
        compatible = (text(self._root / "proc/device-tree/compatible") or "").split("\0")
        chip = next((name.removeprefix("nvidia,") for name in compatible if name.removeprefix("nvidia,") in CHIPS), None)
        if model is None:
            return Found(absent="no device tree: not a Jetson")
        if chip is None and "jetson" not in model.lower():
            return Found(absent=f"the device tree says {model!r}: not a Jetson")
        return Found([self._device(model, chip)])

    @property
    def has_load(self) -> bool:
        """Whether sysfs shows the GPU's load: then it is the better witness than NVML."""
        return self._load() is not None

    def read(self, device: Mapping[str, Any]) -> Reading:  # noqa: ARG002  there is one
        """Sample the GPU's load, temperature, power and the memory it shares with the processor."""
        memory = system_memory(self._root)
        reading = Reading(memory_used_bytes=memory.used_bytes, memory_total_bytes=memory.total_bytes)
        load = self._load()
        reading.utilization = None if load is None else min(1.0, load / 1000)
        reading.temperature_celsius, reading.temperature_limit_celsius, cold = self._temperature()
        reading.power_watts, unpowered = self._power()
        reasons = {"utilization": "sysfs shows no load of the GPU", "temperature_celsius": cold, "power_watts": unpowered}
        reading.unknown = {name: reason for name, reason in reasons.items() if getattr(reading, name) is None}
        return reading

    def _device(self, model: str, chip: str | None) -> Device:
        architecture, capability = CHIPS.get(chip or "", (None, None))
        release = _release(text(self._root / "etc/nv_tegra_release"))
        unknown = {"uuid": "sysfs shows none", "cores": "sysfs does not count the GPU's"}
        if architecture is None:
            unknown["architecture"] = "the device tree names a chip that is not known here"
        if release is None:
            unknown["driver"] = "/etc/nv_tegra_release cannot be read"
        capabilities = ["cuda", f"sm_{capability.replace('.', '')}"] if capability else ["cuda"]
        return {
            "id": ID, "name": f"{model} GPU", "vendor": "nvidia", "type": "gpu", "architecture": architecture,
            "memory": system_memory(self._root).described("unified"), "cores": None, "driver": release, "uuid": None,
            "capabilities": capabilities, "source": self.name, "unknown": unknown,
        }  # fmt: skip

    def _load(self) -> int | None:
        return next((load for pattern in LOADS for path in _matches(self._root, pattern) if (load := number(path)) is not None), None)

    def _temperature(self) -> tuple[float | None, float | None, str]:
        for zone in _matches(self._root, "sys/class/thermal/thermal_zone*"):
            if not (text(zone / "type") or "").lower().startswith("gpu"):
                continue
            degrees = number(zone / "temp")
            if degrees is None or degrees <= -200_000:  # the kernel answers EAGAIN or -256 °C while the GPU sleeps
                return None, None, f"{zone.name} cannot be read: the GPU sleeps"
            return degrees / 1000, self._trip(zone), ""
        return None, None, "sysfs shows no thermal zone of the GPU"

    def _trip(self, zone: Path) -> float | None:
        for kind in _matches(zone, "trip_point_*_type"):
            if text(kind) in ("hot", "critical") and (degrees := number(kind.with_name(kind.name.replace("_type", "_temp")))) is not None:
                return degrees / 1000
        return None

    def _power(self) -> tuple[float | None, str]:
        """(watts, or the reason why not). A rail that feeds other parts as well is not the GPU's power."""
        shared = "no power sensor names the GPU"
        for label in _matches(self._root, "sys/class/hwmon/hwmon*/in*_label"):
            rail, channel = (text(label) or ""), label.name.removeprefix("in").removesuffix("_label")
            if "GPU" not in rail.upper():
                continue
            millivolts, milliamperes = number(label.with_name(f"in{channel}_input")), number(label.with_name(f"curr{channel}_input"))
            if millivolts is None or milliamperes is None:
                shared = f"the sensor of {rail} cannot be read"
            elif set(re.split(r"[^A-Z0-9]+", rail.upper())) <= {"VDD", "GPU", "SYS", "5V"}:
                return round(millivolts * milliamperes / 1e6, 3), ""
            else:
                shared = f"the rail {rail} feeds other parts too: {millivolts * milliamperes / 1e6:.1f} W in all"
        return None, shared


def _matches(root: Path, pattern: str) -> Iterator[Path]:
    try:
        yield from sorted(root.glob(pattern))
    except OSError:
        return


def _release(line: str | None) -> str | None:
    """`# R36 (release), REVISION: 4.3, …` is R36.4.3."""
    found = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", line or "")
    return f"R{found[1]}.{found[2]}" if found else None
