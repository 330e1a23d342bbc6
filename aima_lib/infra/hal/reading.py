"""What a device says: the three shapes every kind of hardware answers with, and small files read as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Device = dict[str, Any]
METRICS = ("utilization", "temperature_celsius", "power_watts", "memory_used_bytes", "memory_total_bytes")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something the hardware or its driver reports as wrong. `device_id` is None when it is the machine's."""

    code: str
    message: str
    severity: Literal["warning", "critical"]
    metric: str
    value: float | str | None
    source: str
    device_id: str | None = None


@dataclass(slots=True)
class Reading:
    """One sample. What could not be read is None, and `unknown` says why.

    `utilization` is a share from 0 to 1; `temperature_limit_celsius` is where the hardware slows itself down, if it says so.
    """

    utilization: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_limit_celsius: float | None = None
    unknown: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    @classmethod
    def blank(cls, reason: str, faults: list[Fault] | None = None) -> Reading:
        """A sample of nothing, for one reason."""
        return cls(unknown=dict.fromkeys(METRICS, reason), faults=faults or [])

    def values(self) -> dict[str, float | int | None]:
        """The metrics by name."""
        return {name: getattr(self, name) for name in METRICS}


@dataclass(frozen=True, slots=True)
class Found:
    """What one source found. `absent` is the reason when it found nothing."""

    devices: list[Device] = field(default_factory=list)
    absent: str | None = None
    faults: list[Fault] = field(default_factory=list)


class Source(Protocol):
    """One way to reach hardware. Both calls block: run them in a thread."""

    name: str

    def detect(self) -> Found:
        """Look at the hardware anew."""
        ...

    def read(self, device: Mapping[str, Any]) -> Reading:
        """Sample a device that `detect` found."""
        ...


def text(path: Path) -> str | None:
    """A small file's text without the NULs and blanks around it, or None when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
    except OSError:
        return None


def number(path: Path) -> int | None:
    """A small file's integer, or None when it cannot be read or holds none."""
    try:
        return int(text(path) or "")
    except ValueError:
        return None
