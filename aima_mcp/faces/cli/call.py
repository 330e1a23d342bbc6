"""One generated command, carried out: open the door, call the unit, show what comes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click

from aima_lib.door import Door
from aima_lib.errors import ApprovalRequired, Cancelled, DeadlineExceeded
from aima_lib.infra.home import Home
from aima_lib.registry import Unit
from aima_lib.wording import plain
from aima_mcp.faces.cli import files
from aima_mcp.faces.cli.doorway import Work, through
from aima_mcp.faces.cli.output import Form, show_data
from aima_mcp.faces.cli.watching import Silence, Tokens, Watcher, seen_by, watcher

# What these start outlives the command: an engine, a service, or a pool of connections to them.
HOSTED_DOMAINS = frozenset({"engine", "inference", "service"})
PROGRESS: Mapping[str, Any] = {"properties": {"phase": {}}}
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Consent:
    """What the user said beforehand: only plan it, here is the plan's token, or yes to whatever the plan says."""

    plan: bool = False
    token: str | None = None
    yes: bool = False


@dataclass(frozen=True, slots=True)
class Manner:
    """How a command is to be carried out, whatever the unit."""

    form: Form = "table"
    timeout_seconds: float | None = None
    idempotency_key: str | None = None
    wait: bool = True
    consent: Consent = Consent()
    out: str | None = None


class Noted:
    """Passes items on, and remembers the run they belong to."""

    def __init__(self, inner: Watcher) -> None:
        self.inner, self.run_id = inner, ""

    async def send(self, item: Mapping[str, Any]) -> None:
        if item.get("phase") == "started" and str(item.get("message", "")).startswith("run "):
            self.run_id = str(item["message"]).removeprefix("run ")
            return
        await self.inner.send(item)


def call_unit(home: Home, unit: Unit, arguments: Mapping[str, Any], manner: Manner) -> None:
    """Call a unit and print its output. Raises AimaError; ends the process with 130 at Ctrl-C."""
    seen = Noted(_watcher(unit, manner))
    token = manner.consent.token

    async def work(door: Door) -> Mapping[str, Any]:
        if manner.consent.plan:
            return await door.plan(unit.name, arguments)
        if not manner.wait:
            return {"run": await door.start(unit.name, arguments, key=manner.idempotency_key, token=token)}
        send = None if isinstance(seen.inner, Silence) else seen.send

        async def called_and_saved() -> Mapping[str, Any]:
            output = await door.call(unit.name, arguments, send=send, key=manner.idempotency_key, token=token)
            return output if manner.out is None else await files.saved(door, unit.definition["outputSchema"], output, manner.out)

        called = called_and_saved()
        if manner.timeout_seconds is None:
            return await called
        import anyio

        with anyio.move_on_after(manner.timeout_seconds):
            return await called
        raise _late(unit, manner, seen.run_id)

    def needs_host() -> bool:
        """What the gateway will refuse starts no host."""
        return (unit.durable or unit.domain in HOSTED_DOMAINS) and unit.input.first_error(arguments) is None

    try:
        try:
            output = _carried(home, work, needs_host, manner, seen)
        except ApprovalRequired as refusal:
            token = _agreed(refusal, manner)
            output = _carried(home, work, needs_host, manner, seen)
    except KeyboardInterrupt:
        _say_interrupted(seen.run_id)
        sys.exit(INTERRUPTED)
    _print(unit, output, manner, seen.inner)


def _carried(home: Home, work: Work[Mapping[str, Any]], needs_host: Callable[[], bool], manner: Manner, seen: Noted) -> Mapping[str, Any]:
    with seen_by(seen.inner):
        return through(home, work, needs_host=needs_host, plain=manner.timeout_seconds is None)


def _agreed(refusal: ApprovalRequired, manner: Manner) -> str:
    """The plan's token, once the user agrees to what it says. Raises the refusal where others must, Cancelled at a no."""
    plan: Mapping[str, Any] = refusal.details.get("plan", {})
    if "token" not in plan or (plan["policy"] == "approve" and plan["status"] != "approved") or manner.consent.token:
        raise refusal
    if not manner.consent.yes:
        if manner.form != "table" or not sys.stdin.isatty():
            hint = f"--yes does it without asking; or the same command with --token {plan['token']}"
            raise ApprovalRequired(str(refusal), hint=hint, next=refusal.next, details=refusal.details) from refusal
        if not click.confirm(plain(f"It {plan['summary']}. Go on?"), err=True):
            raise Cancelled("nothing was done")
    return str(plan["token"])


def _watcher(unit: Unit, manner: Manner) -> Watcher:
    if not manner.wait:
        return Silence()
    return watcher(PROGRESS if unit.durable else unit.definition.get("streamSchema"), manner.form != "table")


def _print(unit: Unit, output: Mapping[str, Any], manner: Manner, seen: Watcher) -> None:
    if manner.out == files.STDIO:
        return
    if manner.form != "table":
        show_data(output, manner.form)
    elif not (isinstance(seen, Tokens) and seen.wrote):
        from aima_mcp.faces.cli.render import show

        main = unit.definition.get("primary") if manner.wait else "run"
        if manner.consent.plan or not manner.wait:
            show(output, None if manner.consent.plan else main)
        else:
            show(output if manner.out else files.told(unit.definition["outputSchema"], output), main)


def _late(unit: Unit, manner: Manner, run_id: str) -> DeadlineExceeded:
    message = f"{unit.name} took longer than {manner.timeout_seconds:g} s"
    if not run_id:
        return DeadlineExceeded(message, hint="give it more time with --timeout")
    call = {"unit": "run.wait", "arguments": {"run_id": run_id}}
    return DeadlineExceeded(f"{message}; run {run_id} goes on", hint="wait for it, or cancel it with run.cancel", next=[call])


def _say_interrupted(run_id: str) -> None:
    from aima_mcp.faces.cli.render import err

    if run_id:
        err().print(f"run {run_id} goes on.\nfollow it: aima run wait {run_id}\ncancel it: aima run cancel {run_id}", soft_wrap=True)
    else:
        err().print("interrupted")
