"""The engine of pipelines: order, parallel work, what follows from failure, and what an ended host leaves to the next."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from aima_lib.door import AGENT, OWNER, Caller
from aima_lib.errors import AimaError, DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from aima_lib.gateway import Gateway
from aima_lib.infra.home import Home
from aima_lib.registry import Registry
from aima_lib.runtime import host
from tests.served import registry
from tests.toys import HANDLERS, TOYS, done, lines, pipeline, step
from tests.workshop import agreed

pytestmark = pytest.mark.anyio
DEADLINE = 20


class Toys:
    """Hosts of one home, with the toys beside AIMA's units."""

    def __init__(self, home: Home, known: Registry, inside: Any, folder: Path) -> None:
        self.home, self.known, self.inside, self.folder = home, known, inside, folder

    @asynccontextmanager
    async def host(self) -> AsyncIterator[Gateway]:
        with anyio.fail_after(DEADLINE):
            async with host(self.home, registry=self.known) as gateway:
                yield gateway

    @property
    def done(self) -> list[str]:
        return done(self.folder)

    async def began(self, word: str) -> None:
        while f"{word} begin" not in lines(self.folder):
            await anyio.sleep(0.002)


@pytest.fixture
def toys(home: Home, tmp_path: Path) -> Toys:
    known, name = registry(tmp_path, TOYS, HANDLERS)
    inside = sys.modules[f"{name}.only"]
    inside.FOLDER[0] = str(tmp_path)
    return Toys(home, known, inside, tmp_path)


async def run(gateway: Gateway, document: Mapping[str, Any], key: str | None = None, caller: Caller = OWNER, **given: Any) -> Any:
    """What a pipeline gives back."""
    await gateway.call("pipeline.create", document, caller=caller)
    result = await gateway.call("pipeline.run", {"pipeline_id": document["name"], "input": given}, key=key, caller=caller)
    return result["output"]


async def status(gateway: Gateway, run_id: str) -> dict[str, Any]:
    found = await gateway.call("pipeline.status", {"run_id": run_id})
    return {step["id"]: step for step in found["steps"]}


async def test_what_can_run_at_once_does_and_the_rest_in_order(toys: Toys) -> None:
    document = pipeline(
        step("a", seconds=0.05), step("b", seconds=0.05), step("c", "toy.look", seconds=0.05),
        step("d", "toy.once", value="${steps.a.value}${steps.b.value}"),
        output={"d": "${steps.d.response}", "first": "${steps.a}"},
    )  # fmt: skip
    async with toys.host() as gateway:
        output = await run(gateway, document)
    assert output["d"] == "ab"
    assert output["first"]["value"] == "a"
    assert toys.inside.most["all"] == 3
    assert toys.done[-1] == "d"


async def test_no_more_than_max_parallel(toys: Toys) -> None:
    document = pipeline(*(step(f"s{i}", seconds=0.01) for i in range(9)), config={"max_parallel": 2})
    async with toys.host() as gateway:
        output = await run(gateway, document)
    assert sorted(output) == [f"s{i}" for i in range(9)]
    assert toys.inside.most["all"] == 2


async def test_for_each_keeps_the_order_of_its_items_and_its_own_limit(toys: Toys) -> None:
    each = {"items": "${input.numbers}", "max_parallel": 3}
    document = pipeline(
        {"id": "all", "type": "toy.once", "for_each": each, "input": {"word": "w${item}", "value": "${item}", "seconds": 0.01}},
        {"id": "none", "type": "toy.once", "for_each": [], "input": {"word": "never"}},
        output={"all": "${steps.all.response}", "none": "${steps.none}"},
    )
    async with toys.host() as gateway:
        output = await run(gateway, document, numbers=[5, 3, 9, 1, 7])
    assert output == {"all": [5, 3, 9, 1, 7], "none": []}
    assert toys.inside.most["once"] == 3
    assert sorted(toys.done) == ["w1", "w3", "w5", "w7", "w9"]


async def test_a_condition_that_does_not_hold_skips_a_step_and_no_other(toys: Toys) -> None:
    document = pipeline(
        step("a", value=1), {**step("b"), "if": "steps.a.value > 1"}, step("c", "toy.look", value="${steps.b.value ?? \"nothing\"}"),
        output="${steps.c.value}",
    )  # fmt: skip
    async with toys.host() as gateway:
        assert await run(gateway, document, key="k") == "nothing"
        assert (await status(gateway, "pipeline-run-k"))["b"]["status"] == "skipped"
    assert toys.done == ["a", "c"]


async def test_a_step_is_tried_again_as_often_as_it_says(toys: Toys) -> None:
    again = {"attempts": 3, "backoff_seconds": 0.01}
    document = pipeline(step("a", fail="unavailable", times=2, retry=again), step("b", "toy.once", "a"), output="${steps.b.value}")
    async with toys.host() as gateway:
        assert await run(gateway, document, key="k") == "b"
        assert (await status(gateway, "pipeline-run-k"))["a"]["attempts"] == 3
        with pytest.raises(InvalidArgument, match=r"step a: a2 was to fail"):  # not a code to try again after
            await run(gateway, pipeline(step("a", word="a2", fail="invalid_argument", retry=again), name="other"))
    assert lines(toys.folder).count("a2 begin") == 1


async def test_a_failure_undoes_what_was_done_last_first(toys: Toys) -> None:
    def undone(id: str, *needs: str) -> dict[str, Any]:
        back = {"type": "toy.once", "input": {"word": f"undo-${{steps.{id}.value}}"}}
        return step(id, "toy.once", *needs, compensate=back)

    each = {"id": "each", "type": "toy.once", "for_each": ["x", "y"], "depends_on": ["b"], "input": {"word": "${item}", "value": "${item}"}}
    each["compensate"] = {"type": "toy.once", "input": {"word": "undo-${item}-${steps.each.value}"}}
    each["for_each"] = {"items": ["x", "y"], "max_parallel": 1}
    document = pipeline(undone("a"), undone("b", "a"), each, step("c", "toy.look", "each", fail="not_found"))
    async with toys.host() as gateway:
        with pytest.raises(NotFound, match="step c: c was to fail") as raised:
            await run(gateway, document, key="k")
        found = await status(gateway, "pipeline-run-k")
        events = gateway.services.events.page(0, 100, ["pipeline.*"])
    assert toys.done == ["a", "b", "x", "y", "undo-y-y", "undo-x-x", "undo-b", "undo-a"]
    assert raised.value.details["step"] == "c"
    assert raised.value.details["undone"] == ["each", "each", "b", "a"]
    assert (found["a"]["status"], found["a"]["compensation"], found["c"]["status"]) == ("succeeded", "succeeded", "failed")
    assert [event["type"] for event in events][-1] == "pipeline.failed"
    assert events[-1]["payload"]["undone"] == ["each", "each", "b", "a"]


async def test_a_compensation_that_fails_is_told_and_the_others_are_made(toys: Toys) -> None:
    bad = {"type": "toy.once", "input": {"word": "bad", "fail": "unavailable"}}
    good = {"type": "toy.once", "input": {"word": "good"}}
    document = pipeline(step("a", compensate=good), step("b", "toy.once", "a", compensate=bad), step("c", "toy.look", "b", fail="internal"))
    async with toys.host() as gateway:
        with pytest.raises(AimaError) as raised:
            await run(gateway, document)
    assert (raised.value.details["undone"], raised.value.details["not_undone"]) == (["a"], ["b"])


async def test_on_error_goes_on_or_lets_another_step_run_instead(toys: Toys) -> None:
    document = pipeline(
        step("a", fail="not_found", on_error="continue"),
        step("b", fail="not_found", on_error="spare"),
        step("spare", "toy.look", value="spared"),
        step("c", "toy.look", value="${steps.b.response}"),
        step("fine", on_error="unneeded"),
        step("unneeded"),
        output={"a": "${steps.a.value ?? \"gone\"}", "c": "${steps.c.value}", "fine": "${steps.fine.value}"},
    )  # fmt: skip
    async with toys.host() as gateway:
        assert await run(gateway, document, key="k") == {"a": "gone", "c": "spared", "fine": "fine"}
        found = await status(gateway, "pipeline-run-k")
    assert {id: step["status"] for id, step in found.items()} == {
        "a": "failed", "b": "failed", "spare": "succeeded", "c": "succeeded", "fine": "succeeded", "unneeded": "skipped",
    }  # fmt: skip
    assert "unneeded" not in toys.done


async def test_a_step_that_takes_too_long_fails_and_so_does_a_run(toys: Toys) -> None:
    slow = pipeline(step("a", seconds=30, timeout_seconds=0.05))
    child = pipeline(step("a", "toy.long", seconds=30, timeout_seconds=0.1), name="child")
    whole = pipeline(step("a", seconds=30), name="whole", config={"timeout_seconds": 0.1})
    async with toys.host() as gateway:
        for document in (slow, child, whole):
            with pytest.raises(DeadlineExceeded):
                await run(gateway, document)
        assert gateway.services.store.find("run", status="running") == []
        assert [run["status"] for run in gateway.services.store.find("run", unit="toy.long")] == ["cancelled"]


async def test_a_cancel_ends_all_that_goes_on_and_undoes_the_rest(toys: Toys) -> None:
    back = {"type": "toy.once", "input": {"word": "undo-a"}}
    document = pipeline(
        step("a", compensate=back),
        step("b", "toy.once", "a", seconds=30),
        step("c", "toy.long", "a", seconds=30),
        step("d", "toy.once", "b"),
    )
    async with toys.host() as gateway:
        await gateway.call("pipeline.create", document)
        begun = await gateway.call("pipeline.run", {"pipeline_id": "toys", "wait": False})
        assert begun == {"run_id": begun["run_id"], "status": "running", "output": None}
        await toys.began("b")
        await toys.began("c")
        async with anyio.create_task_group() as tasks:  # at the same time, and again: it is one cancel
            for _ in range(3):
                tasks.start_soon(gateway.call, "pipeline.cancel", {"run_id": begun["run_id"]})
        ended = (await gateway.call("pipeline.cancel", {"run_id": begun["run_id"]}))["run"]
        assert (ended["status"], ended["error"]["code"]) == ("cancelled", "cancelled")
        assert gateway.services.store.find("run", status="running") == []
        found = await status(gateway, begun["run_id"])
        [child] = gateway.services.store.find("run", unit="toy.long")
    assert (child["status"], child["parent"]) == ("cancelled", begun["run_id"])
    assert {id: step["status"] for id, step in found.items()} == {"a": "succeeded", "b": "unknown", "c": "cancelled", "d": "pending"}
    assert toys.done == ["a", "undo-a"]
    assert toys.inside.active["all"] == 0


@pytest.mark.parametrize("type", ["toy.look", "toy.ask", "toy.long", "toy.once"])
async def test_what_was_cut_off_and_has_a_compensation_may_have_to_be_undone(toys: Toys, type: str) -> None:
    """Whatever its unit is: it may have been done just before the cancel, or by a host that died before it had it on record."""
    back = {"type": "toy.once", "input": {"word": "undo"}}
    document = pipeline(step("a", "toy.again", compensate=back), step("b", type, "a", seconds=30, compensate=back))
    async with toys.host() as gateway:
        await gateway.call("pipeline.create", document)
        begun = await gateway.start("pipeline.run", {"pipeline_id": "toys"})
        await toys.began("b")
        ended = (await gateway.call("pipeline.cancel", {"run_id": begun["id"]}))["run"]
        found = await status(gateway, begun["id"])
    assert found["b"]["status"] == "unknown"
    assert (ended["error"]["details"]["undone"], ended["error"]["details"]["not_undone"]) == (["a"], ["b"])


async def test_a_cancel_of_a_run_reaches_the_pipelines_within_it(toys: Toys) -> None:
    back = {"type": "toy.once", "input": {"word": "undo-deep"}}
    deep = pipeline(step("deep", compensate=back), step("slow", "toy.once", "deep", seconds=30), name="deep")
    mid = pipeline({"id": "call", "type": "pipeline.run", "input": {"pipeline_id": "deep"}}, name="mid")
    top = pipeline({"id": "call", "type": "pipeline.run", "input": {"pipeline_id": "mid"}}, name="top")
    async with toys.host() as gateway:
        for document in (deep, mid, top):
            await gateway.call("pipeline.create", document)
        begun = await gateway.start("pipeline.run", {"pipeline_id": "top"})
        await toys.began("slow")
        await gateway.call("run.cancel", {"run_id": begun["id"]})
        runs = {run["input"]["pipeline_id"]: run for run in gateway.services.store.find("run", unit="pipeline.run")}
    assert {id: run["status"] for id, run in runs.items()} == dict.fromkeys(("deep", "mid", "top"), "cancelled")
    assert (runs["deep"]["parent"], runs["mid"]["parent"], runs["top"]["parent"]) == (runs["mid"]["id"], runs["top"]["id"], None)
    assert toys.done == ["deep", "undo-deep"]


async def test_the_next_host_goes_on_from_the_last_record(toys: Toys) -> None:
    document = pipeline(
        step("a"), step("b", "toy.look", "a", seconds=0.3), step("c", "toy.long", "a", seconds=0.3), step("d", "toy.once", "b", "c"),
        {"id": "e", "type": "toy.ask", "for_each": {"items": ["e1", "e2", "e3"], "max_parallel": 1}, "input": {"word": "${item}", "seconds": 0.1}},
    )  # fmt: skip
    async with toys.host() as gateway:
        await gateway.call("pipeline.create", document)
        begun = await gateway.start("pipeline.run", {"pipeline_id": "toys"})
        await toys.began("b")
        await toys.began("e2")
    async with toys.host() as gateway:
        run = (await gateway.call("run.wait", {"run_id": begun["id"]}))["run"]
        events = gateway.services.events.page(0, 100, ["pipeline.*"], subject=begun["id"])
    assert (run["status"], run["attempts"]) == ("succeeded", 2)
    assert sorted(toys.done) == ["a", "b", "c", "d", "e1", "e2", "e3"]
    told = [event["payload"].get("step", event["type"]) for event in events]
    assert sorted(told) == ["a", "b", "c", "d", "e", "pipeline.completed", "pipeline.started"]
    assert (told[0], told[-1]) == ("pipeline.started", "pipeline.completed")
    assert lines(toys.folder).count("a begin") == lines(toys.folder).count("e1 begin") == 1


@pytest.mark.parametrize(("policy", "ended"), [("fail", "failed"), ("continue", "succeeded"), ("retry", "succeeded")])
@pytest.mark.parametrize("type", ["toy.once", "toy.brief"])
async def test_what_may_have_been_done_is_unknown_and_follows_its_policy(toys: Toys, policy: str, ended: str, type: str) -> None:
    document = pipeline(step("a", type, seconds=0.3, on_unknown=policy), step("b", "toy.look", "a"), output="${steps.b.value}")
    async with toys.host() as gateway:
        await gateway.call("pipeline.create", document)
        begun = await gateway.start("pipeline.run", {"pipeline_id": "toys"})
        await toys.began("a")
    async with toys.host() as gateway:
        run = (await gateway.call("run.wait", {"run_id": begun["id"]}))["run"]
        found = await status(gateway, begun["id"])
    assert run["status"] == ended
    assert found["a"]["status"] == ("succeeded" if policy == "retry" else "unknown")
    assert lines(toys.folder).count("a begin") == (2 if policy == "retry" else 1)


async def test_a_run_keeps_the_version_it_began_with(toys: Toys) -> None:
    def version(word: str) -> dict[str, Any]:
        return pipeline(step("a", "toy.look", seconds=0.2), step("b", "toy.once", "a", word=word, value=word), output="${steps.b.value}")

    async with toys.host() as gateway:
        await gateway.call("pipeline.create", version("old"))
        begun = await gateway.start("pipeline.run", {"pipeline_id": "toys"})
        await toys.began("a")
        made = await gateway.call("pipeline.create", version("new"))
        assert made["pipeline"]["version"] == 2
        assert (await gateway.call("pipeline.get", {"pipeline_id": "toys", "version": 1}))["document"]["steps"][1]["input"]["word"] == "old"
    async with toys.host() as gateway:
        run = (await gateway.call("run.wait", {"run_id": begun["id"]}))["run"]
        assert run["result"]["output"] == "old"
        assert (await gateway.call("pipeline.run", {"pipeline_id": "toys"}))["output"] == "new"
        await agreed(gateway, "pipeline.delete", {"pipeline_id": "toys"})
        with pytest.raises(NotFound):
            await gateway.call("pipeline.run", {"pipeline_id": "toys"})
        assert (await gateway.call("pipeline.create", version("third")))["pipeline"]["version"] == 3


async def test_the_same_input_is_not_computed_twice_while_it_is_fresh(toys: Toys) -> None:
    document = pipeline(step("a", "toy.ask", value="${input.x}", cache_seconds=60), output="${steps.a.value}")
    async with toys.host() as gateway:
        assert [await run(gateway, document, x=x) for x in (1, 1, 2)] == [1, 1, 2]
    async with toys.host() as gateway:
        assert await run(gateway, document, x=2) == 2
    assert toys.done == ["a", "a"]


async def test_pipelines_are_nested_three_deep_and_no_deeper(toys: Toys) -> None:
    async with toys.host() as gateway:
        await gateway.call("pipeline.create", pipeline(step("a", "toy.look"), name="p0", output="${steps.a.value}"))
        for i in range(1, 4):
            # by a name that is not known before, or the check would say it
            given = {"pipeline_id": "${input.inner}", "input": {"inner": f"p{i - 2}"} if i > 2 else {}}
            inner = {"id": "inner", "type": "pipeline.run", "input": given if i > 1 else {"pipeline_id": "p0"}}
            await gateway.call("pipeline.create", pipeline(inner, name=f"p{i}", output="${steps.inner.response}"))
        assert (await gateway.call("pipeline.run", {"pipeline_id": "p2", "input": {"inner": "p1"}}))["output"] == "a"
        with pytest.raises(FailedPrecondition, match="at most 3 deep"):
            await gateway.call("pipeline.run", {"pipeline_id": "p3", "input": {"inner": "p2"}})


async def test_a_run_may_do_what_its_caller_and_its_maker_both_may(toys: Toys) -> None:
    async with toys.host() as gateway:
        keys = {}
        for name, scopes in (("reader", ["read", "inference"]), ("writer", ["read", "write", "inference"])):
            made = await agreed(gateway, "key.create", {"name": name, "scopes": scopes})
            keys[name] = gateway.services.keys.caller(made["secret"])
        document = pipeline(step("a"), output="${steps.a.value}")
        with pytest.raises(PermissionDenied):
            await gateway.call("pipeline.create", document, caller=keys["reader"])
        assert await run(gateway, document, caller=keys["writer"]) == "a"
        with pytest.raises(PermissionDenied, match=r"toy\.once, which the step a of toys calls"):
            await gateway.call("pipeline.run", {"pipeline_id": "toys"}, caller=keys["reader"])
        await gateway.call("pipeline.create", pipeline(step("a", "toy.once"), name="reads"), caller=keys["writer"])
        assert (await gateway.call("pipeline.run", {"pipeline_id": "toys"}))["output"] == "a"
        await agreed(gateway, "key.revoke", {"key_id": "writer"})
        with pytest.raises(AimaError, match="writer was revoked"):
            await gateway.call("pipeline.run", {"pipeline_id": "toys"})


async def test_a_freeze_holds_a_run_and_a_thaw_lets_it_go_on(toys: Toys) -> None:
    document = pipeline(step("a", "toy.again", seconds=0.3), step("b", "toy.once", "a"))
    async with toys.host() as gateway:
        await gateway.call("pipeline.create", document)
        begun = await gateway.start("pipeline.run", {"pipeline_id": "toys"})
        await toys.began("a")
        await gateway.call("system.freeze", {})
        assert (await gateway.call("run.get", {"run_id": begun["id"]}))["run"]["status"] == "running"
        await agreed(gateway, "system.thaw", {})
        run = (await gateway.call("run.wait", {"run_id": begun["id"]}))["run"]
    assert run["status"] == "succeeded"
    assert toys.done == ["a", "b"]


async def test_progress_tells_each_step(toys: Toys) -> None:
    seen: list[Mapping[str, Any]] = []

    async def send(item: Mapping[str, Any]) -> None:
        seen.append(item)

    document = pipeline(step("a", seconds=0.2), step("b", "toy.once", "a", seconds=0.2))
    async with toys.host() as gateway:
        await gateway.call("pipeline.create", document)
        await gateway.call("pipeline.run", {"pipeline_id": "toys"}, send=send)
    states = [tuple(part["status"] for part in item["parts"]) for item in seen if "parts" in item]
    assert ("running", "pending") in states
    assert ("succeeded", "running") in states
    assert states[-1] == ("succeeded", "succeeded")
    assert [(item["completed"], item["total"]) for item in seen if "parts" in item][-1] == (2, 2)


async def test_an_approval_pauses_a_run_over_the_end_of_a_host(toys: Toys) -> None:
    document = pipeline(step("a"), step("burn", "toy.burn", "a", approval=True), step("free", "toy.look", seconds=0.01))
    async with toys.host() as gateway:
        await gateway.call("pipeline.create", document)
        begun = await gateway.start("pipeline.run", {"pipeline_id": "toys"})
        approval = await waiting(gateway)
        assert approval["run_id"] == begun["id"]
    async with toys.host() as gateway:
        assert (await waiting(gateway))["id"] == approval["id"]
        while (progress := (await gateway.call("run.get", {"run_id": begun["id"]}))["run"]["progress"] or {}).get(
            "phase"
        ) != "waiting for approval":
            await anyio.sleep(0.01)
        assert progress["message"] == "burn"
        await gateway.call("approval.approve", {"approval_id": approval["id"]})
        run = (await gateway.call("run.wait", {"run_id": begun["id"]}))["run"]
        [plan] = (await gateway.call("approval.list", {}))["approvals"]
    assert run["status"] == "succeeded"
    assert plan["status"] == "applied"
    assert sorted(toys.done) == ["a", "burn", "free"]


async def test_only_somebody_else_lets_pass_what_a_key_asks_for(toys: Toys) -> None:
    async with toys.host() as gateway:
        made = await agreed(gateway, "key.create", {"name": "cleaner", "scopes": ["read", "write", "delete", "inference"]})
        cleaner = gateway.services.keys.caller(made["secret"])
        both = {}
        for name, caller in (("cleaner", cleaner), ("mcp", AGENT)):
            await gateway.call(
                "pipeline.create", pipeline(step("burn", "toy.burn", approval=True, word=name), name=f"by-{name}"), caller=caller
            )
            both[name] = await gateway.start("pipeline.run", {"pipeline_id": f"by-{name}"}, caller=caller)
            approval = await waiting(gateway)
            for own in (cleaner, AGENT):
                with pytest.raises(PermissionDenied):
                    await gateway.call("approval.approve", {"approval_id": approval["id"]}, caller=own)
            await gateway.call("approval.approve", {"approval_id": approval["id"]})
            assert (await gateway.call("run.wait", {"run_id": both[name]["id"]}))["run"]["status"] == "succeeded"
    assert toys.done == ["cleaner", "mcp"]


async def test_what_the_policy_asks_more_for_pauses_a_run_too(toys: Toys) -> None:
    (toys.home.path / "config.toml").write_text('[policy.units]\n"toy.once" = "approve"\n', encoding="utf-8")
    async with toys.host() as gateway:
        await gateway.call("pipeline.create", pipeline(step("a")))
        begun = await gateway.start("pipeline.run", {"pipeline_id": "toys"})
        approval = await waiting(gateway)
        assert approval["run_id"] == begun["id"]
        await gateway.call("approval.approve", {"approval_id": approval["id"]})
        assert (await gateway.call("run.wait", {"run_id": begun["id"]}))["run"]["status"] == "succeeded"
        assert len((await gateway.call("approval.list", {}))["approvals"]) == 1
    assert toys.done == ["a"]


async def test_what_is_denied_fails(toys: Toys) -> None:
    async with toys.host() as gateway:
        await gateway.call("pipeline.create", pipeline(step("burn", "toy.burn", approval=True)))
        begun = await gateway.start("pipeline.run", {"pipeline_id": "toys"})
        approval = await waiting(gateway)
        await gateway.call("approval.deny", {"approval_id": approval["id"], "reason": "not today"})
        run = (await gateway.call("run.wait", {"run_id": begun["id"]}))["run"]
    assert (run["status"], run["error"]["code"]) == ("failed", "permission_denied")
    assert "owner denied toy.burn in the step burn: not today" in run["error"]["message"]
    assert toys.done == []


async def test_a_cancelled_run_asks_nobody_any_more(toys: Toys) -> None:
    async with toys.host() as gateway:
        await gateway.call("pipeline.create", pipeline(step("burn", "toy.burn", approval=True)))
        begun = await gateway.start("pipeline.run", {"pipeline_id": "toys"})
        await waiting(gateway)
        assert (await gateway.call("pipeline.cancel", {"run_id": begun["id"]}))["run"]["status"] == "cancelled"
        assert (await gateway.call("approval.list", {"status": "open"}))["approvals"] == []


async def waiting(gateway: Gateway) -> Mapping[str, Any]:
    """The approval that a run waits for."""
    while not (found := (await gateway.call("approval.list", {"status": "open"}))["approvals"]):
        await anyio.sleep(0.005)
    return found[0]


async def test_a_step_gives_no_secret_to_the_journal(toys: Toys) -> None:
    async with toys.host() as gateway:
        with pytest.raises(InvalidArgument, match="the key that it makes would be kept"):
            given = {"name": "k", "scopes": ["read"]}
            await gateway.call("pipeline.create", pipeline({"id": "k", "type": "key.create", "approval": True, "input": given}))


async def test_an_event_that_a_host_did_not_come_to_log_is_logged_by_the_next(toys: Toys) -> None:
    async with toys.host() as gateway:
        await run(gateway, pipeline(step("a"), step("b", "toy.once", "a")), key="k")
        sql = "DELETE FROM events WHERE type IN ('pipeline.completed', 'pipeline.step_completed') AND seq > (SELECT min(seq) FROM events)"
        await gateway.services.store.submit(lambda db: db.execute(sql))
        await gateway.services.store.update("run", "pipeline-run-k", status="running", result=None)
    async with toys.host() as gateway:
        assert (await gateway.call("run.wait", {"run_id": "pipeline-run-k"}))["run"]["status"] == "succeeded"
        events = gateway.services.events.page(0, 100, ["pipeline.*"], subject="pipeline-run-k")
    assert [event["payload"].get("step", event["type"]) for event in events] == ["pipeline.started", "a", "b", "pipeline.completed"]
    assert toys.done == ["a", "b"]


async def test_each_step_is_told_once_when_a_cancel_meets_its_end(toys: Toys) -> None:
    """The run is then taken up again at once, while its last events are on their way to the log."""
    chains = [step(f"s{i}", "toy.look", *([f"s{i - 10}"] if i >= 10 else [])) for i in range(150)]
    async with toys.host() as gateway:
        await gateway.call("pipeline.create", pipeline(*chains, config={"max_parallel": 10}))
        for _ in range(5):
            begun = await gateway.start("pipeline.run", {"pipeline_id": "toys"})
            await toys.began("s9")
            await gateway.call("pipeline.cancel", {"run_id": begun["id"]})
            events = gateway.services.events.page(0, 1000, ["pipeline.step_completed"], subject=begun["id"])
            told = [event["payload"]["step"] for event in events]
            assert len(told) == len(set(told))
            (toys.folder / "log").unlink()


async def test_each_step_is_told_once_however_quick_it_is(toys: Toys) -> None:
    chain = [step(f"s{i}", "toy.look", *([f"s{i - 1}"] if i else [])) for i in range(30)]
    async with toys.host() as gateway:
        await run(gateway, pipeline(*chain), key="k")
        events = gateway.services.events.page(0, 100, ["pipeline.step_completed"], subject="pipeline-run-k")
    assert [event["payload"]["step"] for event in events] == [f"s{i}" for i in range(30)]


async def test_a_forgotten_run_leaves_no_rows(toys: Toys) -> None:
    async with toys.host() as gateway:
        await run(gateway, pipeline(step("a")), key="k")
        await gateway.services.store.delete("run", "pipeline-run-k")
        assert gateway.services.store.read("SELECT count(*) FROM steps")[0][0] == 0
        assert gateway.services.store.read("SELECT count(*) FROM flows")[0][0] == 0


async def test_an_input_that_does_not_fit_is_refused_before_the_first_call(toys: Toys) -> None:
    plain = pipeline(step("a"), step("b", "toy.once", "a", seconds="${input.seconds}"), name="plain")
    declared = {"type": "object", "required": ["seconds"], "properties": {"seconds": {"type": "number"}, "x": {"default": 1}}}
    async with toys.host() as gateway:
        for document in (plain, {**plain, "name": "declared", "input": declared}):
            for given in ({"seconds": "long"}, {"seconds": 0, "second": 1}):
                with pytest.raises(InvalidArgument, match="input: "):
                    await run(gateway, document, **given)
            await run(gateway, document, seconds=0)
    assert toys.done == ["a", "b"] * 2


async def test_a_long_chain_of_skips_is_no_deep_recursion(toys: Toys) -> None:
    steps = [{**step(f"s{i}", "toy.once", *([f"s{i - 1}"] if i else [])), "if": "false"} for i in range(200)]
    async with toys.host() as gateway:
        await run(gateway, pipeline(*steps))
    assert toys.done == []
