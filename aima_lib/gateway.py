"""How a unit is called: the one door every face goes through.

Find the unit, check the caller's scope, validate the input, run the handler under a deadline, validate the output, record what
happened. Durable units are handed to `runs`, which calls back for the handler.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import anyio

from aima_lib.door import OWNER, Caller
from aima_lib.errors import AimaError, DeadlineExceeded, FailedPrecondition, Internal, InvalidArgument, NotFound
from aima_lib.infra.clock import now
from aima_lib.infra.progress import Send, silent
from aima_lib.names import did_you_mean, nearest
from aima_lib.registry import Registry, Unit, whole
from aima_lib.runs import Runs, outcome_of
from aima_lib.services import Services

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Context:
    """What a handler may touch. Passed first to every handler."""

    gateway: Gateway
    caller: Caller
    send: Send = silent
    streams: bool = False
    run_id: str | None = None

    @property
    def services(self) -> Services:
        return self.gateway.services

    @property
    def registry(self) -> Registry:
        return self.gateway.registry

    @property
    def runs(self) -> Runs:
        return self.gateway.runs

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call another unit as the same caller."""
        return await self.gateway.call(name, arguments, caller=self.caller, send=self.send if self.streams else None)


class Gateway:
    """The door of the process that hosts a home."""

    def __init__(self, registry: Registry, services: Services, runs: Runs) -> None:
        self.registry, self.services, self.runs = registry, services, runs
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.seconds: Counter[str] = Counter()
        self._callable = {unit.name: unit for unit in registry.of("command", "query")}

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        caller: Caller = OWNER,
        send: Send | None = None,
        key: str | None = None,
    ) -> Mapping[str, Any]:
        """See Door.call."""
        unit, given = self._checked(name, arguments, caller)
        if not unit.durable:
            return await self._recorded(unit, given, caller, send, None)
        run = await self.runs.start(unit, given, caller, key)
        pass_on = send or silent
        await pass_on({"phase": "started", "message": f"run {run['id']}", "completed": None, "total": None})
        return outcome_of(await self.runs.follow(run["id"], pass_on))

    async def start(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, caller: Caller = OWNER, key: str | None = None
    ) -> Mapping[str, Any]:
        """See Door.start."""
        unit, given = self._checked(name, arguments, caller)
        if not unit.durable:
            raise FailedPrecondition(f"{name} is not a run: its result comes at once", hint="call it")
        return await self.runs.start(unit, given, caller, key)

    async def execute(self, unit: Unit, arguments: Mapping[str, Any], caller: Caller, run_id: str, send: Send) -> Mapping[str, Any]:
        """Run a durable unit's handler. For `runs`; everyone else uses `call`."""
        return await self._recorded(unit, arguments, caller, send, run_id)

    async def read(self, uri: str, *, caller: Caller = OWNER) -> Mapping[str, Any]:
        """See Door.read."""
        found = self.registry.resource(uri)
        if found is None:
            known = [unit.definition["uriTemplate"] for unit in self.registry.of("resource")]
            raise NotFound(f"no resource at {uri!r}", hint=did_you_mean(uri, known) or f"there are: {', '.join(known)}")
        unit, variables = found
        self._refuse_caller(unit, caller)
        content = await self._recorded(unit, variables, caller, None, None)
        return {"uri": uri, "mimeType": unit.definition["mimeType"], "content": content}

    def follow(self, after: int | None = None, types: Collection[str] = (), *, caller: Caller = OWNER) -> AsyncIterator[Mapping[str, Any]]:
        """See Door.follow."""
        self.services.keys.refuse_revoked(caller)
        caller.need("read", "events")
        known = {unit.name for unit in self.registry.of("event")}
        known |= {f"{name.partition('.')[0]}.*" for name in known}
        for name in types:
            if name not in known:
                raise InvalidArgument(f"no event called {name!r}", hint=did_you_mean(name, known))
        return self.services.events.follow(after, types)

    def find(self, name: str) -> Unit:
        """The command or query called `name`. Raises NotFound naming the nearest."""
        if unit := self._callable.get(name):
            return unit
        close = nearest(name, self._callable)
        call = {"unit": "unit.search", "arguments": {"query": name[:100].replace(".", " ").replace("_", " ").strip() or "list"}}
        raise NotFound(f"no unit called {name!r}", hint=did_you_mean(name, self._callable), next=[call], details={"nearest": close})

    def allow(self, name: str, caller: Caller, arguments: Mapping[str, Any]) -> Unit:
        """The unit, if the caller may use it with these arguments. For faces that stream past `call`."""
        unit = self.find(name)
        self._refuse_caller(unit, caller)
        self._refuse_model(unit, caller, arguments)
        return unit

    def _checked(self, name: str, arguments: Mapping[str, Any] | None, caller: Caller) -> tuple[Unit, Mapping[str, Any]]:
        unit = self.find(name)
        given = {} if arguments is None else arguments
        try:
            self._refuse_caller(unit, caller)
            if error := "not an object" if not isinstance(given, Mapping) else unit.input.first_error(given):
                describe = {"unit": "unit.describe", "arguments": {"name": name}}
                raise InvalidArgument(f"{name}: {error}", hint=_hint(unit, given), next=[describe])
            self._refuse_model(unit, caller, given)
        except AimaError as refusal:
            self.outcomes[unit.name, refusal.code] += 1
            raise
        return unit, whole(given)

    def _refuse_caller(self, unit: Unit, caller: Caller) -> None:
        self.services.keys.refuse_revoked(caller)
        caller.need(unit.definition["scope"], unit.name)

    def _refuse_model(self, unit: Unit, caller: Caller, given: Mapping[str, Any]) -> None:
        """Whatever asks a model is held to the caller's models here, so that no unit can forget it."""
        if caller.models is None or unit.definition["scope"] != "inference" or "model" not in unit.definition["inputSchema"]["properties"]:
            return
        self.services.inference.refuse_model(given.get("model"), caller)

    async def _recorded(
        self, unit: Unit, arguments: Mapping[str, Any], caller: Caller, send: Send | None, run_id: str | None
    ) -> Mapping[str, Any]:
        began, code = time.monotonic(), "cancelled"
        try:
            result = await self._run(unit, arguments, caller, send, run_id)
            code = "ok"
            return result
        except AimaError as error:
            code = error.code
            raise
        finally:
            took = time.monotonic() - began
            self.outcomes[unit.name, code] += 1
            self.seconds[unit.name] += took  # type: ignore[assignment]
            if unit.kind == "command":
                self._log_call(unit, caller, code, took, run_id)

    async def _run(
        self, unit: Unit, arguments: Mapping[str, Any], caller: Caller, send: Send | None, run_id: str | None
    ) -> Mapping[str, Any]:
        assert unit.handler is not None
        context = Context(self, caller, _shaped(unit, send), send is not None, run_id)
        limit = None if unit.durable else self._limit(unit)
        try:
            with anyio.fail_after(limit) as scope, self.services.keys.holding(caller, scope):
                result = await unit.handler(context, **arguments)
            if scope.cancelled_caught:
                raise self.services.keys.ended(caller)
        except AimaError:
            raise
        except TimeoutError as error:
            raise DeadlineExceeded(f"{unit.name} took longer than {limit} s", hint="calls.* in config.toml sets the deadline") from error
        except Exception as error:  # a bug of ours: the log gets it whole, the caller gets its kind and nothing from inside
            log.exception("%s failed", unit.name)
            raise Internal(
                f"{unit.name} failed: {type(error).__name__}", hint="this is a bug in AIMA; the host's log has the trace"
            ) from error
        if error_text := unit.output.first_error(result):
            raise Internal(f"{unit.name} broke its own schema: {error_text}")
        return result

    def _limit(self, unit: Unit) -> float:
        return float(self.services.config["calls"]["command_timeout_seconds" if unit.kind == "command" else "query_timeout_seconds"])

    def _log_call(self, unit: Unit, caller: Caller, code: str, took: float, run_id: str | None) -> None:
        row = (now(), unit.name, caller.name, code, round(took * 1000, 3), run_id)
        sql = "INSERT INTO calls (time, unit, caller, code, duration_ms, run_id) VALUES (?, ?, ?, ?, ?, ?)"
        self.services.store.submit(lambda db: db.execute(sql, row))


def _shaped(unit: Unit, send: Send | None) -> Send:
    if send is None:
        return silent
    judge = unit.stream

    async def checked(item: Mapping[str, Any]) -> None:
        if judge is None or (error := judge.first_error(item)):
            raise Internal(f"{unit.name} sent what its streamSchema does not allow: {'it has none' if judge is None else error}")
        await send(item)

    return checked


def _hint(unit: Unit, given: Any) -> str:
    known = unit.definition["inputSchema"]["properties"]
    for key in given if isinstance(given, Mapping) else ():
        if key not in known:
            return did_you_mean(str(key), known) or f"it takes: {', '.join(known) or 'nothing'}"
    required = unit.definition["inputSchema"].get("required", [])
    return f"it needs: {', '.join(required)}" if required else f"it takes: {', '.join(known) or 'nothing'}"
