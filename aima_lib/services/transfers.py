"""Work that many callers ask for at once and that is done once: it belongs to all who wait, and ends when the last one leaves."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import anyio

from aima_lib.errors import AimaError, FailedPrecondition, Unavailable
from aima_lib.infra.progress import Send

Progress = Mapping[str, Any]
Report = Callable[[Progress], None]
Work = Callable[[Report], Awaitable[Any]]


Pauses = Callable[[], bool]


async def nothing_to_clear() -> None:
    """The work leaves nothing behind."""


def never() -> bool:
    """Whoever leaves does not come back."""
    return False


@dataclass(eq=False, slots=True)
class Transfer:
    """One piece of work under way. As a context it catches what the work raised, to hand it to everyone who waits."""

    waiting: int = 0
    paused: bool = False
    latest: Progress | None = None
    result: Any = None
    error: Exception | None = None
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    news: anyio.Event = field(default_factory=anyio.Event)
    done: anyio.Event = field(default_factory=anyio.Event)

    def report(self, item: Progress) -> None:
        """Show how far it is."""
        self.latest = item
        self._wake()

    def finish(self) -> None:
        """No more news."""
        self.done.set()
        self._wake()

    def _wake(self) -> None:
        news, self.news = self.news, anyio.Event()
        news.set()

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if isinstance(error, Exception):  # a cancellation is none: it goes on to the scope
            self.error = error
            return True
        return False


class Transfers:
    """All transfers of a home. They run in the group that `run` opens, so no caller's end is theirs."""

    def __init__(self) -> None:
        self._running: dict[Hashable, Transfer] = {}
        self._group: anyio.abc.TaskGroup | None = None

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Carry transfers until cancelled; what is under way then keeps its partial files for the next host."""
        async with anyio.create_task_group() as group:
            self._group = group
            try:
                task_status.started()
                await anyio.sleep_forever()
            finally:
                self._group = None

    async def join(
        self, key: Hashable, work: Work, send: Send, clear: Callable[[], Awaitable[None]] = nothing_to_clear, pauses: Pauses = never
    ) -> Any:
        """Wait for the work called `key`, starting it when nobody has; returns what it returned.

        `clear` runs after the last waiter left and the work was stopped, unless that one only `pauses`.
        """
        transfer = self._running.get(key)
        while transfer is not None and transfer.scope.cancel_called:  # its last waiter left: let it clear up, then start anew
            await transfer.done.wait()
            transfer = self._running.get(key)
        if transfer is None:
            transfer = self._start(key, work, clear)
        transfer.waiting += 1
        try:
            return await self._follow(transfer, send)
        finally:
            transfer.waiting -= 1
            if not transfer.waiting and not transfer.done.is_set():
                transfer.paused = pauses()
                transfer.scope.cancel()
                with anyio.CancelScope(shield=True):
                    await transfer.done.wait()

    def _start(self, key: Hashable, work: Work, clear: Callable[[], Awaitable[None]]) -> Transfer:
        if self._group is None:
            raise FailedPrecondition("the home's host is not running, so nothing can be fetched", hint="start it with aima serve")
        transfer = self._running[key] = Transfer()
        self._group.start_soon(self._carry, key, transfer, work, clear)
        return transfer

    async def _carry(self, key: Hashable, transfer: Transfer, work: Work, clear: Callable[[], Awaitable[None]]) -> None:
        try:
            with transfer, transfer.scope:
                transfer.result = await work(transfer.report)
            # At the end of the host waiters leave too: then there is nothing to clear, the next host goes on from the parts.
            ending = anyio.current_effective_deadline() == -math.inf
            if transfer.scope.cancelled_caught and not ending:
                transfer.error = Unavailable("the transfer was stopped", hint="ask again")
                with transfer:
                    await (nothing_to_clear if transfer.paused else clear)()
        finally:
            if self._running.get(key) is transfer:
                del self._running[key]
            if transfer.result is None and transfer.error is None:
                transfer.error = Unavailable("the host is ending", hint="ask again: a pull goes on from where it was")
            transfer.finish()

    async def _follow(self, transfer: Transfer, send: Send) -> Any:
        shown: Progress | None = None
        while not transfer.done.is_set():
            news = transfer.news
            if transfer.latest is not None and transfer.latest is not shown:
                shown = transfer.latest
                await send(shown)
            elif not transfer.done.is_set():
                await news.wait()
        if isinstance(transfer.error, AimaError):  # each waiter raises its own copy: a traceback belongs to one task
            error = transfer.error
            raise type(error)(str(error), hint=error.hint, next=error.next, details=error.details)
        if transfer.error is not None:
            raise transfer.error
        return transfer.result
