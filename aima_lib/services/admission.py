"""Whether a model fits before it is started: the upper edge of its estimate against the memory that is free now."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aima_lib.engines.base import context_of
from aima_lib.errors import ResourceExhausted
from aima_lib.services.device import DeviceService
from aima_lib.services.measurements import Measurements

SMALLEST_CONTEXT = 512
GIB = 1 << 30
# The upper edge of a start with these options.
High = Callable[[Mapping[str, Any]], int | None]


class Admission:
    """Keeps a reserve of each device's memory free of engines."""

    def __init__(self, devices: DeviceService, measurements: Measurements, reserve_fraction: float) -> None:
        self._devices, self._measurements, self._reserve = devices, measurements, reserve_fraction
        self._promised: dict[str, tuple[str, int]] = {}

    @asynccontextmanager
    async def admitted(
        self,
        instance_id: str,
        model: Mapping[str, Any],
        engine: tuple[str, str | None],
        device_id: str,
        options: Mapping[str, Any],
        retry: Mapping[str, Any],
    ) -> AsyncIterator[None]:
        """Let a start through, or refuse it with the figures and a context that would fit.

        `engine` is its name and version, `retry` the call that asks for the start.

        While the block lasts its memory is promised: a second start sees it as taken, though the engine has not touched it yet.

        Raises:
            ResourceExhausted: the upper edge of the estimate is more than what is free, less the reserve and what is promised.
        """
        usable = await self._free_bytes(device_id)
        device = self._devices.device(device_id)

        def high(options: Mapping[str, Any]) -> int | None:
            return self._measurements.high_bytes(model, *engine, device, options)

        wanted = high(options)
        if usable is not None and wanted is not None:  # what cannot be known cannot be refused; the engine itself will say
            usable -= self._promised_on(device_id)
            if wanted > usable:
                raise self._refusal(model, device_id, options, retry, wanted, max(0, usable), high)
        self._promised[instance_id] = (device_id, wanted or 0)
        try:
            yield
        finally:
            del self._promised[instance_id]

    def _refusal(
        self,
        model: Mapping[str, Any],
        device_id: str,
        options: Mapping[str, Any],
        retry: Mapping[str, Any],
        wanted: int,
        usable: int,
        high: High,
    ) -> ResourceExhausted:
        context, parallel = context_of(model, options), int(options.get("parallel", 1))
        smaller = _smaller(options, context, usable, high)
        figures = {"needed_bytes": wanted, "usable_bytes": usable, "context_length": context, "fitting_context_length": smaller}
        message = (
            f"{model['id']} needs up to {wanted / GIB:.2f} GiB on {device_id} with a context of {context} x {parallel}; "
            f"{usable / GIB:.2f} GiB may be used (what is free, less a reserve of {self._reserve:.0%} and what is promised to other starts)"
        )
        if smaller is None:
            calls = [{"unit": "engine.list", "arguments": {"status": "running"}}]
            return ResourceExhausted(message, hint="no context fits: stop an engine or take a smaller model", next=calls, details=figures)
        arguments = {**retry["arguments"], "options": {**options, "context_length": smaller}}
        call = {"unit": retry["unit"], "arguments": arguments}
        return ResourceExhausted(message, hint=f"a context of {smaller} fits", next=[call], details=figures)

    async def usable_bytes(self, device_id: str) -> int | None:
        """What a start may take there now; None where nobody knows."""
        free = await self._free_bytes(device_id)
        return None if free is None else free - self._promised_on(device_id)

    def _promised_on(self, device_id: str) -> int:
        return sum(promised for device, promised in self._promised.values() if device == device_id)

    async def _free_bytes(self, device_id: str) -> int | None:
        reading = (await self._devices.metrics(device_id, 1))["now"]
        total, used = reading["memory_total_bytes"], reading["memory_used_bytes"]
        return None if total is None or used is None else max(0, int(total * (1 - self._reserve)) - int(used))


def _smaller(options: Mapping[str, Any], context: int, usable: int, high: High) -> int | None:
    """The longest power of two below `context` that fits."""
    tried = 1 << (context - 1).bit_length() - 1
    while tried >= SMALLEST_CONTEXT:
        needed = high({**options, "context_length": tried})
        if needed is not None and needed <= usable:
            return tried
        tried //= 2
    return None
