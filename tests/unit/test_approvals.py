"""Plan, approve, apply: nothing that destroys is done without a plan's token, nothing dangerous without somebody else's word."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from aima_lib.door import AGENT, OWNER, Caller
from aima_lib.errors import AimaError, ApprovalRequired, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, ResourceExhausted
from aima_lib.gateway import Gateway
from aima_lib.infra.home import Home
from aima_lib.runtime import host
from tests.tiny import write_tiny_gguf
from tests.workshop import agreed
from tests.world import ROOTS

pytestmark = pytest.mark.anyio
GUEST = Caller("guest", frozenset({"read", "write", "delete"}))
ADMIN = Caller("deputy", frozenset({"admin"}))
ATTEMPTS = int(os.environ.get("AIMA_ATTEMPTS", "150"))


class World:
    """A hosted home with models that nobody may lose."""

    def __init__(self, gateway: Gateway, weights: Path) -> None:
        self.gateway, self.weights = gateway, weights

    async def model(self, name: str) -> str:
        """A registered model of this name."""
        await self.gateway.call("model.create", {"name": name, "type": "llm", "path": str(self.weights)})
        return name

    async def plan(self, caller: Caller, unit: str, **arguments: Any) -> Mapping[str, Any]:
        return await self.gateway.plan(unit, arguments, caller=caller)

    async def call(self, caller: Caller, unit: str, token: str | None = None, **arguments: Any) -> Mapping[str, Any]:
        return await self.gateway.call(unit, arguments, caller=caller, token=token)

    async def refused(self, caller: Caller, unit: str, token: str | None = None, **arguments: Any) -> str:
        """Why a call is not done."""
        with pytest.raises(ApprovalRequired) as caught:
            await self.call(caller, unit, token, **arguments)
        assert caught.value.details["plan"]["unit"] == unit
        return str(caught.value)


@pytest.fixture
async def world(hosted: Gateway, tmp_path: Path) -> World:
    return World(hosted, write_tiny_gguf(tmp_path / "tiny.gguf"))


async def test_a_delete_takes_its_plan_and_the_error_holds_the_call_that_does_it(world: World) -> None:
    model = await world.model("doomed")
    with pytest.raises(ApprovalRequired, match=r"model\.delete is not done without its plan's token: it deletes model doomed") as caught:
        await world.call(GUEST, "model.delete", model_id=model)
    [call] = caught.value.next
    assert await world.gateway.call(call["unit"], call["arguments"], caller=GUEST) == {"name": "model.delete", "result": {"freed_bytes": 0}}
    with pytest.raises(NotFound):
        await world.gateway.call("model.get", {"model_id": model})


async def test_a_plan_tells_and_does_nothing(world: World) -> None:
    model = await world.model("kept")
    plan = await world.plan(OWNER, "service.create", model_id=model, name="talk")
    assert plan["policy"] == "auto" and plan["status"] == "open"
    assert plan["changes"]["creates"] == plan["changes"]["starts"] == [{"kind": "service", "id": "talk"}]
    assert plan["changes"]["memory_bytes"] > 1_000_000 and plan["changes"]["deletes"] == []
    assert (await world.gateway.call("service.list"))["total"] == 0
    plan = await world.plan(OWNER, "model.delete", model_id=model)
    assert plan["changes"]["deletes"] == [{"kind": "model", "id": model}]
    assert (await world.gateway.call("model.get", {"model_id": model}))["model"]["id"] == model
    with pytest.raises(FailedPrecondition, match="changes nothing"):
        await world.plan(OWNER, "model.list")


async def test_a_plan_of_a_call_through_another_unit_is_held_to_the_same_rules(world: World) -> None:
    for arguments in ({"name": "service.create", "arguments": {"limit": 1}}, {"name": "service.create"}):
        with pytest.raises(InvalidArgument):
            await world.plan(OWNER, "unit.call", **arguments)
        with pytest.raises(InvalidArgument):
            await world.call(OWNER, "unit.call", "plan-nothing.x", **arguments)
    with pytest.raises(PermissionDenied):
        await world.plan(GUEST, "unit.call", name="key.list")
    assert (await world.plan(OWNER, "unit.call", name="model.list"))["changes"]["deletes"] == []


async def test_the_same_question_has_the_same_plan(world: World) -> None:
    model = await world.model("kept")
    tokens = {(await world.plan(GUEST, "model.delete", model_id=model))["token"] for _ in range(3)}
    assert len(tokens) == 1
    assert (await world.plan(OWNER, "model.delete", model_id=model))["token"] not in tokens


async def test_a_token_is_good_for_its_caller_its_arguments_its_world_and_once(world: World) -> None:
    one, other = await world.model("one"), await world.model("other")
    token = (await world.plan(GUEST, "model.delete", model_id=one))["token"]
    assert "none of yours" in await world.refused(OWNER, "model.delete", token, model_id=one)
    assert "for another call" in await world.refused(GUEST, "model.delete", token, model_id=other)
    assert "for another call" in await world.refused(GUEST, "model.delete", token, model_id=one, force=True)
    assert "none of yours" in await world.refused(GUEST, "model.delete", token[:-1], model_id=one)
    assert "none of yours" in await world.refused(GUEST, "model.delete", "plan-nothing.x", model_id=one)
    await world.call(GUEST, "model.delete", token, model_id=one)
    await world.model("one")
    assert "used already" in await world.refused(GUEST, "model.delete", token, model_id=one)


async def test_a_plan_of_another_world_lets_nothing_pass(world: World) -> None:
    model = await world.model("one")
    token = (await world.plan(GUEST, "model.delete", model_id=model, force=True))["token"]
    service = {"id": "talk", "name": "talk", "model_id": model, "desired_replicas": 0, "instance_id": "none", "error": None}
    await world.gateway.services.store.insert("service", service)
    assert "no longer what the plan said" in await world.refused(GUEST, "model.delete", token, model_id=model, force=True)
    await world.gateway.services.store.delete("service", "talk")
    await agreed(world.gateway, "model.delete", {"model_id": model})
    await world.model("one")  # of the same name, and another
    assert "no longer what the plan said" in await world.refused(GUEST, "model.delete", token, model_id=model, force=True)


async def test_a_token_expires(home: Home, tmp_path: Path) -> None:
    (home.path / "config.toml").write_text(f"[policy]\ntoken_seconds = 1\n{ROOTS}", encoding="utf-8")
    async with host(home) as gateway:
        world = World(gateway, write_tiny_gguf(tmp_path / "tiny.gguf"))
        model = await world.model("kept")
        plan = await world.plan(OWNER, "model.delete", model_id=model)
        with anyio.fail_after(10):
            while (await gateway.call("approval.list", {"status": "expired"}))["total"] == 0:
                await anyio.sleep(0.05)
        assert "expired" in await world.refused(OWNER, "model.delete", plan["token"], model_id=model)


async def test_a_request_waits_for_its_approval_as_long_as_the_owner_says(home: Home, tmp_path: Path) -> None:
    asks = '[policy]\ntoken_seconds = 2\nrequest_seconds = 30\nunits = {"model.verify" = "approve"}\n'
    (home.path / "config.toml").write_text(asks + ROOTS, encoding="utf-8")
    async with host(home) as gateway:
        world = World(gateway, write_tiny_gguf(tmp_path / "tiny.gguf"))
        plan = await world.plan(GUEST, "model.verify", model_id=await world.model("kept"))
        created, expires = (datetime.fromisoformat(plan[key]) for key in ("created_at", "expires_at"))
        assert (expires - created).total_seconds() == pytest.approx(30, abs=1)


async def test_a_token_used_by_many_at_once_is_used_once(world: World) -> None:
    model = await world.model("one")
    token = (await world.plan(OWNER, "model.delete", model_id=model))["token"]
    outcomes: list[str] = []

    async def use() -> None:
        try:
            await world.call(OWNER, "model.delete", token, model_id=model)
            outcomes.append("ok")
        except AimaError as error:
            outcomes.append(error.code)

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(use)
    assert outcomes.count("ok") == 1 and set(outcomes) <= {"ok", "approval_required", "not_found"}


async def test_what_is_dangerous_takes_somebody_elses_word(world: World) -> None:
    asked = {"name": "bot", "scopes": ["read"]}
    for caller in (ADMIN, AGENT):
        with pytest.raises(ApprovalRequired, match="needs somebody else's approval") as caught:
            await world.call(caller, "key.create", **asked)
        plan = caught.value.details["plan"]
        assert f"aima approve {plan['id']}" in str(caught.value.hint)
        assert "nobody has approved it yet" in await world.refused(caller, "key.create", plan["token"], **asked)
        for by, why in ((caller, "cannot approve it"), (AGENT, "cannot approve"), (GUEST, "may not use")):
            with pytest.raises(PermissionDenied, match=why):
                await world.call(by, "approval.approve", approval_id=plan["id"])
        approved = (await world.call(OWNER, "approval.approve", approval_id=plan["id"], reason="fine"))["approval"]
        assert (approved["status"], approved["decided_by"], approved["reason"]) == ("approved", "owner", "fine")
        made = await world.call(caller, "key.create", plan["token"], **asked)
        assert made["key"]["created_by"] == caller.name
        assert "used already" in await world.refused(caller, "key.create", plan["token"], **asked)


async def test_what_is_denied_stays_denied(world: World) -> None:
    asked = {"name": "bot", "scopes": ["read"]}
    plan = await world.plan(AGENT, "key.create", **asked)
    await world.call(OWNER, "approval.deny", approval_id=plan["id"], reason="no")
    assert "owner denied it" in await world.refused(AGENT, "key.create", plan["token"], **asked)
    with pytest.raises(FailedPrecondition, match="is denied"):
        await world.call(OWNER, "approval.approve", approval_id=plan["id"])
    seen = (await world.call(AGENT, "approval.list", status="denied"))["approvals"]
    assert [(each["id"], each["reason"]) for each in seen] == [(plan["id"], "no")] and "token" not in seen[0]


async def test_nobody_approves_what_needs_no_approval_and_callers_see_their_own(world: World) -> None:
    model = await world.model("kept")
    plan = await world.plan(GUEST, "model.delete", model_id=model)
    with pytest.raises(FailedPrecondition, match="needs nobody's approval"):
        await world.call(ADMIN, "approval.approve", approval_id=plan["id"])
    other = Caller("stranger", frozenset({"read"}))
    assert (await world.call(other, "approval.list"))["total"] == 0
    assert (await world.call(GUEST, "approval.list"))["total"] == 1 == (await world.call(ADMIN, "approval.list"))["total"]


async def test_the_owner_has_nobody_above_and_takes_the_second_step_all_the_same(world: World) -> None:
    assert "its plan's token" in await world.refused(OWNER, "key.create", name="bot", scopes=["read"])
    assert (await agreed(world.gateway, "key.create", {"name": "bot", "scopes": ["read"]}))["key"]["created_by"] == "owner"


async def test_a_caller_that_loops_is_stopped(world: World) -> None:
    for number in range(100):
        await world.plan(GUEST, "device.detect" if number == 0 else "model.create", **({} if number == 0 else _registered(world, number)))
    with pytest.raises(ResourceExhausted, match="100 plans open"):
        await world.plan(GUEST, "model.create", **_registered(world, 100))


def _registered(world: World, number: int) -> dict[str, Any]:
    return {"name": f"m{number}", "type": "llm", "path": str(world.weights)}


RULES = """
[policy.scopes]
write = "plan"
[policy.units]
"model.*" = "approve"
"device.detect" = "deny"
"model.delete" = "auto"
"event.list" = "deny"
"""


async def test_the_strictest_rule_of_the_config_wins(home: Home, tmp_path: Path) -> None:
    (home.path / "config.toml").write_text(RULES, encoding="utf-8")
    async with host(home) as gateway:
        level = {unit.name: gateway.policy.level(unit, GUEST) for unit in gateway.registry.of("command", "query")}
        for caller in (OWNER, GUEST):
            for name in ("device.detect", "event.list"):
                with pytest.raises(PermissionDenied, match="is denied here, to everyone"):
                    await gateway.call(name, caller=caller)
    assert level["model.pull"] == level["model.delete"] == "approve", "a looser rule loosens nothing"
    assert (level["service.stop"], level["service.delete"], level["model.list"], level["inference.chat"]) == (
        "plan",
        "plan",
        "auto",
        "auto",
    )
    (home.path / "config.toml").write_text('[policy.units]\n"modle.*" = "deny"\n', encoding="utf-8")
    with pytest.raises(InvalidArgument, match=r"'modle\.\*', which no unit fits"):
        async with host(home):
            raise AssertionError("it opened")


async def test_every_command_says_what_it_would_change(hosted: Gateway) -> None:
    for unit in hosted.registry.of("command"):
        assert unit.planner is not None
        assert unit.policy != "auto" or not unit.definition["annotations"]["destructiveHint"] or unit.name == "unit.call"


# A thousand ways that must not work. Each gets the world and dice, makes one attempt, and may raise what it likes.

Attack = Callable[[World, random.Random, str], Awaitable[Any]]


async def without_a_token(world: World, dice: random.Random, target: str) -> None:
    await world.call(dice.choice([OWNER, GUEST, AGENT, ADMIN]), "model.delete", None, model_id=target)


async def with_a_replayed_token(world: World, dice: random.Random, target: str) -> None:
    bait = await world.model(f"bait-{dice.randrange(10**9)}")
    token = (await world.plan(GUEST, "model.delete", model_id=bait))["token"]
    await world.call(GUEST, "model.delete", token, model_id=bait)
    if dice.random() < 0.5:
        await world.call(GUEST, "model.delete", token, model_id=target)
    else:
        await world.model(bait)
        await world.call(GUEST, "model.delete", token, model_id=bait)


async def with_edited_arguments(world: World, dice: random.Random, target: str) -> None:
    bait = await world.model(f"bait-{dice.randrange(10**9)}")
    token = (await world.plan(GUEST, "model.delete", model_id=bait))["token"]
    await world.gateway.call(
        "unit.call", {"name": "model.delete", "arguments": {"model_id": target, "force": dice.random() < 0.5}, "token": token}, caller=GUEST
    )


async def with_somebody_elses_token(world: World, dice: random.Random, target: str) -> None:
    one, other = dice.sample([OWNER, GUEST, AGENT, ADMIN], 2)
    await world.call(other, "model.delete", (await world.plan(one, "model.delete", model_id=target))["token"], model_id=target)


async def with_a_forged_token(world: World, dice: random.Random, target: str) -> None:
    token = (await world.plan(OWNER, "model.delete", model_id=target))["token"]
    place = dice.randrange(len(token))
    forged = dice.choice(
        [token[:place], token + "A", token.partition(".")[0], token[:place] + chr(ord(token[place]) ^ 1) + token[place + 1 :], "é" * 9]
    )
    await world.call(OWNER, "model.delete", forged, model_id=target)


async def with_a_stale_plan(world: World, dice: random.Random, target: str) -> None:
    token = (await world.plan(GUEST, "model.delete", model_id=target, force=True))["token"]
    users = [f"user-{dice.randrange(10**9)}"]
    service = {"id": users[0], "name": users[0], "model_id": target, "desired_replicas": 0, "instance_id": "none", "error": None}
    await world.gateway.services.store.insert("service", service)
    try:
        await world.call(GUEST, "model.delete", token, model_id=target, force=True)
    finally:
        await world.gateway.services.store.delete("service", users[0])


async def with_its_own_approval(world: World, dice: random.Random, target: str) -> None:
    caller = dice.choice([AGENT, ADMIN])
    asked = {"name": f"evil-{dice.randrange(10**9)}", "scopes": ["admin"]}
    plan = await world.plan(caller, "key.create", **asked)
    try:
        await world.call(dice.choice([caller, AGENT]), "approval.approve", approval_id=plan["id"])
    finally:
        await world.call(caller, "key.create", plan["token"], **asked)


async def with_a_denied_or_edited_request(world: World, dice: random.Random, target: str) -> None:
    asked = {"name": f"evil-{dice.randrange(10**9)}", "scopes": ["read"]}
    plan = await world.plan(AGENT, "key.create", **asked)
    if dice.random() < 0.5:
        await world.call(OWNER, "approval.deny", approval_id=plan["id"])
    else:
        await world.call(OWNER, "approval.approve", approval_id=plan["id"])
        asked["scopes"] = ["admin"]
    await world.call(AGENT, "key.create", plan["token"], **asked)


ATTACKS: tuple[Attack, ...] = (
    without_a_token, with_a_replayed_token, with_edited_arguments, with_somebody_elses_token, with_a_forged_token, with_a_stale_plan,
    with_its_own_approval, with_a_denied_or_edited_request,
)  # fmt: skip


@pytest.fixture
async def patient(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A world that does not stop those who ask too often: here they shall be stopped by what they ask."""
    monkeypatch.setattr("aima_lib.services.approvals.MOST_OPEN", 10 * ATTEMPTS)
    async with host(home) as gateway:
        yield World(gateway, write_tiny_gguf(tmp_path / "tiny.gguf"))


async def test_attempts_without_approval_change_nothing(patient: World) -> None:
    dice = random.Random(20261124)
    targets = [await patient.model(f"target-{number}") for number in range(5)]
    codes: dict[str, int] = {}
    for _ in range(ATTEMPTS):
        attack = dice.choice(ATTACKS)
        try:
            await attack(patient, dice, dice.choice(targets))
            raise AssertionError(f"an attempt {attack.__name__} was let through")
        except AimaError as error:
            codes[error.code] = codes.get(error.code, 0) + 1
    assert set(codes) <= {"approval_required", "permission_denied"}, codes
    left = {model["id"] for model in (await patient.gateway.call("model.list", {"limit": 1000}))["models"]}
    assert left.issuperset(targets)
    assert (await patient.gateway.call("key.list"))["total"] == 0
    await patient.gateway.services.store.submit(lambda db: None)  # refusals are written behind the answer
    refusals = (await patient.gateway.call("audit.list", {"code": "approval_required", "limit": 1}))["total"]
    assert refusals >= codes["approval_required"], "each refusal is on record"
    assert (await patient.gateway.call("audit.verify"))["valid"]


async def test_plans_that_expired_long_ago_are_forgotten_with_the_next(hosted: Gateway) -> None:
    store = hosted.services.store
    plan = await hosted.plan("key.create", {"name": "a", "scopes": ["read"]})
    await store.update("plan", plan["id"], expires_at="2020-01-01T00:00:00.000Z")
    kept = await hosted.plan("key.create", {"name": "b", "scopes": ["read"]})
    assert [row["id"] for row in store.find("plan")] == [kept["id"]]
