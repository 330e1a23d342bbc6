"""How a unit is called: the one door every face goes through.

Find the unit, check the caller's scope, validate the input, ask the policy, write down what is about to be done, run the handler under
a deadline, validate the output, write down what came of it. Durable units are handed to `runs`, which calls back for the handler.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio

from aima_lib.door import OWNER, Caller
from aima_lib.errors import (
    AimaError,
    ApprovalRequired,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from aima_lib.infra import lineage, trace
from aima_lib.infra.change import Change
from aima_lib.infra.progress import Send, silent
from aima_lib.names import did_you_mean, nearest
from aima_lib.policy import Policy
from aima_lib.redact import redacted
from aima_lib.registry import Registry, Unit, whole
from aima_lib.runs import Runs, outcome_of
from aima_lib.services import Services

T = TypeVar("T")
PASSES_ON = "unit.call"  # what it does is another unit's doing, and written down as that
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Context:
    """What a handler may touch. Passed first to every handler."""

    gateway: Gateway
    caller: Caller
    send: Send = silent
    streams: bool = False
    run_id: str | None = None
    key: str | None = None

    @property
    def services(self) -> Services:
        return self.gateway.services

    @property
    def registry(self) -> Registry:
        return self.gateway.registry

    @property
    def runs(self) -> Runs:
        return self.gateway.runs

    async def call(self, name: str, arguments: Mapping[str, Any], token: str | None = None) -> Mapping[str, Any]:
        """Call another unit as the same caller."""
        send = self.send if self.streams else None
        return await self.gateway.call(name, arguments, caller=self.caller, send=send, key=self.key, token=token, parent=self.run_id)


class Gateway:
    """The door of the process that hosts a home."""

    def __init__(self, registry: Registry, services: Services, runs: Runs) -> None:
        self.registry, self.services, self.runs = registry, services, runs
        self.policy = Policy(services.config["policy"], registry)
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
        token: str | None = None,
        parent: str | None = None,
    ) -> Mapping[str, Any]:
        """See Door.call. `parent`: the run that this call is part of; the audit log has it, and a run that it starts."""
        with lineage.within(lineage.call_id()), self.traced(name, caller):
            return await self._call(name, arguments, caller, send, key, token, parent)

    async def _call(
        self,
        name: str,
        arguments: Mapping[str, Any] | None,
        caller: Caller,
        send: Send | None,
        key: str | None,
        token: str | None,
        parent: str | None,
    ) -> Mapping[str, Any]:
        unit, given = self._checked(name, arguments, caller)
        if key is not None and (refusal := _refused_key(unit)):
            self._note_refusal(unit, caller, given, refusal)
            raise refusal
        plan_id = await self._permitted(unit, given, caller, token)
        if not unit.durable:
            return await self._recorded(unit, given, caller, send, parent, plan_id, key)
        waits = given.get("wait", True)
        run = await self.runs.start(unit, _asked(given), caller, key, plan_id, parent)
        if not waits:
            known = {"run_id": run["id"], "status": run["status"]}
            return dict.fromkeys(unit.definition["outputSchema"]["required"]) | known
        pass_on = send or silent
        await pass_on({"phase": "started", "message": f"run {run['id']}", "completed": None, "total": None})
        run = await self.runs.follow(run["id"], pass_on)
        if run["status"] == "running" and self.services.freeze.record is not None:
            raise self.services.freeze.refusal(f"run {run['id']} goes on when it is thawed; until then {name}")
        return outcome_of(run)

    async def start(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        caller: Caller = OWNER,
        key: str | None = None,
        token: str | None = None,
    ) -> Mapping[str, Any]:
        """See Door.start."""
        with lineage.within(lineage.call_id()), self.traced(name, caller):
            unit, given = self._checked(name, arguments, caller)
            if not unit.durable:
                raise FailedPrecondition(f"{name} is not a run: its result comes at once", hint="call it")
            plan_id = await self._permitted(unit, given, caller, token)
            return await self.runs.start(unit, _asked(given), caller, key, plan_id)

    async def plan(self, name: str, arguments: Mapping[str, Any] | None = None, *, caller: Caller = OWNER) -> Mapping[str, Any]:
        """See Door.plan."""
        with lineage.within(lineage.call_id()), self.traced(name, caller):
            unit, given = self._checked(name, arguments, caller)
            if unit.kind != "command":
                raise FailedPrecondition(f"{name} changes nothing: there is nothing to plan", hint="call it")
            level = self._level(unit, caller)
            return await self._proposed(unit, given, caller, level, await self.foresee(unit, given, caller))

    def asks(self, unit: Unit, caller: Caller) -> bool:
        """Whether a call of this unit takes a plan's token."""
        return self.policy.level(unit, caller) in ("plan", "approve")

    async def request(self, name: str, arguments: Mapping[str, Any], *, caller: Caller, run_id: str) -> Mapping[str, Any]:
        """The plan of a call that a run pauses before, for somebody else to approve, whatever the policy asks of it."""
        unit, given = self._checked(name, arguments, caller)
        self._level(unit, caller)
        change = await self.foresee(unit, given, caller) if unit.kind == "command" else Change()
        return await self._proposed(unit, given, caller, "approve", change, run_id)

    async def foreseen(self, name: str, arguments: Mapping[str, Any] | None, caller: Caller) -> Change:
        """What calling a unit would change; a query nothing. Raises as `call`, for what can be known before it is done."""
        unit, given = self._checked(name, arguments, caller)
        return await self.foresee(unit, given, caller) if unit.kind == "command" else Change()

    async def foresee(self, unit: Unit, arguments: Mapping[str, Any], caller: Caller) -> Change:
        """What a command would change now. Raises what the call itself would, as far as that is known before."""
        planner = unit.planner
        assert planner is not None
        context = Context(self, caller)
        limit = float(self.services.config["calls"]["query_timeout_seconds"])
        change: Change = await self._guarded(unit, caller, limit, lambda: planner(context, arguments))
        return change

    async def execute(self, unit: Unit, arguments: Mapping[str, Any], caller: Caller, run_id: str, send: Send) -> Mapping[str, Any]:
        """Run a durable unit's handler. For `runs`; everyone else uses `call`."""
        with self.traced(unit.name, caller, run_id):
            return await self._recorded(unit, arguments, caller, send, run_id, self.runs.get(run_id).get("plan_id"))

    def traced(self, name: str, caller: Caller, run_id: str | None = None) -> AbstractContextManager[None]:
        """A span around a call, or around the run it began, where spans are made. For faces that stream past `call`, too."""
        return nullcontext() if self.services.tracer is None else self._span(name, caller, run_id)

    @contextmanager
    def _span(self, name: str, caller: Caller, run_id: str | None) -> Iterator[None]:
        known = name if name in self._callable else "unknown unit"
        title, whole = f"run {known}" if run_id else known, lineage.ids()[0]
        with (
            trace.traced(self.services.tracer),
            trace.span(title, aima__unit=known, aima__caller=caller.name, aima__run_id=run_id, aima__correlation_id=whole),
        ):
            yield

    async def read(self, uri: str, *, caller: Caller = OWNER, again: bool = False) -> Mapping[str, Any]:
        """See Door.read. `again`: for a watch under way, which was one request when it began."""
        found = self.registry.resource(uri)
        if found is None:
            known = [unit.definition["uriTemplate"] for unit in self.registry.of("resource")]
            raise NotFound(f"no resource at {uri!r}", hint=did_you_mean(uri, known) or f"there are: {', '.join(known)}")
        unit, variables = found
        try:
            self._refuse_caller(unit, caller)
            if not again:
                self.services.allowance.admit(caller, unit)
        except AimaError as refusal:
            self._note_refusal(unit, caller, variables, refusal)
            raise
        content = await self._recorded(unit, variables, caller, None, None)
        return {"uri": uri, "mimeType": unit.definition["mimeType"], "content": content}

    def follow(self, after: int | None = None, types: Collection[str] = (), *, caller: Caller = OWNER) -> AsyncIterator[Mapping[str, Any]]:
        """See Door.follow."""
        self._refuse_types(types, caller)
        return self.services.events.follow(after, types)

    def pages(
        self, after: int | None = None, types: Collection[str] = (), *, caller: Caller = OWNER
    ) -> AsyncIterator[Sequence[Mapping[str, Any]]]:
        """What `follow` gives, as many at a time as are there. For faces that write them together."""
        self._refuse_types(types, caller)
        return self.services.events.pages(after, types)

    def _refuse_types(self, types: Collection[str], caller: Caller) -> None:
        self.services.keys.refuse_revoked(caller)
        caller.need("read", "events")
        known = {unit.name for unit in self.registry.of("event")}
        known |= {f"{name.partition('.')[0]}.*" for name in known}
        for name in types:
            if name not in known:
                raise InvalidArgument(f"no event called {name!r}", hint=did_you_mean(name, known))

    def find(self, name: str) -> Unit:
        """The command or query called `name`. Raises NotFound naming the nearest."""
        if unit := self._callable.get(name):
            return unit
        close = nearest(name, self._callable)
        words = "".join(sign if sign.isalnum() else " " for sign in name[:100]).split()
        call = {"unit": "unit.search", "arguments": {"query": " ".join(words) or "list"}}
        raise NotFound(f"no unit called {name!r}", hint=did_you_mean(name, self._callable), next=[call], details={"nearest": close})

    def allow(self, name: str, caller: Caller, arguments: Mapping[str, Any]) -> Unit:
        """The unit, if the caller may use it with these arguments. For faces that stream past `call`."""
        unit = self.find(name)
        try:
            self._refuse_caller(unit, caller)
            self._refuse_model(unit, caller, arguments)
            self.services.allowance.admit(caller, unit)
            if self._level(unit, caller) != "auto":
                path = f"/units/{name.replace('.', '/')}"
                raise ApprovalRequired(f"{name} needs a plan's token, which this path does not take", hint=f"use POST {path}")
        except AimaError as refusal:
            self._note_refusal(unit, caller, arguments, refusal)
            raise
        return unit

    def allow_again(self, unit: Unit, caller: Caller, arguments: Mapping[str, Any]) -> None:
        """As `allow`, where that was let through before and nothing it went by has changed since: all but what has an end is known."""
        try:
            self.services.freeze.refuse(unit)
            self.services.allowance.admit(caller, unit)
        except AimaError as refusal:
            self._note_refusal(unit, caller, arguments, refusal)
            raise

    def _checked(self, name: str, arguments: Mapping[str, Any] | None, caller: Caller) -> tuple[Unit, Mapping[str, Any]]:
        unit = self.find(name)
        given = {} if arguments is None else arguments
        try:
            self._refuse_caller(unit, caller)
            if error := "not an object" if not isinstance(given, Mapping) else unit.input.first_error(given):
                hint, calls = _mending(unit, given, error)
                raise InvalidArgument(f"{name}: {error}", hint=hint, next=calls)
            self._refuse_model(unit, caller, given)
            self.services.allowance.admit(caller, unit)
        except AimaError as refusal:
            self._note_refusal(unit, caller, given, refusal)
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

    # Plan, approve, apply

    def _level(self, unit: Unit, caller: Caller) -> str:
        """What the policy asks of this call. Raises when it is done by nobody, or not now."""
        self.services.freeze.refuse(unit)
        level = self.policy.level(unit, caller)
        if level == "deny":
            raise PermissionDenied(f"{unit.name} is denied here, to everyone", hint="[policy] in config.toml says so")
        return level

    async def _permitted(self, unit: Unit, given: Mapping[str, Any], caller: Caller, token: str | None) -> str | None:
        """The id of the plan that lets the call pass, or None where it needs none.

        Raises:
            ApprovalRequired: it needs one and has none that fits; the plan of this call is in its details.
        """
        try:
            level = self._level(unit, caller)
            if unit.kind == "query" or (level != "approve" and _only_looks(unit, given)):
                return None
            if level == "auto" and token is None:
                self.services.allowance.delete(caller, unit)
                return None
            change, why = await self.foresee(unit, given, caller), None
            if token is not None:
                why = await self.services.approvals.take(token, unit.name, given, caller, level, change)
                if why is None:
                    self.services.allowance.delete(caller, unit)
                    return token.partition(".")[0]
            plan = await self._proposed(unit, given, caller, level, change)
            raise _needs(plan, given, why)
        except AimaError as refusal:
            self._note_refusal(unit, caller, given, refusal)
            raise

    async def _proposed(
        self, unit: Unit, given: Mapping[str, Any], caller: Caller, level: str, change: Change, run_id: str | None = None
    ) -> Mapping[str, Any]:
        plan = await self.services.approvals.propose(unit.name, given, _told(unit, given), caller, level, change, run_id)
        return plan | {"usual_seconds": self.services.audit.usual_seconds(unit.name)}

    # Doing it

    async def _recorded(
        self,
        unit: Unit,
        arguments: Mapping[str, Any],
        caller: Caller,
        send: Send | None,
        run_id: str | None,
        plan_id: str | None = None,
        key: str | None = None,
    ) -> Mapping[str, Any]:
        began, code, intent = time.monotonic(), "cancelled", None
        written = unit.kind == "command" and unit.name != PASSES_ON
        told = _told(unit, arguments) if written else {}
        if written and unit.definition["scope"] != "inference":  # asking a model changes nothing that must be known before
            intent = await self.services.audit.intend(unit.name, caller.name, told, run_id, plan_id)
        try:
            result = await self._run(unit, arguments, caller, send, run_id, key)
            code = "ok"
            return result
        except AimaError as error:
            code = error.code
            raise
        finally:
            took = time.monotonic() - began
            self.outcomes[unit.name, code] += 1
            self.seconds[unit.name] += took  # type: ignore[assignment]
            if written:
                once, took_ms, note = None if intent else told, round(took * 1000, 3), self.services.audit.note
                note("outcome", unit.name, caller.name, code, intent=intent, run_id=run_id, duration_ms=took_ms, arguments=once)

    def _note_refusal(self, unit: Unit, caller: Caller, given: Any, refusal: AimaError) -> None:
        self.outcomes[unit.name, refusal.code] += 1
        told = _told(unit, given) if isinstance(given, Mapping) and not isinstance(refusal, InvalidArgument) else None
        self.services.audit.note("refusal", unit.name, caller.name, refusal.code, arguments=told)

    async def _run(
        self, unit: Unit, arguments: Mapping[str, Any], caller: Caller, send: Send | None, run_id: str | None, key: str | None
    ) -> Mapping[str, Any]:
        handler = unit.handler
        assert handler is not None
        context = Context(self, caller, _shaped(unit, send), send is not None, run_id, key)
        limit = None if unit.durable else self._limit(unit)
        result: Mapping[str, Any] = await self._guarded(unit, caller, limit, lambda: handler(context, **arguments))
        if error_text := unit.output.first_error(result):
            raise Internal(f"{unit.name} broke its own schema: {error_text}")
        return result

    async def _guarded(self, unit: Unit, caller: Caller, limit: float | None, work: Callable[[], Awaitable[T]]) -> T:
        """Do it until the deadline, the end of the caller's key or a freeze; whatever it raises becomes an error of ours."""
        keys, freeze, nested = self.services.keys, self.services.freeze, self.services.allowance.nested
        try:
            with (
                anyio.fail_after(limit) as scope,
                keys.holding(caller, scope),
                freeze.holding(unit, scope),
                nested(),
            ):
                return await work()
            raise freeze.refusal(unit.name) if freeze.record else keys.ended(caller)
        except AimaError:
            raise
        except TimeoutError as error:
            raise DeadlineExceeded(f"{unit.name} took longer than {limit} s", hint="calls.* in config.toml sets the deadline") from error
        except Exception as error:  # a bug of ours: the log gets it whole, the caller gets its kind and nothing from inside
            log.exception("%s failed%s", unit.name, trace.words())
            raise Internal(
                f"{unit.name} failed: {type(error).__name__}", hint="this is a bug in AIMA; the host's log has the trace"
            ) from error

    def _limit(self, unit: Unit) -> float:
        return float(self.services.config["calls"]["command_timeout_seconds" if unit.kind == "command" else "query_timeout_seconds"])


def _only_looks(unit: Unit, given: Mapping[str, Any]) -> bool:
    """Whether a call only says what it would do: that is its plan already."""
    return given.get("dry_run") is True and "dry_run" in unit.definition["inputSchema"]["properties"]


def _needs(plan: Mapping[str, Any], given: Mapping[str, Any], why: str | None) -> ApprovalRequired:
    """Why a call is not done yet, with the call that does it."""
    again = {"name": plan["unit"], "arguments": dict(given), "token": plan["token"]}
    calls = [{"unit": "unit.call", "arguments": again}] if plan["arguments"] == given else []
    said = f"{why}; " if why else ""
    if plan["policy"] == "approve" and plan["status"] == "open":
        message = f"{plan['unit']} needs somebody else's approval: {said}it {plan['summary']}"
        hint = f"once a person ran `aima approve {plan['id']}`: the same call with this token"
        return ApprovalRequired(message, hint=hint, next=calls, details={"plan": plan})
    message = f"{plan['unit']} is not done without its plan's token: {said}it {plan['summary']}"
    return ApprovalRequired(message, hint="if that is wanted: the same call with this token", next=calls, details={"plan": plan})


def _asked(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a run is asked to do: `wait` says how its caller is answered, and nothing of that."""
    return {key: value for key, value in given.items() if key != "wait"}


def _refused_key(unit: Unit) -> InvalidArgument | None:
    """The refusal of an idempotency key of which nothing would come: who sends one counts on the second call being the first."""
    if unit.kind == "query" or unit.durable or unit.name == PASSES_ON or unit.definition["annotations"]["idempotentHint"]:
        return None
    hint = "leave the key out; before a second call, see what came of the first"
    return InvalidArgument(f"{unit.name} keeps no idempotency key: a second call is done again", hint=hint)


def _told(unit: Unit, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What may be written down of a call's arguments."""
    return redacted(unit.definition.get("inputSchema", {}), arguments)


def _shaped(unit: Unit, send: Send | None) -> Send:
    if send is None:
        return silent
    judge = unit.stream

    async def checked(item: Mapping[str, Any]) -> None:
        if judge is None or (error := judge.first_error(item)):
            raise Internal(f"{unit.name} sent what its streamSchema does not allow: {'it has none' if judge is None else error}")
        await send(item)

    return checked


def _mending(unit: Unit, given: Any, error: str) -> tuple[str, list[dict[str, Any]]]:
    """What is said to whoever sent this: a hint, and the calls that describe what it should have been."""
    describe = {"unit": "unit.describe", "arguments": {"name": unit.name}}
    key = error.partition(":")[0].partition(".")[0]
    if (source := unit.elsewhere.get(key)) is None:
        return _hint(unit, given), [describe]
    known, sent = unit.definition["inputSchema"]["properties"][key]["properties"], given[key]
    strange = next((str(name) for name in sent if name not in known), "") if isinstance(sent, Mapping) else ""
    near = did_you_mean(strange, known) if strange else None
    filled = {name: given[property] for name, property in source["arguments"].items() if isinstance(given.get(property), str)}
    calls = [{"unit": source["unit"], "arguments": filled}] if len(filled) == len(source["arguments"]) else []
    return near or f"{source['unit']} says what {key} may hold", [*calls, describe]


def _hint(unit: Unit, given: Any) -> str:
    known = unit.definition["inputSchema"]["properties"]
    for key in given if isinstance(given, Mapping) else ():
        if key not in known:
            return did_you_mean(str(key), known) or f"it takes: {', '.join(known) or 'nothing'}"
    required = unit.definition["inputSchema"].get("required", [])
    return f"it needs: {', '.join(required)}" if required else f"it takes: {', '.join(known) or 'nothing'}"
