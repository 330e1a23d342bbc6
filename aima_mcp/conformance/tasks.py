"""Tools of the suite that answer with a task. What a task has come to is told by the clock and by what was answered, so nothing runs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import mcp_types as types
from mcp.server.context import HandlerResult, ServerRequestContext

from aima_lib.infra.clock import stamp
from aima_mcp.conformance.asking import form, missing
from aima_mcp.conformance.content import COMPLETE
from aima_mcp.faces.mcp.tasks import CREATED, TaskParams, admit, declared, need, shown

Ctx = ServerRequestContext[Any, Any]
Requests = Mapping[str, dict[str, Any]]
KEPT_MS = 3_600_000
FAILED_SECONDS = 1.0
_NUMBERS = itertools.count(1)
_USER = {"user_name": form("What is your name?", name="string")}


def _said(text: str, error: bool = False) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}], "isError": error}


@dataclass
class _Task:
    """One task: how long it takes, what it asks, and what comes of it: a result, or an error of the protocol."""

    seconds: float = 0.0
    result: dict[str, Any] | None = None
    asked: Requests = field(default_factory=dict)
    id: str = field(default_factory=lambda: f"fixture-{next(_NUMBERS)}")
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    answers: dict[str, Any] = field(default_factory=dict)
    cancelled: bool = False

    def left(self) -> dict[str, Any]:
        return {key: request for key, request in self.asked.items() if key not in self.answers}

    @property
    def status(self) -> str:
        if self.cancelled:
            return "cancelled"
        if self.left():
            return "input_required"
        if datetime.now(UTC) < self.began + timedelta(seconds=self.seconds):
            return "working"
        return "failed" if self.result is None else "completed"

    def shown(self) -> dict[str, Any]:
        return shown(self.id, self.status, stamp(self.began), stamp(datetime.now(UTC)), KEPT_MS)

    def detailed(self) -> dict[str, Any]:
        more: dict[str, dict[str, Any]] = {
            "input_required": {"inputRequests": self.left()},
            "completed": {"result": self.result},
            "failed": {"error": {"code": types.INTERNAL_ERROR, "message": "This job intentionally fails"}},
        }
        task = self.shown()
        return {**COMPLETE, **task, **more.get(task["status"], {})}


_TASKS: dict[str, _Task] = {}


def has(task_id: str) -> bool:
    """Whether a task is one of the suite's."""
    return task_id in _TASKS


async def get(ctx: Ctx, params: TaskParams) -> HandlerResult:
    """tasks/get for one of these."""
    admit(ctx, params.task_id)
    return _TASKS[params.task_id].detailed()


async def update(ctx: Ctx, params: Any) -> HandlerResult:
    """tasks/update for one of these."""
    admit(ctx, params.task_id)
    task = _TASKS[params.task_id]
    task.answers |= {key: answer for key, answer in params.input_responses.items() if key in task.left()}
    return COMPLETE


async def cancel(ctx: Ctx, params: TaskParams) -> HandlerResult:
    """tasks/cancel for one of these."""
    admit(ctx, params.task_id)
    task = _TASKS[params.task_id]
    task.cancelled |= task.status in ("working", "input_required")
    return COMPLETE


def _begun(task: _Task) -> dict[str, Any]:
    _TASKS[task.id] = task
    return {**CREATED, **task.shown()}


async def _greet(_ctx: Ctx, params: Any) -> HandlerResult:
    return {**COMPLETE, **_said(f"Hello, {(params.arguments or {})['name']}!")}


async def _slow(ctx: Ctx, params: Any) -> HandlerResult:
    seconds = float((params.arguments or {}).get("seconds", 0))
    if declared(ctx):
        return _begun(_Task(seconds, _said("computed")))
    await anyio.sleep(seconds)
    return {**COMPLETE, **_said("computed")}


def _only_a_task(make: Callable[[], _Task]) -> Callable[[Ctx, Any], Awaitable[HandlerResult]]:
    async def answer(ctx: Ctx, _params: Any) -> HandlerResult:
        need(ctx)
        return _begun(make())

    return answer


async def _asks_first(ctx: Ctx, params: Any) -> HandlerResult:
    need(ctx)
    left = missing(params, _USER)
    return left or _begun(_Task(result=_said(json.dumps(params.model_dump(by_alias=True, mode="json")["inputResponses"]))))


_CONFIRM = {"confirm": form("Delete it?", confirm="boolean")}
_TWO = {key: form(f"The {key}?", name="string") for key in ("first", "second")}
TOOLS: dict[str, Callable[[Ctx, Any], Awaitable[HandlerResult]]] = {
    "greet": _greet,
    "slow_compute": _slow,
    "failing_job": _only_a_task(lambda: _Task(FAILED_SECONDS, _said("This job intentionally fails", error=True))),
    "protocol_error_job": _only_a_task(_Task),
    "confirm_delete": _only_a_task(lambda: _Task(result=_said("deleted"), asked=_CONFIRM)),
    "multi_input": _only_a_task(lambda: _Task(result=_said("both"), asked=_TWO)),
    "test_tool_with_task": _asks_first,
}
