"""The library's face: every unit as a method, `aima.model.pull(repo=...)`, awaited or not.

Both clients attach to the home's host when there is one and host the home themselves when there is none; with a URL they attach to the
host that answers there.
"""

from __future__ import annotations

import asyncio
import inspect
import keyword
import sqlite3
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, aclosing, asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import anyio
from anyio.abc import TaskGroup
from anyio.from_thread import BlockingPortal, start_blocking_portal

from aima_lib.attached import Attached
from aima_lib.door import Door
from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument
from aima_lib.infra import sql
from aima_lib.infra.home import Home
from aima_lib.infra.progress import Send
from aima_lib.registry import Registry, Unit
from aima_lib.results import Result

if TYPE_CHECKING:
    from aima_lib.gateway import Gateway

_END = object()
WAIT_SECONDS = 45
Work = Callable[[Send], Awaitable[Mapping[str, Any]]]
_OPEN: set[Aima] = set()


def _flow(name: str, **keys: Any) -> Any:
    """Begin a pipeline built from calls, `aima_lib.flows.builder.Flow`: description, input (a JSON Schema) and keys of its config."""
    from aima_lib.flows.builder import flow  # most clients build none

    return flow(name, **keys)


class AsyncAima:
    """Every unit as a coroutine method: `async with AsyncAima() as aima: await aima.model.list()`.

    `home` is the folder to use: AIMA_HOME or ~/.aima when not given. `url` is that of a host elsewhere, instead, and `key` what to show
    there; on this machine it is the owner's when not given. Without `home`, AIMA_URL and AIMA_KEY of the environment stand in for both.
    """

    flow = staticmethod(_flow)

    def __init__(self, home: str | Path | None = None, *, url: str | None = None, key: str | None = None) -> None:
        if home is not None and url is not None:
            raise InvalidArgument("a home and a URL are two places", hint="give one of them")
        self._home = Home(home)
        around = self._home.remote()
        self._url, self._key = url or around[0], key or around[1]
        self._door: Door | None = None
        self._tasks: TaskGroup | None = None
        self._leave = anyio.Event()
        self._life: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        opened = asyncio.Event()
        self._life = asyncio.create_task(self._live(opened), name="aima-client")
        waiting = asyncio.create_task(opened.wait())
        try:
            await asyncio.wait({self._life, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            if not opened.is_set():
                self._life.cancel()
        if self._life.done():
            await self._life  # it did not open: this says why
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leave.set()
        if self._life is not None:
            with anyio.CancelScope(shield=True):
                await self._life

    async def _live(self, opened: asyncio.Event) -> None:
        """Hold the door open in a task of its own: what the caller's block raises stays what it is, and joins no task group of ours."""
        async with _opened(self._home, self._url, self._key) as door, anyio.create_task_group() as tasks:
            self._door, self._tasks = door, tasks
            opened.set()
            await self._leave.wait()
            self._door = None
            tasks.cancel_scope.cancel()

    @property
    def door(self) -> Door:
        """What the methods call. Raises FailedPrecondition outside `async with`."""
        if self._door is None:
            raise FailedPrecondition("this client is not open", hint="use it in a with block")
        return self._door

    async def call(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None, token: str | None = None
    ) -> Mapping[str, Any]:
        """Call a unit by name and return its output. Raises AimaError; ApprovalRequired where it takes its plan's `token`."""
        return Result(await self.door.call(name, arguments, key=idempotency_key, token=token))

    async def start(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None, token: str | None = None
    ) -> Mapping[str, Any]:
        """Start a durable unit and return its run at once; `follow` iterates over what it does."""
        return Result(await self.door.start(name, arguments, key=idempotency_key, token=token))

    async def plan(self, name: str, arguments: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """What a command would change, without doing it."""
        return Result(await self.door.plan(name, arguments))

    async def apply(self, plan: Mapping[str, Any]) -> Mapping[str, Any]:
        """Do what was planned, if it is still the same."""
        return await self.call(plan["unit"], plan["arguments"], token=plan["token"])

    def stream(self, name: str, /, **arguments: Any) -> AsyncStream:
        """Iterate over a call's progress or tokens; `.result` holds its output afterwards. Leaving it ends the call."""
        door = self.door
        return self._streamed(lambda send: door.call(name, arguments, send=send))

    def follow(self, run_id: str) -> AsyncStream:
        """Iterate over a run's progress until it ends; `.result` is the run then. Leaving it leaves the run as it is."""
        door = self.door
        return self._streamed(lambda send: _until_ended(door, run_id, send))

    def _streamed(self, work: Work) -> AsyncStream:
        assert self._tasks is not None
        return AsyncStream(self._tasks, work)

    async def read(self, uri: str) -> Mapping[str, Any]:
        """What is at a resource's URI now."""
        return Result((await self.door.read(uri))["content"])

    def events(self, after: int | None = None, types: tuple[str, ...] = ()) -> AsyncIterator[Mapping[str, Any]]:
        """Events after number `after`, then live ones, as Door.follow has them. It ends, or raises Unavailable, when the host does."""
        return self.door.follow(after, types)

    async def sql(self) -> sqlite3.Connection:
        """A read-only connection to the home's store, for this thread: live where another process hosts it, of a copy where this one does.

        Close it when done. Its table `documents` (kind, id, body as JSON) holds models, services, runs; `events` the log.

        Raises:
            FailedPrecondition: the store is on another machine, or its owner's and the key is not.
        """
        path, ours = _store(self.door)
        if not ours:
            return sql.reading(path)
        with sql.folder() as folder:
            return sql.reading(await anyio.to_thread.run_sync(sql.copy_of, path, folder))

    def __getattr__(self, domain: str) -> _Domain:
        return _domain(self.call, domain)

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *_domains()]


class AsyncStream:
    """The items of one call, as they come."""

    def __init__(self, tasks: TaskGroup, work: Work) -> None:
        self.result: Mapping[str, Any] | None = None
        self._error: AimaError | None = None
        self._scope = anyio.CancelScope()
        self._send, self._items = anyio.create_memory_object_stream[Mapping[str, Any]](64)
        tasks.start_soon(self._run, work)

    async def _run(self, work: Work) -> None:
        async with self._send:
            try:
                with self._scope:
                    self.result = Result(await work(self._send.send))
            except AimaError as error:
                self._error = error

    async def __aiter__(self) -> AsyncIterator[Mapping[str, Any]]:
        try:
            while (item := await self.next()) is not _END:
                yield item
        finally:
            self.leave()

    async def next(self) -> Any:
        """The next item, or _END. Raises the call's error."""
        try:
            return await self._items.receive()
        except anyio.EndOfStream:
            if self._error is not None:
                raise self._error from None
            return _END

    def leave(self) -> None:
        """A reader that leaves early ends the call."""
        self._scope.cancel()
        self._items.close()


class Aima:
    """The same methods, blocking. Safe in a notebook, whose event loop is already running: this one has its own thread.

    `home`, `url` and `key` are AsyncAima's.
    """

    flow = staticmethod(_flow)

    def __init__(self, home: str | Path | None = None, *, url: str | None = None, key: str | None = None) -> None:
        with ExitStack() as opening:  # what was opened is closed again when a later step fails
            self._portal = opening.enter_context(start_blocking_portal())
            self._aima = opening.enter_context(self._portal.wrap_async_context_manager(AsyncAima(home, url=url, key=key)))
            self._stack = opening.pop_all()
        _OPEN.add(self)
        _await_exit()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the host, or stop hosting. A program that ends without it is closed at its end."""
        _OPEN.discard(self)
        self._stack.close()

    def call(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None, token: str | None = None
    ) -> Mapping[str, Any]:
        """Call a unit by name and return its output. Raises AimaError; ApprovalRequired where it takes its plan's `token`."""
        return self._portal.call(lambda: self._aima.call(name, arguments, idempotency_key=idempotency_key, token=token))

    def start(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None, token: str | None = None
    ) -> Mapping[str, Any]:
        """Start a durable unit and return its run at once; `follow` iterates over what it does."""
        return self._portal.call(lambda: self._aima.start(name, arguments, idempotency_key=idempotency_key, token=token))

    def plan(self, name: str, arguments: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """What a command would change, without doing it."""
        return self._portal.call(self._aima.plan, name, arguments)

    def apply(self, plan: Mapping[str, Any]) -> Mapping[str, Any]:
        """Do what was planned, if it is still the same."""
        return self._portal.call(self._aima.apply, plan)

    def stream(self, name: str, /, **arguments: Any) -> Stream:
        """Iterate over a call's progress or tokens; `.result` holds its output afterwards. Leaving it ends the call."""
        return Stream(self._portal, lambda: self._aima.stream(name, **arguments))

    def follow(self, run_id: str) -> Stream:
        """Iterate over a run's progress until it ends; `.result` is the run then. Leaving it leaves the run as it is."""
        return Stream(self._portal, lambda: self._aima.follow(run_id))

    def events(self, after: int | None = None, types: tuple[str, ...] = ()) -> Iterator[Mapping[str, Any]]:
        """Events after number `after`, then live ones, as Door.follow has them. It ends, or raises Unavailable, when the host does."""
        return iter(Stream(self._portal, lambda: self._aima._streamed(lambda send: _passed(self._aima.events(after, types), send))))

    def sql(self) -> sqlite3.Connection:
        """A read-only connection to the home's store, for this thread: live where another process hosts it, of a copy where this one does.

        Close it when done. Its table `documents` (kind, id, body as JSON) holds models, services, runs; `events` the log.

            pandas.read_sql("SELECT id, body ->> 'status' AS status FROM documents WHERE kind = 'model'", aima.sql())

        Raises:
            FailedPrecondition: the store is on another machine, or its owner's and the key is not.
        """
        path, ours = _store(self._aima.door)
        if not ours:
            return sql.reading(path)
        with sql.folder() as folder:
            return sql.reading(sql.copy_of(path, folder))

    def read(self, uri: str) -> Mapping[str, Any]:
        """What is at a resource's URI now."""
        return self._portal.call(self._aima.read, uri)

    def __getattr__(self, domain: str) -> _Domain:
        return _domain(self.call, domain)

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *_domains()]


@cache
def _await_exit() -> None:
    """Close at the program's end what is open: the threads that serve it would keep the program, and `atexit` waits for them."""

    def close() -> None:
        threading.main_thread().join()
        for aima in list(_OPEN):
            aima.close()

    threading.Thread(target=close, name="aima-exit").start()


class Stream:
    """The items of one blocking call, as they come."""

    def __init__(self, portal: BlockingPortal, begin: Callable[[], AsyncStream]) -> None:
        self.result: Mapping[str, Any] | None = None
        self._portal, self._begin = portal, begin

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        stream = self._portal.call(self._begin)
        try:
            while (item := self._next(stream)) is not _END:
                yield item
            self.result = stream.result
        finally:
            with suppress(RuntimeError):  # the client was closed meanwhile, and the call with it
                self._portal.call(stream.leave)

    def _next(self, stream: AsyncStream) -> Any:
        future = self._portal.start_task_soon(stream.next)
        try:
            return future.result()
        finally:
            future.cancel()  # at Ctrl-C somebody still waits there


async def _until_ended(door: Door, run_id: str, send: Send) -> Mapping[str, Any]:
    """Wait for a run, by calls that no proxy takes for dead; the run."""
    told: Mapping[str, Any] | None = None

    async def news(item: Mapping[str, Any]) -> None:
        nonlocal told
        if item != told:  # each wait begins with the newest item
            told = item
            await send(item)

    while True:
        waited = await door.call("run.wait", {"run_id": run_id, "timeout_seconds": WAIT_SECONDS}, send=news)
        run: Mapping[str, Any] = waited["run"]
        if run["status"] != "running":
            return run


async def _passed(items: AsyncIterator[Mapping[str, Any]], send: Send) -> Mapping[str, Any]:
    async with aclosing(cast("AsyncGenerator[Mapping[str, Any]]", items)) as open_:
        async for item in open_:
            await send(item)
    return {}


def _store(door: Door) -> tuple[Path, bool]:
    """The store's file, and whether this process is the one that hosts it."""
    if not isinstance(door, Attached):
        return cast("Gateway", door).services.store.path, True
    if door.store is None:
        hint = "open the home itself, as its owner, on the machine that it is on"
        raise FailedPrecondition(
            "SQL reads the file that the host keeps, which is not to be had by URL or with a key of one's own", hint=hint
        )
    return door.store, False


class _Domain:
    """The units of one domain, as methods."""

    def __init__(self, call: Callable[..., Any], units: list[Unit]) -> None:
        for unit in units:
            name = f"{unit.action}_" if keyword.iskeyword(unit.action) else unit.action  # aima.model.import_
            setattr(self, name, _method(call, unit))


@cache
def _described() -> Registry:
    return Registry.described()


def _domains() -> set[str]:
    return {unit.domain for unit in _described().of("command", "query")}


def _domain(call: Callable[..., Any], domain: str) -> _Domain:
    units = [unit for unit in _described().of("command", "query") if unit.domain == domain]
    if domain.startswith("_") or not units:
        raise AttributeError(f"AIMA has no domain called {domain!r}")
    return _Domain(call, units)


def _method(call: Callable[..., Any], unit: Unit) -> Any:
    def method(**arguments: Any) -> Any:
        own = {} if "token" in schema["properties"] else {"token": arguments.pop("token", None)}
        return call(unit.name, arguments, idempotency_key=arguments.pop("idempotency_key", None), **own)

    schema = unit.definition["inputSchema"]
    required = schema.get("required", [])
    method.__name__ = unit.action
    method.__qualname__ = unit.name
    method.__doc__ = f"{unit.definition['description']}\n\n" + "\n".join(
        f"{key}: {spec['description']}" for key, spec in schema["properties"].items()
    )
    method.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                key, inspect.Parameter.KEYWORD_ONLY, default=inspect.Parameter.empty if key in required else spec.get("default")
            )
            for key, spec in sorted(schema["properties"].items(), key=lambda item: item[0] not in required)
        ]
        + [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in _beside(unit)]
    )
    return method


def _beside(unit: Unit) -> list[str]:
    """What a method takes beside its unit's properties."""
    taken = unit.definition["inputSchema"]["properties"]
    token = ["token"] if unit.kind == "command" and "token" not in taken else []
    return (["idempotency_key"] if unit.durable else []) + token


@asynccontextmanager
async def _opened(home: Home, url: str | None, key: str | None) -> AsyncIterator[Door]:
    if url is None:
        async with _at_home(home, key) as door:
            yield door
        return
    attached = Attached(url, key)
    try:
        yield attached
    finally:
        await attached.close()


@asynccontextmanager
async def _at_home(home: Home, key: str | None) -> AsyncIterator[Door]:
    found = home.host()
    if found is None:
        if key is not None:
            raise FailedPrecondition(f"no host runs for {home.path}, and only a host knows whose key that is", hint="aima start")
        from aima_lib.runtime import host  # an attached client needs none of what hosting imports

        async with host(home) as gateway:
            yield gateway
        return
    if found.url is None:
        raise FailedPrecondition(
            f"{home.path} is hosted by process {found.pid}, which does not listen",
            hint="close the program that embeds it, or run `aima start` before it next time",
            details={"pid": found.pid},
        )
    attached = Attached(found.url, key, home)
    try:
        yield attached
    finally:
        await attached.close()
