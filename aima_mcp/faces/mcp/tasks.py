"""The tasks extension of 2026-07-28: a durable call is answered with a task, which is its run, and the client comes back for it.

Only a client that declares `io.modelcontextprotocol/tasks` with the call gets one; all others wait for the run as before. A task is seen
by the caller who began it, and by an admin. What a unit answered, or refused, is the task's result: `failed` would be an error of the
protocol, and there is none once a run has begun.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import mcp_types as types
from mcp.server.context import HandlerResult
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_NAME_HEADER, decode_header_value
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from aima_lib.door import Caller, Door
from aima_lib.errors import NotFound
from aima_lib.infra.clock import parse
from aima_mcp.faces.mcp.edge import Ctx, caller_of
from aima_mcp.faces.mcp.results import COMPLETE, line
from aima_mcp.faces.mcp.watch import Watch

EXTENSION = "io.modelcontextprotocol/tasks"
CREATED = {"resultType": "task"}
POLL_MS, LATER_POLL_MS, LATER_SECONDS = 1_000, 5_000, 60  # what takes long need not be asked about every second


class Answers(Protocol):
    """What a run that has ended would have answered its tools/call with."""

    def answer_of(self, run: Mapping[str, Any]) -> dict[str, Any]: ...


class TaskParams(types.RequestParams):
    """Names a task."""

    task_id: str


class UpdateParams(TaskParams):
    """Answers to what a task asked its client."""

    input_responses: dict[str, Any]


class Tasks:
    """Tasks over runs. `kept_seconds` is how long runs are kept at least, None where nobody said."""

    def __init__(self, door: Door, answers: Answers, kept_seconds: float | None) -> None:
        self._door, self._answers = door, answers
        self._kept_ms = None if kept_seconds is None else int(kept_seconds * 1000)

    def register(self, server: Server[Watch]) -> None:
        """Let the server answer for them, and say so."""
        server.extensions[EXTENSION] = {}
        server.add_request_handler("tasks/get", TaskParams, self.get)
        server.add_request_handler("tasks/update", UpdateParams, self.update)
        server.add_request_handler("tasks/cancel", TaskParams, self.cancel)

    def created(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """What answers the tools/call that began `run`."""
        return {**CREATED, **self._task(run)}

    async def get(self, ctx: Ctx, params: TaskParams) -> HandlerResult:
        admit(ctx, params.task_id)
        run = await self._seen(params.task_id, caller_of(ctx))
        task = {**COMPLETE, **self._task(run)}
        return task | {"result": self._answers.answer_of(run)} if task["status"] == "completed" else task

    async def update(self, ctx: Ctx, params: UpdateParams) -> HandlerResult:
        """Taken and not looked at: no run of ours asks its client anything, and answers to no question are to be ignored."""
        admit(ctx, params.task_id)
        await self._seen(params.task_id, caller_of(ctx))
        return COMPLETE

    async def cancel(self, ctx: Ctx, params: TaskParams) -> HandlerResult:
        admit(ctx, params.task_id)
        run = await self._seen(params.task_id, caller_of(ctx))
        if run["status"] == "running":
            await self._door.call("run.cancel", {"run_id": run["id"]}, caller=caller_of(ctx))
        return COMPLETE

    async def _seen(self, task_id: str, caller: Caller) -> Mapping[str, Any]:
        """The run. Looked up as the door's own, since who began it may see it without being allowed to look at others."""
        missing = NotFound(f"no task called {task_id[:200]!r}", hint="tasks are forgotten some time after they end")
        try:
            run: Mapping[str, Any] = (await self._door.call("run.get", {"run_id": task_id}))["run"]
        except NotFound:
            raise missing from None
        if not (caller.may("admin") or run.get("caller") == caller.name):
            raise missing
        return run

    def _task(self, run: Mapping[str, Any]) -> dict[str, Any]:
        status = {"running": "working", "cancelled": "cancelled"}.get(run["status"], "completed")
        progress = run["progress"] if status == "working" else None
        said = f"{progress['phase']}: {progress['message']}" if progress else run["status"]
        updated = run["finished_at"] or run.get("updated_at") or run["created_at"]
        return shown(run["id"], status, run["created_at"], updated, self._kept_ms, said)


def shown(id: str, status: str, created_at: str, updated_at: str, kept_ms: int | None, message: str | None = None) -> dict[str, Any]:
    """A task on the wire."""
    young = (datetime.now(UTC) - parse(created_at)).total_seconds() < LATER_SECONDS
    task = {
        "taskId": id,
        "status": status,
        "createdAt": created_at,
        "lastUpdatedAt": updated_at,
        "ttlMs": kept_ms,
        "pollIntervalMs": POLL_MS if young else LATER_POLL_MS,
    }
    return task if message is None else task | {"statusMessage": line(message)}


def declared(ctx: Ctx) -> bool:
    """Whether the client said with this request that it knows tasks."""
    able = ctx.session.client_capabilities
    return ctx.protocol_version in MODERN_PROTOCOL_VERSIONS and able is not None and EXTENSION in (able.extensions or {})


def need(ctx: Ctx) -> None:
    """Refuse a client that did not."""
    if not declared(ctx):
        needed: dict[str, Any] = {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
        raise MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, f"this needs a client that declares {EXTENSION}", needed)


def admit(ctx: Ctx, task_id: str) -> None:
    """Refuse what may not ask about tasks: a client of the handshake era, which has none; one that did not declare them; and one whose
    `Mcp-Name`, by which gateways route, names another task than its body."""
    if ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        raise MCPError(types.METHOD_NOT_FOUND, "Method not found", ctx.method)
    need(ctx)
    if ctx.request is not None and decode_header_value(ctx.request.headers.get(MCP_NAME_HEADER)) != task_id:
        raise MCPError(types.HEADER_MISMATCH, f"{MCP_NAME_HEADER} does not name the task of the body")
