"""The host's counters and gauges as Prometheus text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aima_lib import __version__
from aima_lib.gateway import Gateway

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CALLERS = {
    "requests_per_minute": ("requests", "Calls that were let through, by caller."),
    "tokens_per_hour": ("tokens", "Tokens of prompts and answers, by caller."),
    "deletions_per_hour": ("deletions", "Calls of destructive units, by caller."),
    "download_gib_per_hour": ("download_bytes", "Bytes fetched, by caller."),
    "device_seconds_per_hour": ("device_seconds", "Seconds that engines worked, by caller."),
}
Row = tuple[Mapping[str, str], float]


async def text(gateway: Gateway) -> bytes:
    """Every metric. What a device does not measure is left out, not zero."""
    services = gateway.services
    lines = [
        *_metric("aima_info", "gauge", "The host.", [({"version": __version__}, 1)]),
        *_metric(
            "aima_calls_total",
            "counter",
            "Calls of units, by outcome.",
            [({"unit": unit, "code": code}, count) for (unit, code), count in sorted(gateway.outcomes.items())],
        ),
        *_metric(
            "aima_call_seconds_total",
            "counter",
            "Time spent in units.",
            [({"unit": unit}, seconds) for unit, seconds in sorted(gateway.seconds.items())],
        ),
        *_metric(
            "aima_events_total",
            "counter",
            "Events since the host started.",
            [({"type": type}, count) for type, count in sorted(services.events.counts.items())],
        ),
        *_callers(gateway),
        *await _devices(gateway),
        *_services(gateway),
    ]
    return ("\n".join(lines) + "\n").encode()


def _callers(gateway: Gateway) -> list[str]:
    totals = sorted(gateway.services.allowance.totals.items())
    lines = []
    for limit, (name, help) in CALLERS.items():
        rows = [({"caller": caller}, total) for (caller, kind), total in totals if kind == limit]
        lines += _metric(f"aima_caller_{name}_total", "counter", help, rows)
    return lines


async def _devices(gateway: Gateway) -> list[str]:
    measured = (await gateway.services.devices.metrics(window_seconds=1))["devices"]
    names = sorted({name for device in measured for name, value in device["now"].items() if isinstance(value, int | float)})
    lines = []
    for name in names:
        rows = [({"device": device["device_id"]}, device["now"][name]) for device in measured if device["now"].get(name) is not None]
        lines += _metric(f"aima_device_{name}", "gauge", f"{name.replace('_', ' ')} of a device.", rows)
    return lines


def _services(gateway: Gateway) -> list[str]:
    found = [(service["id"], service.get("metrics") or {}) for service in gateway.services.serving.list(limit=1000)[0]]
    names = sorted({name for _, metrics in found for name, value in metrics.items() if isinstance(value, int | float)} - {"window_seconds"})
    lines = []
    for name in names:
        rows = [({"service": id}, metrics[name]) for id, metrics in found if metrics.get(name) is not None]
        lines += _metric(f"aima_service_{name}", "gauge", f"{name.replace('_', ' ')} of a service over the last minute.", rows)
    return lines


def _metric(name: str, kind: str, help: str, rows: Iterable[Row]) -> list[str]:
    lines = []
    for labels, value in rows:
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        lines.append(f"{name}{{{inside}}} {value!r}")
    return [f"# HELP {name} {help}", f"# TYPE {name} {kind}", *lines] if lines else []


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
