"""MCP tools: the commands and queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mcp_types as types
from mcp.server.context import CallNext, HandlerResult
from mcp.server.lowlevel import Server
from mcp.shared.jsonrpc_dispatcher import progress_token_from_params
from mcp_types.methods import validate_client_request
from pydantic import ValidationError

from aima_lib.door import Caller, Door
from aima_lib.errors import AimaError, ApprovalRequired, FailedPrecondition, InvalidArgument, NotFound
from aima_lib.infra.progress import Send
from aima_lib.names import did_you_mean, nearest
from aima_lib.registry import Unit
from aima_lib.runs import outcome_of
from aima_mcp.faces.mcp import consent
from aima_mcp.faces.mcp.edge import Ctx, caller_of, refuse_cursor
from aima_mcp.faces.mcp.repair import repaired
from aima_mcp.faces.mcp.results import COMPLETE, Progress, failure, success, tool, unfinished, wire_name
from aima_mcp.faces.mcp.tasks import Tasks, declared
from aima_mcp.faces.mcp.watch import Watch
from aima_mcp.faces.profiles import Profile

KEY = "io.aima/idempotencyKey"
TOKEN = "io.aima/token"
PASSES_ON = "unit.call"
WAIT_SECONDS = 45


class Tools:
    """Commands and queries: those of a profile are listed, all can be called."""

    def __init__(self, door: Door, profile: Profile, wait_seconds: float, kept_seconds: float | None) -> None:
        self._door, self._profile, self._wait_seconds = door, profile, wait_seconds
        self._tasks = Tasks(door, self, kept_seconds)
        units = sorted(door.registry.of("command", "query"), key=lambda unit: unit.name)
        self._units = {wire_name(unit.name): unit for unit in units}
        self._lists: dict[tuple[frozenset[str], str], HandlerResult] = {}

    def register(self, server: Server[Watch]) -> None:
        """Let the server answer for them."""
        server.middleware.append(self.remembered)
        server.add_request_handler("tools/list", types.PaginatedRequestParams, self.list)
        server.add_request_handler("tools/call", types.CallToolRequestParams, self.call)
        self._tasks.register(server)

    async def list(self, ctx: Ctx, params: types.PaginatedRequestParams) -> HandlerResult:
        """What this caller may call of the profile."""
        refuse_cursor(params)
        caller = caller_of(ctx)
        chosen = [unit for unit in self._units.values() if unit.name in self._profile.units and caller.may(unit.definition["scope"])]
        tools = [tool(unit, self._profile.outputs) for unit in chosen]
        listed = types.ListToolsResult.model_validate({**COMPLETE, "tools": tools})
        return listed.model_dump(by_alias=True, mode="json", exclude_none=True, exclude_unset=True)

    async def remembered(self, ctx: Ctx, call_next: CallNext) -> HandlerResult:
        """Middleware: the list as it went over the wire, again: judging and copying a hundred definitions is most of its cost.

        It is the same for all who hold the same scopes, as long as the server lives.
        """
        if not _asks_for_tools(ctx):
            return await call_next(ctx)
        key = caller_of(ctx).scopes, ctx.protocol_version
        if key not in self._lists:
            self._lists[key] = await call_next(ctx)
        return self._lists[key]

    async def call(self, ctx: Ctx, params: types.CallToolRequestParams) -> HandlerResult:
        unit = self._units.get(params.name)
        if unit is None:
            raise self._unknown(params.name)
        key, token, arguments = _text(ctx, KEY), _text(ctx, TOKEN), self._repaired(unit, params.arguments)
        try:
            token = consent.given(params) or token
            try:
                return await self._done(ctx, unit, arguments, token, key)
            except ApprovalRequired as refusal:
                answer = await consent.asked(ctx, refusal, self._wait_seconds)
                return answer if isinstance(answer, dict) else await self._done(ctx, unit, arguments, answer, key)
        except AimaError as error:
            return failure(error, self._profile.units)

    async def _done(self, ctx: Ctx, unit: Unit, arguments: Mapping[str, Any] | None, token: str | None, key: str | None) -> dict[str, Any]:
        """What comes of the call, with the token of its plan if there is one."""
        send = Progress(ctx.session.report_progress) if progress_token_from_params(ctx.params) is not None else None
        caller = caller_of(ctx)
        if unit.name == PASSES_ON and token is not None:
            arguments, token = {**(arguments or {}), "token": token}, None
        if unit.durable and declared(ctx):
            return await self._begin(unit, arguments, caller, key, token)
        if unit.durable:
            return await self._run(unit, arguments, caller, send, key, token)
        output = await self._door.call(unit.name, arguments, caller=caller, send=send, key=key, token=token)
        return self._success(unit, output, arguments)

    async def _run(
        self, unit: Unit, arguments: Mapping[str, Any] | None, caller: Caller, send: Send | None, key: str | None, token: str | None
    ) -> dict[str, Any]:
        """Start a durable unit and wait as long as clients do: most give up after a minute, and the run goes on without them."""
        run = await self._door.start(unit.name, arguments, caller=caller, key=key, token=token)
        if send is not None:
            await send({"phase": "started", "message": f"run {run['id']}"})
        if run["status"] == "running":
            wait = {"run_id": run["id"], "timeout_seconds": self._wait_seconds}
            # As the door's own: the run is this caller's, who may well do things without being allowed to look at others.
            run = (await self._door.call("run.wait", wait, send=send))["run"]
        if run["status"] == "running":
            return unfinished(unit, run, self._profile.units)
        return self._success(unit, outcome_of(dict(run)), arguments)

    async def _begin(
        self, unit: Unit, arguments: Mapping[str, Any] | None, caller: Caller, key: str | None, token: str | None
    ) -> dict[str, Any]:
        """Start a durable unit and answer with its task; with its outcome when an earlier call of the same key has had one."""
        run = await self._door.start(unit.name, arguments, caller=caller, key=key, token=token)
        return self._tasks.created(run) if run["status"] == "running" else self.answer_of(run)

    def answer_of(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """The result of a run that has ended."""
        unit = self._units.get(wire_name(run["unit"]))
        try:
            if unit is None:
                raise FailedPrecondition(f"{run['unit']}, which run {run['id']} called, is not there any more")
            return self._success(unit, outcome_of(dict(run)), run["input"])
        except AimaError as error:
            return failure(error, self._profile.units)

    def _success(self, unit: Unit, output: Mapping[str, Any], arguments: Mapping[str, Any] | None) -> dict[str, Any]:
        called = self._units.get(wire_name(output["name"])) if unit.name == PASSES_ON else None
        return success(unit, output, arguments, self._profile.units, called)

    def _repaired(self, unit: Unit, arguments: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        given: dict[str, Any] | None = repaired(unit.definition["inputSchema"], arguments)
        if unit.name == PASSES_ON and given and isinstance(inner := given.get("arguments"), dict):
            called = self._units.get(wire_name(str(given.get("name"))))
            given["arguments"] = repaired(called.definition["inputSchema"], inner) if called else inner
        return given

    def _unknown(self, name: str) -> NotFound:
        hint = did_you_mean(name, self._units) or "tools/list names them; unit_search finds one by words"
        return NotFound(f"no tool called {name!r}", hint=hint, details={"nearest": nearest(name, self._units)})


def _asks_for_tools(ctx: Ctx) -> bool:
    """Whether this is a good `tools/list`, and a client's that may ask."""
    if ctx.method != "tools/list" or (ctx.params or {}).keys() - {"_meta"} or ctx.session.client_capabilities is None:
        return False
    try:
        validate_client_request(ctx.method, ctx.protocol_version, ctx.params)
    except ValidationError:
        return False
    return True


def _text(ctx: Ctx, name: str) -> str | None:
    value = (ctx.meta or {}).get(name)
    if value is not None and not (isinstance(value, str) and value):
        raise InvalidArgument(f"_meta[{name!r}] is a string that is not empty, not {value!r}")
    return value
