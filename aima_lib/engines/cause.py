"""Why an engine ended, in one line for a person: read from its last words and from how it ended. Pure but for the CPU's flags."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MIB = 1 << 20
# From the most telling to the least: the first pattern that any line matches wins, and of its lines the first.
TELLING = (
    r"Remote RPC server crashed|Failed to connect to \S+:\d+",
    r"invalid magic",
    r"not within the file bounds|data is not within|corrupted or incomplete",
    r"unknown model architecture|unsupported model architecture",
    r"out of memory|unable to allocate|failed to allocate|cudaMalloc failed|ErrorOutOfDeviceMemory",
    r"couldn't bind|address already in use|bind HTTP server socket",
    r"EngineCore encountered an issue|engine core exited unexpectedly|Engine core initialization failed",
    r"GGML_ASSERT|terminate called|what\(\):",
    r"gguf_init|error loading model",
    r"unknown argument|invalid argument|error while loading shared libraries",
    r"ModuleNotFoundError|ImportError",
    r"failed to load model|failed to create context",
)
STAMP = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.]+Z ")
PREFIX = re.compile(r"^(?:[\d.]+ )?[EW] (?:srv +\S+: )?")


def cause(lines: Sequence[str], returncode: int | None, *, served: bool, oom: Mapping[str, Any] | None = None) -> str:
    """One line: what the log says, and how the process ended. One that `served` before may have logged its requests' errors too.

    oom: where the kernel killed for want of memory meanwhile, as the keeper tells it.
    """
    how = starved(returncode, oom) if oom else ended(returncode)
    said = telling(lines, any_error=not served)
    return f"{said} ({how})" if said else how


def telling(lines: Sequence[str], *, any_error: bool) -> str | None:
    """The line of a log that best says what went wrong, cleaned, or None; with `any_error` the last error where none is telling."""
    words = [STAMP.sub("", line).rstrip() for line in lines]
    for pattern in TELLING:
        for line in words:
            if re.search(pattern, line):
                return PREFIX.sub("", line).strip()
    if not any_error:
        return None
    errors = [line for line in words if re.match(r"^(?:[\d.]+ )?E ", line) or re.match(r"^\w*(?:Error|Exception): ", line)]
    return PREFIX.sub("", errors[-1]).strip() if errors else None


def ended(returncode: int | None) -> str:
    """How a process ended, from its return code as Python gives it."""
    if returncode is None:
        return "it ended without a trace, as when its keeper is killed"
    if returncode >= 0:
        return f"it ended with status {returncode}"
    if returncode == -signal.SIGILL:
        return illegal_instruction()
    name = signal.Signals(-returncode).name if -returncode in set(signal.Signals) else str(-returncode)
    why = ": by the kernel for want of memory, or by somebody" if returncode == -signal.SIGKILL else ""
    return f"it was ended by {name}{why}"


def starved(returncode: int | None, oom: Mapping[str, Any]) -> str:
    """How a process ended while the kernel killed for want of memory: itself, or perhaps one of its parts."""
    if oom["where"] == "machine":  # where it may have been somebody else's process
        sure = "it was ended by SIGKILL: most likely by the kernel, which ran out of memory on this machine"
        return sure if returncode == -signal.SIGKILL else ended(returncode)
    limit = f" of {oom['limit_bytes'] / MIB:,.0f} MiB" if oom.get("limit_bytes") else ""
    where = f"its control group{limit}"
    if returncode == -signal.SIGKILL:
        return f"it was ended by SIGKILL: by the kernel, out of memory in {where}"
    return f"{ended(returncode)}, and the kernel had killed a process meanwhile, out of memory in {where}"


def illegal_instruction() -> str:
    """What SIGILL means for an engine, with the CPU features that builds often want and this machine lacks."""
    absent = [flag for flag in ("avx2", "avx512f", "amx_tile") if flag not in _flags()]
    lacks = f"; it lacks {', '.join(absent)}" if absent else ""
    return f"SIGILL: it was built for instructions this CPU does not have{lacks}"


def _flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {"avx2", "avx512f", "amx_tile"}  # unknown: name none
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else {"avx2", "avx512f", "amx_tile"}
