"""The emergency brake: what ends, what waits, what goes on, and how it is let go again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from aima_lib.door import AGENT
from aima_lib.errors import AimaError, ApprovalRequired, FailedPrecondition
from aima_lib.gateway import Gateway
from aima_lib.infra.home import Home
from aima_lib.registry import Registry
from aima_lib.runtime import host, own_registry
from tests.workshop import OPEN, agreed, unit, write_handlers, write_schemas
from tests.world import within

pytestmark = pytest.mark.anyio
SAME = {"readOnlyHint": False, "idempotentHint": True, "destructiveHint": False, "openWorldHint": False}
TOYS = (
    unit("command", "thing.work", durable=True, outputSchema=OPEN, scope="write", annotations=SAME),
    unit("command", "thing.hang", scope="write", annotations=SAME),
    unit("command", "thing.ask", scope="inference", annotations=SAME),
)
HANDLERS = """
gate, begun, ended = anyio.Event(), [], []

@handles("thing.work")
async def work(ctx):
    begun.append("work")
    await gate.wait()
    return {}

@handles("thing.hang")
async def hang(ctx):
    begun.append("hang")
    try:
        await anyio.sleep_forever()
    finally:
        ended.append("hang")

@handles("thing.ask")
async def ask(ctx):
    return {}
"""


@pytest.fixture
def known(tmp_path: Path) -> tuple[Registry, Any]:
    """AIMA's units and a few that hang, and what the handlers of those keep."""
    name = f"freezing_{tmp_path.name.replace('-', '_')}"
    own = Registry.load(write_handlers(tmp_path, name, HANDLERS), write_schemas(tmp_path / "schemas", *TOYS))
    return Registry(dict(own_registry()) | dict(own)), sys.modules[f"{name}.only"]


async def until(true: Any) -> None:
    with anyio.fail_after(10):
        while not true():
            await anyio.sleep(0.005)


async def code_of(gateway: Gateway, name: str, arguments: dict[str, Any] | None = None) -> str:
    try:
        await gateway.call(name, arguments)
    except AimaError as error:
        return error.code
    return "ok"


async def test_a_freeze_ends_commands_lets_runs_wait_and_is_over_with_a_thaw(home: Home, known: tuple[Registry, Any]) -> None:
    registry, inside = known
    codes: dict[str, str] = {}
    async with host(home, registry=registry) as gateway, anyio.create_task_group() as callers:

        async def call(name: str) -> None:
            codes[name] = await code_of(gateway, name)

        for name in ("thing.work", "thing.hang"):
            callers.start_soon(call, name)
        await until(lambda: sorted(inside.begun) == ["hang", "work"])
        with within(1):
            frozen = (await gateway.call("system.freeze", {"reason": "an agent went wild"}))["frozen"]
            await until(lambda: len(codes) == 2)
        assert (frozen["by"], frozen["reason"], inside.ended) == ("owner", "an agent went wild", ["hang"])
        assert codes == {"thing.work": "failed_precondition", "thing.hang": "failed_precondition"}
        with pytest.raises(FailedPrecondition, match=r"thing\.hang is not done: owner froze this home at 2.*: an agent went wild"):
            await gateway.call("thing.hang")
        assert [await code_of(gateway, name) for name in ("thing.ask", "device.info", "system.info")] == ["ok", "ok", "ok"]
        assert (await gateway.call("system.info"))["frozen"] == frozen == (await gateway.call("system.freeze"))["frozen"]
        [run] = (await gateway.call("run.list", {"status": "running"}))["runs"]
        inside.gate.set()
        await agreed(gateway, "system.thaw", {})
        done = (await gateway.call("run.wait", {"run_id": run["id"]}))["run"]
        assert (done["status"], done["attempts"], inside.begun.count("work")) == ("succeeded", 2, 2)
        assert await code_of(gateway, "device.detect") == "ok"


async def test_a_freeze_outlives_its_host_and_runs_wait_on(home: Home, known: tuple[Registry, Any]) -> None:
    registry, inside = known
    async with host(home, registry=registry) as gateway:
        run = await gateway.start("thing.work")
        await until(lambda: inside.begun)
        await gateway.call("system.freeze")
    async with host(home, registry=registry) as gateway:
        assert await code_of(gateway, "device.detect") == "failed_precondition"
        assert inside.begun == ["work"], "the new host has not taken it up"
        inside.gate.set()
        await agreed(gateway, "system.thaw", {})
        assert (await gateway.call("run.wait", {"run_id": run["id"]}))["run"]["status"] == "succeeded"
    async with host(home, registry=registry) as gateway:
        assert (await gateway.call("system.info"))["frozen"] is None


async def test_what_takes_away_works_in_a_frozen_home(home: Home, known: tuple[Registry, Any]) -> None:
    async with host(home, registry=known[0]) as gateway:
        await agreed(gateway, "key.create", {"name": "bot", "scopes": ["read"]})
        asked = await gateway.plan("key.create", {"name": "two", "scopes": ["read"]}, caller=AGENT)
        await gateway.call("system.freeze")
        assert (await agreed(gateway, "key.revoke", {"key_id": "bot"}))["key"]["status"] == "revoked"
        assert await code_of(gateway, "approval.deny", {"approval_id": asked["id"]}) == "ok"


async def test_an_agent_can_pull_the_brake_and_not_let_it_go(home: Home, known: tuple[Registry, Any]) -> None:
    async with host(home, registry=known[0]) as gateway:
        await gateway.call("system.freeze", caller=AGENT)
        with pytest.raises(ApprovalRequired, match="somebody else's approval") as caught:
            await gateway.call("system.thaw", caller=AGENT)
        plan = caught.value.details["plan"]
        await gateway.call("approval.approve", {"approval_id": plan["id"]})
        await gateway.call("system.thaw", caller=AGENT, token=plan["token"])
        assert (await gateway.call("system.info"))["frozen"] is None
