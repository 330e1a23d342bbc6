"""Engines by their units: real llama.cpp, a megabyte of model."""

from __future__ import annotations

import os
import signal
import socket
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, ResourceExhausted
from aima_lib.launchers import process
from tests.engines.conftest import Hosted
from tests.world import within

pytestmark = [pytest.mark.anyio, pytest.mark.engine]


async def test_a_start_is_ready_at_the_first_token_and_a_repetition_changes_nothing(hosted: Hosted) -> None:
    model, phases = await hosted.tiny(), list[str]()

    async def send(item: Any) -> None:
        phases.append(item["phase"])

    arguments = {"name": "llamacpp", "model_id": model}
    first = (await hosted.gateway.call("engine.start", arguments, send=send))["instance"]
    assert (first["status"], first["tasks"], first["placement"]) == ("ready", ["chat", "complete"], {"device": "cpu", "fallback": None})
    assert phases[-3:] == ["starting", "loading", "ready"]
    assert (await hosted.call("engine.start", **arguments))["instance"] == first
    answer = await hosted.call("inference.chat", model=first["id"], messages=[{"role": "user", "content": "hi"}], max_tokens=3)
    assert answer["usage"]["completion_tokens"] == 3


async def test_two_callers_at_once_get_one_engine(hosted: Hosted) -> None:
    model, found = await hosted.tiny(), list[Any]()

    async def ask() -> None:
        found.append((await hosted.call("engine.start", name="llamacpp", model_id=model))["instance"]["pid"])

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(ask)
    assert len(set(found)) == 1
    assert len(hosted.events("engine.started")) == 1


async def test_a_stop_frees_memory_and_keeps_the_log(hosted: Hosted) -> None:
    model = await hosted.tiny()
    instance = (await hosted.call("engine.start", name="llamacpp", model_id=model))["instance"]
    stopped = await hosted.call("engine.stop", instance_id=instance["id"])
    assert stopped["stopped"] == [instance["id"]]
    assert stopped["freed_bytes"] > 5 << 20
    assert not psutil.pid_exists(instance["pid"])
    assert await hosted.call("engine.stop", instance_id=instance["id"]) == {"stopped": [], "freed_bytes": 0}
    lines = (await hosted.call("engine.logs", instance_id=instance["id"]))["lines"]
    assert any("model loaded" in line for line in lines)
    assert (await hosted.call("engine.logs", instance_id=instance["id"], since="2999-01-01T00:00:00Z"))["lines"] == []


@pytest.mark.parametrize("engine", ["llamacpp", "llama-server"])
async def test_weights_that_went_bad_are_named_within_two_seconds(hosted: Hosted, engine: str) -> None:
    model = await hosted.tiny()
    weights = hosted.gateway.services.models.path(hosted.gateway.services.store.get("model", model))
    await anyio.to_thread.run_sync(_spoil, weights)
    with within(2), pytest.raises(FailedPrecondition, match="invalid magic") as caught:
        await hosted.call("engine.start", name=engine, model_id=model)
    assert [call["unit"] for call in caught.value.next] == ["engine.logs", "model.verify"]
    [error] = hosted.events("engine.error")
    assert "invalid magic" in error["payload"]["cause"]
    [row] = (await hosted.call("engine.get", name=engine))["engine"]["instances"]
    assert (row["status"], row["pid"], row["base_url"]) == ("failed", None, None)


async def test_registered_weights_that_were_swapped_for_a_way_out_are_not_started(hosted: Hosted, tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.symlink_to(hosted.fixtures / "tiny.gguf")
    await hosted.call("model.create", name="mine", type="llm", path=str(path))
    path.unlink()
    path.symlink_to("/etc/hostname")
    with pytest.raises(PermissionDenied, match="not beneath"):
        await hosted.call("engine.start", name="llamacpp", model_id="mine")
    assert (await hosted.call("engine.get", name="llamacpp"))["engine"]["instances"] == []
    path.unlink()
    path.symlink_to(hosted.fixtures / "tiny.gguf")
    assert (await hosted.call("engine.start", name="llamacpp", model_id="mine"))["instance"]["status"] == "ready"


def _spoil(path: Path) -> None:
    target = path.resolve()
    target.chmod(0o644)
    target.write_bytes(b"not a model" + target.read_bytes()[11:])


async def test_a_port_that_is_taken_names_its_holder(hosted: Hosted) -> None:
    model = await hosted.tiny()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with within(1), pytest.raises(FailedPrecondition, match=rf"port {port} is taken by .*\(pid {os.getpid()}\)"):
            await hosted.call("engine.start", name="llamacpp", model_id=model, port=port)
    instance = (await hosted.call("engine.start", name="llamacpp", model_id=model, port=port))["instance"]
    assert instance["base_url"] == f"http://127.0.0.1:{port}"


async def test_what_would_not_fit_is_refused_with_a_context_that_does(hosted: Hosted) -> None:
    model = await hosted.tiny()
    options = {"context_length": 1 << 20, "parallel": 64}
    with pytest.raises(ResourceExhausted, match="GiB") as caught:
        await hosted.call("engine.start", name="llamacpp", model_id=model, options=options)
    assert caught.value.details["needed_bytes"] > caught.value.details["usable_bytes"]
    [again] = caught.value.next
    fits = again["arguments"]["options"]["context_length"]
    assert again["unit"] == "engine.start"
    assert 512 <= fits < 1 << 20


async def test_a_gpu_that_is_not_there_is_said(hosted: Hosted) -> None:
    if any(device["type"] == "gpu" for device in hosted.gateway.services.devices.devices()):
        pytest.skip("there is a GPU")
    model = await hosted.tiny()
    instance = (await hosted.call("engine.start", name="llamacpp", model_id=model, options={"gpu_layers": 9}))["instance"]
    assert instance["device"] == "cpu"
    assert "no GPU was detected" in instance["placement"]["fallback"]


async def test_options_reach_the_engine(hosted: Hosted) -> None:
    model = await hosted.tiny()
    options = {"context_length": 256, "parallel": 3, "threads": 1, "batch_size": 64, "flash_attention": "off", "seed": 5}
    instance = (await hosted.call("engine.start", name="llamacpp", model_id=model, options=options))["instance"]
    features = (await hosted.call("engine.features", name="llamacpp"))["features"]
    assert (features["source"], features["context_length"], features["parallel"]) == ("engine", 256, 3)
    ask = {"model": instance["id"], "prompt": "one", "max_tokens": 8, "temperature": 1.0}
    assert (await hosted.call("inference.complete", **ask))["text"] == (await hosted.call("inference.complete", **ask))["text"]
    with pytest.raises(FailedPrecondition, match="with other options"):
        await hosted.call("engine.start", name="llamacpp", model_id=model, options={"context_length": 128})


async def test_llama_server_is_found_started_and_answers(hosted: Hosted) -> None:
    model = await hosted.tiny()
    engine = (await hosted.call("engine.get", name="llama-server"))["engine"]
    assert (engine["installed"], engine["version"]) == (True, "7 (small)")
    options = {"embedding": True, "chat_template": "qwen-tools", "context_length": 256}
    instance = (await hosted.call("engine.start", name="llama-server", model_id=model, options=options))["instance"]
    assert instance["tasks"] == ["chat", "complete", "embed"]
    argv = " ".join(psutil.Process(instance["pid"]).cmdline())
    assert hosted.gateway.services.engines.key(instance) not in argv
    assert (await hosted.call("inference.embed", model=instance["id"], input="one"))["dimensions"] == 64


async def test_a_llama_server_for_another_cpu_says_so(hosted: Hosted, llama_server: Path) -> None:
    await anyio.to_thread.run_sync(llama_server.write_text, "#!/bin/sh\nkill -ILL $$\n")
    model = await hosted.tiny()
    with pytest.raises(FailedPrecondition, match="instructions this CPU does not have"):
        await hosted.call("engine.start", name="llama-server", model_id=model)
    assert (await hosted.call("engine.get", name="llama-server"))["engine"]["status"] == "unavailable"


async def test_an_engine_that_never_answers_is_given_up_and_ended(hosted: Hosted, llama_server: Path) -> None:
    mute = f"#!/bin/sh\n[ \"$1\" = --version ] && exit 0\nexec {sys.executable} -c 'import time; time.sleep(600)'\n"
    await anyio.to_thread.run_sync(llama_server.write_text, mute)
    model = await hosted.tiny()
    async with anyio.create_task_group() as callers:
        callers.start_soon(hosted.gateway.services.engines.start, "llama-server", model)
        await hosted.until(lambda: hosted.gateway.services.store.find("instance", status="starting"))
        callers.cancel_scope.cancel()
    [row] = (await hosted.call("engine.get", name="llama-server"))["engine"]["instances"]
    assert (row["status"], row["error"]) == ("failed", "it was given up before its first token")


async def test_a_killed_engine_is_an_event_with_its_cause(hosted: Hosted) -> None:
    model = await hosted.tiny()
    instance = (await hosted.call("engine.start", name="llamacpp", model_id=model))["instance"]
    os.kill(instance["pid"], signal.SIGKILL)
    await hosted.until(lambda: hosted.events("engine.stopped"))
    [error] = hosted.events("engine.error")
    assert "SIGKILL" in error["payload"]["cause"]
    assert hosted.gateway.services.engines.instance(instance["id"])["status"] == "failed"


async def test_an_engine_that_hangs_becomes_unhealthy_and_well_again(hosted: Hosted) -> None:
    model = await hosted.tiny()
    instance = (await hosted.call("engine.start", name="llamacpp", model_id=model))["instance"]
    os.kill(instance["pid"], signal.SIGSTOP)
    await hosted.until(lambda: hosted.events("engine.health_changed"), 30)
    os.kill(instance["pid"], signal.SIGCONT)
    changes = await hosted.until(lambda: (seen := hosted.events("engine.health_changed"))[1:] and seen, 30)
    assert [event["payload"]["new_status"] for event in changes] == ["unhealthy", "healthy"]


@pytest.mark.parametrize(
    ("unit", "arguments", "kind"),
    [
        ("engine.get", {"name": "llamacp"}, NotFound),
        ("engine.stop", {}, InvalidArgument),
        ("engine.stop", {"instance_id": "nothing"}, NotFound),
        ("engine.logs", {"instance_id": "../aima"}, NotFound),
        ("engine.start", {"name": "llamacpp", "model_id": "tiny", "options": {"batch_size": 0}}, InvalidArgument),
        ("engine.start", {"name": "llamacpp", "model_id": "tiny", "options": {"free_flag": "--x"}}, InvalidArgument),
    ],
)
async def test_bad_calls(hosted: Hosted, unit: str, arguments: dict[str, Any], kind: type[AimaError]) -> None:
    with pytest.raises(kind):
        await hosted.gateway.call(unit, arguments)


async def test_a_caller_that_leaves_while_the_process_starts_leaves_none(hosted: Hosted) -> None:
    model, home = await hosted.tiny(), hosted.gateway.services.home.path
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def leave() -> None:
                await hosted.until(lambda: process.read_state(home, "llamacpp-tiny"))
                scope.cancel()

            tasks.start_soon(leave)
            await hosted.gateway.services.engines.start("llamacpp", model)
    assert hosted.gateway.services.engines.instance("llamacpp-tiny")["status"] == "failed"
    assert process.marked(home, "llamacpp-tiny") == []


async def test_another_port_than_that_of_the_running_one_is_refused(hosted: Hosted) -> None:
    instance = (await hosted.call("engine.start", name="llamacpp", model_id=await hosted.tiny()))["instance"]
    port = int(instance["base_url"].rpartition(":")[2])
    with pytest.raises(FailedPrecondition, match=rf"runs already, at http://127.0.0.1:{port}"):
        await hosted.call("engine.start", name="llamacpp", model_id="tiny", port=port - 1)
    assert (await hosted.call("engine.start", name="llamacpp", model_id="tiny", port=port))["instance"] == instance


async def test_lines_since_a_time_are_chosen_by_time_and_not_by_spelling(hosted: Hosted) -> None:
    instance = (await hosted.call("engine.start", name="llamacpp", model_id=await hosted.tiny()))["instance"]
    lines = (await hosted.call("engine.logs", instance_id=instance["id"]))["lines"]
    second = f"{lines[0][:19]}Z"
    elsewhere = datetime.fromisoformat(second).astimezone(timezone(timedelta(hours=9))).isoformat()
    for since in (second, elsewhere):
        assert (await hosted.call("engine.logs", instance_id=instance["id"], since=since))["lines"][0] == lines[0]
    with pytest.raises(InvalidArgument, match="'yesterday' is no RFC 3339 time"):
        await hosted.call("engine.logs", instance_id=instance["id"], since="yesterday")


async def test_a_start_that_was_left_behind_and_cannot_go_on_is_ended(hosted: Hosted) -> None:
    store, home = hosted.gateway.services.store, hosted.gateway.services.home.path
    instance = (await hosted.call("engine.start", name="llamacpp", model_id=await hosted.tiny()))["instance"]
    await store.update("model", "tiny", status="corrupt")
    await store.update("instance", instance["id"], status="starting")  # as a host leaves it that dies during a start
    await hosted.until(lambda: store.get("instance", instance["id"])["status"] == "failed")
    assert process.marked(home, instance["id"]) == []


async def test_two_starts_at_once_are_not_promised_the_same_memory(hosted: Hosted) -> None:
    """Each would fit alone; neither has touched its memory when the other asks."""
    services = hosted.gateway.services
    admission, engine = services.engines._admission, ("llamacpp", None)
    now = (await services.devices.metrics("cpu", 1))["now"]
    free = int(now["memory_total_bytes"] * 0.9) - now["memory_used_bytes"]
    model = services.models.get(await hosted.tiny())
    one = (await hosted.call("model.estimate_resources", model_id="tiny", context_length=1 << 20))["memory"]["kv_cache_bytes"]
    options = {"context_length": 1 << 20, "parallel": int(free * 0.6 / one)}
    retry = {"unit": "engine.start", "arguments": {"name": "llamacpp", "model_id": "tiny"}}
    async with admission.admitted("first", model, engine, "cpu", options, retry, 50):
        with pytest.raises(ResourceExhausted, match="promised"):
            async with admission.admitted("second", model, engine, "cpu", options, retry, 50):
                pass
    async with admission.admitted("second", model, engine, "cpu", options, retry, 50):
        pass
