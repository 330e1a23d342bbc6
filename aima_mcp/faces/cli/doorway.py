"""How the command line gets in: through the host, by becoming the host for a moment, or by starting one that stays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio

from aima_lib.door import Door
from aima_lib.errors import AimaError
from aima_lib.infra.home import Home, Host
from aima_mcp import background

Result = TypeVar("Result")


def through(home: Home, work: Callable[[Door], Awaitable[Result]], *, needs_host: bool) -> Result:
    """Open the home's door, do the work behind it, close it.

    needs_host: the work goes on after this process has ended, so there must be a host that stays.

    Raises:
        AimaError: the host could not be reached or started, or the work failed.
    """
    host = background.living(home)
    if host is None and needs_host:
        host = background.start(home)
    return anyio.run(_through, home, host, work)


async def _through(home: Home, host: Host | None, work: Callable[[Door], Awaitable[Result]]) -> Result:
    failure: AimaError
    try:
        async with _opened(home, host) as door:
            try:
                return await work(door)
            except AimaError as error:
                failure = error  # raised only outside: the host's task groups would wrap it
    except BaseExceptionGroup as group:
        raise lone(group) from None
    raise failure


@asynccontextmanager
async def _opened(home: Home, host: Host | None) -> AsyncIterator[Door]:
    if host is None:
        from aima_lib.runtime import host as hosting

        async with hosting(home, passing=True) as gateway:
            yield gateway
        return
    from aima_lib.attached import Attached

    attached = Attached(home, host)
    try:
        yield attached
    finally:
        await attached.close()


def lone(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of ours inside a task group's, else the first."""
    ours, _ = group.split(AimaError)
    leaf: BaseException = ours or group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    return leaf
