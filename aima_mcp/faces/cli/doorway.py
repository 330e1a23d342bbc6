"""How the command line gets in: through the host, by becoming the host for a moment, or by starting one that stays.

AIMA_URL leads to a host elsewhere, AIMA_KEY is shown instead of the owner's key; --home overrules both.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from aima_lib.door import Door
from aima_lib.errors import AimaError
from aima_lib.infra.home import Home
from aima_lib.infra.stream import Connect, blocking, driven
from aima_mcp import background

Result = TypeVar("Result")
Work = Callable[[Door], Coroutine[Any, Any, Result]]


def through(home: Home, work: Work[Result], *, needs_host: bool | Callable[[], bool], plain: bool = False, agent: bool = False) -> Result:
    """Open the home's door, do the work behind it, close it.

    needs_host: the work goes on after this process has ended, so there must be a host that stays. Asked only when there is none.
    plain: the work awaits the door and nothing else, so with a host it is done without an event loop, whose import takes longer than
        most calls.
    agent: the work is an agent's, whose key ever it shows.

    Raises:
        AimaError: the host could not be reached or started, or the work failed.
    """
    url, key = home.remote()
    if url is not None:
        return _attached(None, url, key, work, plain, agent)
    host = background.living(home)
    if host is None and (key is not None or (needs_host if isinstance(needs_host, bool) else needs_host())):
        host = background.start(home)  # a key of one's own needs one too: only a host knows whose it is
    if host is None:
        import anyio

        return anyio.run(_hosting, home, work)
    assert host.url is not None
    return _attached(home, host.url, key, work, plain, agent)


def _attached(home: Home | None, url: str, key: str | None, work: Work[Result], plain: bool, agent: bool) -> Result:
    if plain:
        return driven(_at(home, url, key, work, blocking(), agent))
    import anyio

    return anyio.run(_at, home, url, key, work, None, agent)


async def _at(home: Home | None, url: str, key: str | None, work: Work[Result], connect: Connect | None, agent: bool) -> Result:
    from aima_lib.attached import Attached

    attached = Attached(url, key, home, connect=connect, agent=agent)
    try:
        return await work(attached)
    finally:
        await attached.close()


async def _hosting(home: Home, work: Work[Result]) -> Result:
    from aima_lib.runtime import host

    failure: AimaError
    try:
        async with host(home, passing=True) as gateway:
            try:
                return await work(gateway)
            except AimaError as error:
                failure = error  # raised only outside: the host's task groups would wrap it
    except BaseExceptionGroup as group:
        raise lone(group) from None
    raise failure


def lone(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of ours inside a task group's, else the first."""
    ours, _ = group.split(AimaError)
    leaf: BaseException = ours or group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    return leaf
