"""Generated from schemas/ by python -m aima_lib.generate. Do not edit."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict


class Device(TypedDict):
    """A processor or an accelerator of this machine."""

    id: str
    name: str
    vendor: str | None
    type: Literal['cpu', 'gpu', 'npu']
    architecture: str | None
    memory: dict[str, Any]
    cores: dict[str, Any] | None
    driver: str | None
    uuid: str | None
    capabilities: list[str]
    source: str
    unknown: dict[str, Any]


class DeviceIssue(TypedDict):
    """Something wrong with a device, or with the machine's drivers."""

    device_id: str | None
    code: str
    severity: Literal['warning', 'critical']
    message: str
    evidence: dict[str, Any]


class DeviceSample(TypedDict):
    """What a device did at one moment."""

    time: str
    utilization: float | None
    temperature_celsius: float | None
    power_watts: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    unknown: NotRequired[dict[str, Any]]


class Error(TypedDict):
    """What went wrong, for a program and for a person."""

    code: str
    message: str
    retryable: bool
    hint: NotRequired[str]
    next: NotRequired[list[dict[str, Any]]]
    details: NotRequired[dict[str, Any]]


class Event(TypedDict):
    """Something that happened, numbered."""

    seq: int
    type: str
    time: str
    subject: str | None
    payload: dict[str, Any]


class Progress(TypedDict):
    """How far a run is."""

    phase: str
    message: str
    completed: NotRequired[float | None]
    total: NotRequired[float | None]


class Run(TypedDict):
    """One durable call: what was asked, how far it is, what came of it."""

    id: str
    unit: str
    status: Literal['running', 'succeeded', 'failed', 'cancelled', 'interrupted']
    input: dict[str, Any]
    caller: NotRequired[str]
    idempotency_key: NotRequired[str | None]
    attempts: int
    progress: dict[str, Any] | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    created_at: str
    finished_at: str | None


class DeviceDetectResult(TypedDict):
    """DeviceDetectResult"""

    devices: list[Device]
    sources: list[dict[str, Any]]


class DeviceHealthResult(TypedDict):
    """DeviceHealthResult"""

    status: Literal['healthy', 'warning', 'critical', 'unknown']
    issues: list[DeviceIssue]
    devices: list[dict[str, Any]]


class DeviceInfoResult(TypedDict):
    """DeviceInfoResult"""

    devices: list[Device]


class DeviceMetricsResult(TypedDict):
    """DeviceMetricsResult"""

    device_id: str
    now: DeviceSample
    history: list[DeviceSample]
    devices: list[dict[str, Any]]


class EventListResult(TypedDict):
    """EventListResult"""

    events: list[Event]
    last: int


class RunCancelResult(TypedDict):
    """RunCancelResult"""

    run: Run


class RunGetResult(TypedDict):
    """RunGetResult"""

    run: Run


class RunListResult(TypedDict):
    """RunListResult"""

    runs: list[Run]
    total: int


class RunWaitResult(TypedDict):
    """RunWaitResult"""

    run: Run


class SystemDoctorResult(TypedDict):
    """SystemDoctorResult"""

    healthy: bool
    checks: list[dict[str, Any]]
    units: list[dict[str, Any]]


class SystemInfoResult(TypedDict):
    """SystemInfoResult"""

    version: str
    home: str
    pid: int
    url: str | None
    started_at: str
    uptime_seconds: float
    platform: str
    python: str
    counts: dict[str, Any]


class UnitCallResult(TypedDict):
    """UnitCallResult"""

    name: str
    result: dict[str, Any] | None
    run: NotRequired[dict[str, Any]]


class UnitDescribeResult(TypedDict):
    """UnitDescribeResult"""

    unit: dict[str, Any]


class UnitSearchResult(TypedDict):
    """UnitSearchResult"""

    units: list[dict[str, Any]]
