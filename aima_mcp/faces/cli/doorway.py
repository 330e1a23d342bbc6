"""How the command line gets in: through the host, by becoming the host for a moment, or by starting one that stays.

AIMA_URL leads to a host elsewhere, AIMA_KEY is shown instead of the owner's key; --home overrules both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio

from aima_lib.door import Door
from aima_lib.errors import AimaError
from aima_lib.infra.home import Home
from aima_mcp import background

Result = TypeVar("Result")


def through(home: Home, work: Callable[[Door], Awaitable[Result]], *, needs_host: bool, agent: bool = False) -> Result:
    """Open the home's door, do the work behind it, close it.

    needs_host: the work goes on after this process has ended, so there must be a host that stays.
    agent: the work is an agent's, whose key ever it shows.

    Raises:
        AimaError: the host could not be reached or started, or the work failed.
    """
    url, key = home.remote()
    if url is not None:
        return anyio.run(_through, None, url, key, agent, work)
    host = background.living(home)
    if host is None and (needs_host or key is not None):  # only a host knows whose key that is
        host = background.start(home)
    return anyio.run(_through, home, host.url if host else None, key, agent, work)


async def _through(home: Home | None, url: str | None, key: str | None, agent: bool, work: Callable[[Door], Awaitable[Result]]) -> Result:
    failure: AimaError
    try:
        async with _opened(home, url, key, agent) as door:
            try:
                return await work(door)
            except AimaError as error:
                failure = error  # raised only outside: the host's task groups would wrap it
    except BaseExceptionGroup as group:
        raise lone(group) from None
    raise failure


@asynccontextmanager
async def _opened(home: Home | None, url: str | None, key: str | None, agent: bool) -> AsyncIterator[Door]:
    if url is None:
        from aima_lib.runtime import host as hosting

        assert home is not None

        async with hosting(home, passing=True) as gateway:
            yield gateway
        return
    from aima_lib.attached import Attached

    attached = Attached(url, key, home, agent=agent)
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
