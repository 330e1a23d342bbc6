"""Hardware: what is in this machine and what it does now, from whichever source knows best."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from aima_lib.infra.hal.cpu import Cpu
from aima_lib.infra.hal.jetson import Jetson
from aima_lib.infra.hal.memory import ROOT, Memory, system_memory
from aima_lib.infra.hal.nvidia import Nvidia
from aima_lib.infra.hal.reading import METRICS, Device, Fault, Found, Reading, Source

__all__ = ["METRICS", "Device", "Fault", "Found", "Hardware", "Memory", "Reading", "Source", "system_memory"]


class Hardware:
    """All sources of one machine. Every call blocks: run it in a thread. `root` and `nvml` are for machines other than this one."""

    def __init__(self, root: Path = ROOT, nvml: Any = None, machine: str | None = None) -> None:
        self._cpu, self._jetson, self._nvidia = Cpu(root), Jetson(root), Nvidia(nvml, root, machine)
        self._sources: dict[str, Source] = {source.name: source for source in (self._cpu, self._jetson, self._nvidia)}

    def detect(self) -> dict[str, Found]:
        """What each source found, the processor first. A GPU that two sources see is listed once."""
        found = {"psutil": self._cpu.detect(), "nvml": self._nvidia.detect(), "tegra": self._jetson.detect()}
        if found["tegra"].devices and found["nvml"].devices:
            # Both see the Jetson's one GPU: on Orin and older NVML answers with zeros where sysfs knows, on Thor it is the reverse.
            loser, winner = ("nvml", "tegra") if self._jetson.has_load else ("tegra", "nvml")
            found[loser] = Found(absent=f"{winner} knows the same GPU better", faults=found[loser].faults)
        return found

    def read(self, device: Mapping[str, Any]) -> Reading:
        """Sample one device."""
        try:
            return self._sources[device["source"]].read(device)
        except OSError as error:
            return Reading.blank(f"the system refused: {error}")

    def held(self, device: Mapping[str, Any], pids: Collection[int]) -> int | None:
        """Bytes of a GPU's memory that these processes hold; None when its driver does not tell."""
        return self._nvidia.held(device, pids) if device["source"] == self._nvidia.name else None
