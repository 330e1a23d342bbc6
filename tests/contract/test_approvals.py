"""Two steps, on every face: the first is refused in the same words and changes nothing, the second is done."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from typing import Any

import pytest

from aima_lib.errors import ApprovalRequired, Cancelled
from tests.contract.conftest import Faces
from tests.contract.faces import REGISTRY
from tests.world import World, contents, environment, until

ANY_UNIT = ("library", "async_library", "embedded", "http", "mcp_stdio", "mcp_http", "mcp_http_handshake", "cli")
AGENTS = ("mcp_stdio", "mcp_http", "mcp_http_handshake")


def without_plans(found: dict[str, Any]) -> dict[str, Any]:
    return {place: body for place, body in found.items() if not place.startswith("plan/")}


@pytest.mark.parametrize("face", ANY_UNIT)
def test_what_destroys_takes_two_steps(faces: Faces, face: str) -> None:
    through = faces[face]
    assert through.call("model.create", {"name": "doomed", "type": "llm", "path": "tiny.gguf"}).code == "ok"
    before = without_plans(contents(through.home))
    first = through.call("model.delete", {"model_id": "doomed"})
    assert first.code == "approval_required"
    assert first.body["message"] == "model.delete is not done without its plan's token: it deletes model doomed"
    plan = first.body["details"]["plan"]
    assert plan["caller"] == ("mcp" if face in AGENTS else "owner")
    assert REGISTRY["unit.call"].output.first_error({"name": "model.delete", "result": None, "plan": plan}) is None
    assert without_plans(contents(through.home)) == before
    assert through.call("model.delete", {"model_id": "doomed"}, token="plan-nothing.at-all").code == "approval_required"
    [call] = first.body["next"]
    second = through.call(call["unit"], call["arguments"])
    assert (second.code, second.body["result"]) == ("ok", {"freed_bytes": 0})
    assert through.call("model.get", {"model_id": "doomed"}).code == "not_found"


@pytest.mark.parametrize("face", AGENTS)
def test_an_agent_makes_no_key_until_a_person_agrees(faces: Faces, world: World, face: str) -> None:
    through, asked = faces[face], {"name": f"for-{face}", "scopes": ["read"]}
    first = through.call("key.create", asked)
    plan = first.body["details"]["plan"]
    assert (first.code, plan["policy"]) == ("approval_required", "approve")
    assert through.call("approval.approve", {"approval_id": plan["id"]}).code == "permission_denied"
    assert through.call("key.create", asked, token=plan["token"]).code == "approval_required"
    done = aima(world, "approve", plan["id"], "--reason", "it is mine")
    assert (done.returncode, done.stdout) == (0, f"{plan['id']}: approved\n")
    made = through.call("key.create", asked, token=plan["token"])
    assert (made.code, made.body["key"]["created_by"]) == ("ok", "mcp")
    assert through.call("key.create", asked, token=plan["token"]).code == "approval_required", "a token is used once"


def test_a_person_denies(faces: Faces, world: World) -> None:
    asked = {"name": "never", "scopes": ["admin"]}
    plan = faces["mcp_http"].call("key.create", asked).body["details"]["plan"]
    assert json.loads(aima(world, "approve", "--json").stdout)[0]["id"] == plan["id"]
    assert f"{plan['id']}: mcp wants key.create" in aima(world, "approve").stdout
    assert "denied" in aima(world, "approve", plan["id"], "--deny").stdout
    refused = faces["mcp_http"].call("key.create", asked, token=plan["token"])
    assert refused.code == "approval_required" and "owner denied it" in refused.body["message"]
    events = until(
        lambda: [e["type"] for e in world.call("event.list", types=["approval.*"], limit=1000)["events"]][-3:], what="the events"
    )
    assert "approval.denied" in events


def aima(world: World, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(world.host.python), "-m", "aima_mcp.main", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(world.home.path), check=False)


def test_a_script_plans_and_says_yes_beforehand(world: World) -> None:
    world.call("model.create", name="scripted", type="llm", path="tiny.gguf")
    plan = json.loads(aima(world, "model", "delete", "scripted", "--plan", "--json").stdout)
    assert plan["changes"]["deletes"] == [{"kind": "model", "id": "scripted"}]
    refused = aima(world, "model", "delete", "scripted")
    assert refused.returncode == ApprovalRequired.exit_code and "--yes" in refused.stderr
    assert aima(world, "model", "delete", "scripted", "--token", plan["token"]).returncode == 0
    world.call("model.create", name="scripted", type="llm", path="tiny.gguf")
    assert aima(world, "model", "delete", "scripted", "--yes").returncode == 0


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", Cancelled.exit_code)])
def test_a_person_is_asked(world: World, answer: str, code: int) -> None:
    world.call("model.create", name="asked-about", type="llm", path="tiny.gguf")
    command = [str(world.host.python), "-m", "aima_mcp.main", "model", "delete", "asked-about"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(world.home.path), close_fds=True)
    os.close(theirs)
    said = b""
    while b"Go on?" not in said:
        said += os.read(ours, 1000)
    os.write(ours, answer.encode())
    assert process.wait(60) == code, said
    os.close(ours)
    assert b"It deletes model asked-about" in said
    world.call("model.create", name="asked-about", type="llm", path="tiny.gguf")


def test_a_freeze_and_a_thaw_from_the_command_line(world: World) -> None:
    assert "frozen since" in aima(world, "freeze", "lunch").stdout
    try:
        refused = world.http.post("/units/device/detect", json={})
        assert refused.json()["message"].endswith(": lunch")
        assert world.http.get("/units/system/info").json()["frozen"]["reason"] == "lunch"
    finally:
        thawed = aima(world, "thaw")
    assert thawed.returncode == 0, thawed.stderr
    assert world.http.post("/units/device/detect", json={}).status_code == 200


def test_a_plan_over_http_and_who_one_may_claim_to_be(world: World) -> None:
    plan = world.http.post("/units/service/stop", json={"service_id": "tiny"}, headers={"Aima-Plan": "true"}).json()
    assert (plan["policy"], plan["caller"], plan["changes"]["stops"]) == ("auto", "owner", [{"kind": "service", "id": "tiny"}])
    assert world.http.post("/units/model/list", json={}, headers={"Aima-Plan": "true"}).status_code == 412
    assert world.http.post("/units/device/detect", json={}, headers={"Aima-Plan": "yes"}).status_code == 400
    assert world.http.get("/caller", headers={"Aima-Caller": "mcp"}).json()["name"] == "mcp"
    assert world.http.get("/caller", headers={"Aima-Caller": "owner"}).status_code == 400
