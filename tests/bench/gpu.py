"""What AIMA says of a GPU against what torch knows of it: `python tests/bench/gpu.py [GIB]`. Needs psutil, nvidia-ml-py and torch, no network.

Prints one JSON object: the devices and a sample of each; what the driver and a context alone take (the formula's RUNTIMES, which holds a library's workspaces too); and, for some
GiB of tensors, what NVML says the device holds more, what it says this process holds, and what torch reserved. Ends with 1 when they disagree
by more than 2 % or 64 MiB.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from aima_lib.infra.hal import Hardware  # noqa: E402


def _formula() -> ModuleType:
    """services/memory.py by itself: its package would want all that a host needs."""
    spec = importlib.util.spec_from_file_location("memory_formula", ROOT / "aima_lib/services/memory.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


memory = _formula()
MIB = 1 << 20
GEOMETRY = {
    "block_count": 32, "head_count": 32, "embedding_length": 4096, "feed_forward_length": 14_336, "vocabulary_size": 128_256,
    "context_length": 131_072, "tensor_bytes": {}, "block_bytes": 14 << 30, "state_elements": 0,
    "cache": [{"layers": 32, "key_elements": 1024, "value_elements": 1024, "window": None}],
}  # fmt: skip


def main() -> int:
    wanted = int(float(sys.argv[1]) * (1 << 30)) if len(sys.argv) > 1 else 8 << 30
    hardware = Hardware()
    found = hardware.detect()
    devices = [device for source in found.values() for device in source.devices]
    said: dict[str, Any] = {"absent": {name: source.absent for name, source in found.items() if source.absent}, "devices": devices}
    said["samples"] = {device["id"]: (reading := hardware.read(device)).values() | {"unknown": reading.unknown} for device in devices}
    gpus = [device for device in devices if device["type"] == "gpu"]
    if not gpus:
        print(json.dumps(said, indent=1))
        return 1
    said["smi"] = _smi()
    said["allocation"], agrees = _allocate(hardware, gpus[0], wanted)
    load = memory.Load(8192, 4, kind="gpu", runtime="cuda")
    needed = memory.estimate(GEOMETRY, 15 << 30, 8192, 4, load)
    free = {gpu["id"]: said["samples"][gpu["id"]]["memory_total_bytes"] - said["samples"][gpu["id"]]["memory_used_bytes"] for gpu in gpus}
    said["an 8B at 8192 × 4"] = {"memory": needed, "split": memory.split(GEOMETRY, needed, load, free, "cpu")}
    print(json.dumps(said, indent=1))
    return 0 if agrees else 1


def _allocate(hardware: Hardware, gpu: dict[str, Any], wanted: int) -> tuple[dict[str, Any], bool]:
    """Take memory in two steps: a context with next to nothing in it, then the tensors."""
    import torch

    def used() -> int:
        return int(hardware.read(gpu).memory_used_bytes or 0)

    before = used()
    kept = [torch.zeros(1, device="cuda")]
    torch.cuda.synchronize()
    context = used() - before - torch.cuda.memory_reserved()
    kept += [torch.ones(1 << 28, dtype=torch.float32, device="cuda") for _ in range(max(1, wanted >> 30))]
    torch.cuda.synchronize()
    more, reserved = used() - before - context, torch.cuda.memory_reserved()
    held = hardware.held(gpu, [os.getpid()])
    total = torch.cuda.get_device_properties(0).total_memory
    told = {
        "used_before_bytes": before, "context_bytes": context, "foretold_context_bytes": memory.RUNTIMES["cuda"], "torch_reserved_bytes": reserved,
        "nvml_more_bytes": more, "nvml_of_this_process_bytes": held, "nvml_total_bytes": gpu["memory"]["total_bytes"],
        "torch_total_bytes": total, "tensors": len(kept),
    }  # fmt: skip
    close = abs(more - reserved) <= max(64 * MIB, reserved // 50)
    own = held is None or abs(held - reserved - context) <= max(64 * MIB, reserved // 50)
    return told | {"agree": close and own}, close and own


def _smi() -> str | None:
    """What the driver's own program says, to compare by eye."""
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,memory.used,driver_version,power.draw,temperature.gpu", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"{error}"


if __name__ == "__main__":
    sys.exit(main())
