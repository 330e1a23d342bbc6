"""Whether a model fits before it is started: the upper edge of its estimate against what the books of memory leave for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from aima_lib.engines.base import context_of
from aima_lib.errors import ResourceExhausted
from aima_lib.services.books import GIB, Account, Books
from aima_lib.services.device import DeviceService
from aima_lib.services.measurements import Measurements

SMALLEST_CONTEXT = 512
# The upper edge of a start with these options.
High = Callable[[Mapping[str, Any]], int | None]


class Admission:
    """Keeps a reserve of each device's memory free of engines, and engines within the owner's limit."""

    def __init__(self, books: Books, devices: DeviceService, measurements: Measurements) -> None:
        self._books, self._devices, self._measurements = books, devices, measurements

    @asynccontextmanager
    async def admitted(
        self,
        instance_id: str,
        model: Mapping[str, Any],
        engine: tuple[str, str | None],
        device_id: str,
        options: Mapping[str, Any],
        retry: Mapping[str, Any],
        priority: int,
    ) -> AsyncIterator[int | None]:
        """Let a start through, or refuse it with the figures and a context that would fit. Yields the most it may take; None: unknown.

        `engine` is its name and version, `retry` the call that asks for the start. Slots that are preemptible, of no higher priority, give
        way to it.

        While the block lasts its memory is promised: a second start sees it as taken, though the engine has not touched it yet.

        Raises:
            ResourceExhausted: the upper edge of the estimate is more than what is free, less the reserve, slots and what is promised; or
            more than the owner's limit leaves.
        """
        device = self._devices.device(device_id)

        def high(options: Mapping[str, Any]) -> int | None:
            return self._measurements.high_bytes(model, *engine, device, options)

        wanted = high(options)
        with ExitStack() as promised:
            async with self._books.lock(device_id):
                account = await self._books.asked(device_id, wanted or 0, priority, but=instance_id)
                room = account.room(priority)
                if room is not None and wanted is not None:  # what cannot be known cannot be refused; the engine itself will say
                    if wanted > room:
                        raise self._refusal(model, account, options, retry, wanted, max(0, room), priority, high)
                    for slot in account.giving_way(wanted, priority):
                        await self._books.slots.drop(slot, instance_id)
                promised.enter_context(self._books.promise(instance_id, device_id, wanted))
            yield wanted

    def _refusal(
        self,
        model: Mapping[str, Any],
        account: Account,
        options: Mapping[str, Any],
        retry: Mapping[str, Any],
        wanted: int,
        usable: int,
        priority: int,
        high: High,
    ) -> ResourceExhausted:
        context, parallel = context_of(model, options), int(options.get("parallel", 1))
        smaller = _smaller(options, context, usable, high)
        figures = {
            "needed_bytes": wanted,
            "usable_bytes": usable,
            "device_id": account.device_id,
            "context_length": context,
            "fitting_context_length": smaller,
        }
        message = (
            f"{model['id']} needs up to {wanted / GIB:.3f} GiB on {account.device_id} with a context of {context} x {parallel}; "
            f"{usable / GIB:.3f} GiB may be used ({self._books.why(account, priority)})"
        )
        raise_limit = account.is_bound_by_limit(priority)
        more = ", or raise engines.memory_limit_gib of config.toml" if raise_limit else ""
        if smaller is None:
            calls = [{"unit": "engine.list", "arguments": {"status": "running"}}, {"unit": "resource.allocations", "arguments": {}}]
            hint = f"no context fits: stop an engine, release a slot or take a smaller model{more}"
            return ResourceExhausted(message, hint=hint, next=calls, details=figures)
        arguments = {**retry["arguments"], "options": {**options, "context_length": smaller}}
        call = {"unit": retry["unit"], "arguments": arguments}
        return ResourceExhausted(message, hint=f"a context of {smaller} fits{more}", next=[call], details=figures)


def _smaller(options: Mapping[str, Any], context: int, usable: int, high: High) -> int | None:
    """The longest power of two below `context` that fits."""
    tried = 1 << (context - 1).bit_length() - 1
    while tried >= SMALLEST_CONTEXT:
        needed = high({**options, "context_length": tried})
        if needed is not None and needed <= usable:
            return tried
        tried //= 2
    return None
