"""A pipeline of devices, models, services, embeddings and chat, from YAML to its end, through every door."""

from __future__ import annotations

import subprocess

import pytest

from tests.contract.conftest import Faces
from tests.contract.faces import carried_out
from tests.world import World, environment

DEFINITION = """
name: small_talk
description: Looks at the machine, has a model answer about each topic, and compares the topics.
input:
  type: object
  required: [topics]
  properties:
    topics: {type: array, items: {type: string}}
    model: {type: string, default: small-model}
steps:
  - id: devices
    type: device.info
  - id: known
    type: model.get
    input: {model_id: tiny}
  - id: room
    type: model.estimate_resources
    input: {model_id: "${steps.known.response.id}", context_length: 256}
  - id: vectors_service
    type: service.create
    if: steps.room.memory.total_bytes > 0
    input:
      model_id: "${steps.known.model.id}"
      name: small-talk-vectors
      options: {embedding: true, context_length: 256}
  - id: vectors
    type: inference.embed
    input:
      model: "${steps.vectors_service.service.id}"
      input: "${input.topics}"
      dimensions: 4
  - id: answers
    type: inference.chat
    for_each: {items: "${input.topics}", max_parallel: 2}
    retry: {attempts: 2, backoff_seconds: 0.1}
    timeout_seconds: 60
    input:
      model: "${input.model}"
      messages: [{role: user, content: "Say something about ${item} on ${steps.devices.devices[0].name}."}]
      temperature: 0
      max_tokens: 8
output:
  model: "${steps.known.model.id}"
  devices: "${steps.devices.devices[*].id}"
  answers: "${steps.answers.response}"
  dimensions: "${steps.vectors.dimensions}"
  served: "${steps.vectors_service.service.status}"
"""
FACES = ("library", "async_library", "embedded", "http", "mcp_stdio", "mcp_http", "mcp_http_handshake", "cli")


@pytest.mark.parametrize("face", FACES)
def test_a_pipeline_of_real_units_runs_from_its_yaml_on_this_face(faces: Faces, face: str) -> None:
    through = faces[face]
    owner = through if face == "embedded" else faces["library"]
    verdict = through.call("pipeline.validate", {"definition": DEFINITION})
    assert (verdict.code, verdict.body["issues"]) == ("ok", [])
    assert carried_out(through, owner, "pipeline.create", {"definition": DEFINITION}).code == "ok"
    outcome = carried_out(through, owner, "pipeline.run", {"pipeline_id": "small_talk", "input": {"topics": ["rain", "snow"]}})
    assert outcome.code == "ok", outcome.body
    output = outcome.body["output"]
    assert (output["model"], output["served"], output["dimensions"]) == ("tiny", "running", 4)
    assert output["devices"]
    assert [len(answer) > 0 for answer in output["answers"]] == [True, True]
    found = through.call("pipeline.status", {"run_id": outcome.body["run_id"]})
    assert [step["status"] for step in found.body["steps"]] == ["succeeded"] * 6
    assert found.body["steps"][5]["items"] == {"succeeded": 2}


def test_what_its_steps_did_is_in_the_audit_log_under_its_run(world: World, faces: Faces) -> None:
    outcome = faces["library"].call("pipeline.create", {"definition": DEFINITION})
    assert outcome.code == "ok"
    run = faces["library"].call("pipeline.run", {"pipeline_id": "small_talk", "input": {"topics": ["wind"]}})
    entries = world.call("audit.list", unit="inference.embed", limit=1000)["entries"]
    assert run.body["run_id"] in {entry["run_id"] for entry in entries}


def test_the_command_line_draws_it(world: World, faces: Faces) -> None:
    faces["library"].call("pipeline.create", {"definition": DEFINITION})
    command = [str(world.host.python), "-m", "aima_mcp.main", "pipeline", "run", "small_talk", "--input.topics", '["fog"]']
    around = environment(world.home.path)
    done = subprocess.run(command, capture_output=True, text=True, cwd=world.host.cwd, env=around, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "answers: succeeded" in done.stderr
    assert "devices: succeeded" in done.stderr
