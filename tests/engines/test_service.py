"""Services: wanted, so running."""

from __future__ import annotations

import os
import signal
from typing import Any

import anyio
import pytest

from aima_lib.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from aima_lib.launchers import process
from tests.engines.conftest import Hosted
from tests.engines.test_engine import _spoil

pytestmark = [pytest.mark.anyio, pytest.mark.engine]


async def wait(hosted: Hosted, service_id: str, status: str, seconds: float = 15) -> dict[str, Any]:
    serving = hosted.gateway.services.serving
    return await hosted.until(lambda: (row := serving.get(service_id))["status"] == status and row, seconds)


async def test_the_life_of_a_service(hosted: Hosted) -> None:
    model = await hosted.tiny()
    service = (await hosted.call("service.create", model_id=model))["service"]
    assert (service["status"], service["ready_replicas"], service["health"]) == ("running", 1, "healthy")
    assert (await hosted.call("service.create", model_id=model))["service"]["instance_id"] == service["instance_id"]
    with pytest.raises(AlreadyExists, match="options is"):
        await hosted.call("service.create", model_id=model, options={"threads": 1})
    with pytest.raises(FailedPrecondition, match="in use by the service tiny"):
        await hosted.call("engine.stop", instance_id=service["instance_id"])
    await hosted.call("inference.chat", model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=2)
    metrics = (await hosted.call("service.status", service_id="tiny"))["metrics"]
    assert metrics["error_rate"] == 0
    assert metrics["ttft_p50_ms"] > 0
    assert (await hosted.call("service.stop", service_id="tiny"))["service"]["status"] == "stopped"
    with pytest.raises(FailedPrecondition, match="the service tiny is stopped") as caught:
        await hosted.call("inference.chat", model="tiny", messages=[{"role": "user", "content": "hi"}])
    await hosted.gateway.call(caught.value.next[0]["unit"], caught.value.next[0]["arguments"])
    assert (await hosted.call("service.get", service_id="tiny"))["service"]["status"] == "running"
    assert (await hosted.call("service.delete", service_id="tiny"))["freed_bytes"] > 5 << 20
    with pytest.raises(NotFound):
        await hosted.call("service.get", service_id="tiny")
    seen = await hosted.until(lambda: (found := hosted.events("service.*"))[4:] and found)
    assert [event["type"].removeprefix("service.") for event in seen] == ["created", "started", "stopped", "started", "stopped"]


async def test_a_service_that_cannot_start_stays_as_failed_and_says_how_to_go_on(hosted: Hosted) -> None:
    model = await hosted.tiny()
    weights = hosted.gateway.services.models.path(hosted.gateway.services.store.get("model", model))
    whole = weights.read_bytes()
    await anyio.to_thread.run_sync(_spoil, weights)
    with pytest.raises(FailedPrecondition, match="invalid magic") as caught:
        await hosted.call("service.create", model_id=model)
    assert [call["unit"] for call in caught.value.next][-2:] == ["service.start", "service.delete"]
    failed = (await hosted.call("service.get", service_id="tiny"))["service"]
    assert failed["status"] == "failed"
    assert "invalid magic" in failed["error"]
    assert len(hosted.events("service.failed")) == 1
    assert hosted.events("service.restarted") == []
    weights.resolve().write_bytes(whole)
    assert (await hosted.call("service.start", service_id="tiny"))["service"]["status"] == "running"


async def test_a_model_that_the_engine_cannot_read_makes_no_service(hosted: Hosted) -> None:
    model = await hosted.tiny()
    for plan in (True, False):
        with pytest.raises(InvalidArgument, match=r"ollama reads remote; tiny is gguf") as caught:
            await (hosted.gateway.plan if plan else hosted.gateway.call)("service.create", {"model_id": model, "engine": "ollama"})
        assert caught.value.next == [{"unit": "engine.list", "arguments": {}}]
    assert (await hosted.call("service.list"))["services"] == []


async def test_a_service_whose_engine_is_killed_is_restarted_and_says_so(hosted: Hosted) -> None:
    model = await hosted.tiny()
    service = (await hosted.call("service.create", model_id=model))["service"]
    os.kill(hosted.gateway.services.engines.instance(service["instance_id"])["pid"], signal.SIGKILL)
    await hosted.until(lambda: hosted.events("service.restarted"), 10)
    again = await wait(hosted, "tiny", "running")
    assert again["error"] is None
    [restart] = hosted.events("service.restarted")
    assert restart["payload"]["attempt"] == 1
    assert restart["payload"]["delay_seconds"] == 1
    assert "SIGKILL" in restart["payload"]["cause"]
    assert (await hosted.call("service.status", service_id="tiny"))["restarts"] == 1


async def test_a_start_that_is_cancelled_leaves_nothing_behind(hosted: Hosted) -> None:
    model = await hosted.tiny()
    run = await hosted.gateway.start("service.create", {"model_id": model})
    await hosted.until(lambda: hosted.events("engine.start_progress"), 5)
    await hosted.call("run.cancel", run_id=run["id"])
    if (await hosted.call("run.get", run_id=run["id"]))["run"]["status"] == "cancelled":  # it may have been faster
        await wait(hosted, "tiny", "stopped")
    assert hosted.events("service.restarted") == []


async def test_a_failed_service_gives_way_to_what_its_error_advised(hosted: Hosted) -> None:
    model = await hosted.tiny()
    with pytest.raises(ResourceExhausted) as caught:
        await hosted.call("service.create", model_id=model, name="big", options={"context_length": 1 << 20, "parallel": 64})
    advised = caught.value.next[0]
    assert advised["unit"] == "service.create" and advised["arguments"]["name"] == "big"
    small = await hosted.call("service.create", **advised["arguments"] | {"options": {"context_length": 256}})
    assert small["service"]["status"] == "running" and small["service"]["options"] == {"context_length": 256}


async def test_a_start_that_overtakes_a_delete_leaves_no_process(hosted: Hosted) -> None:
    await hosted.call("service.create", model_id=await hosted.tiny())
    services = hosted.gateway.services
    async with anyio.create_task_group() as tasks, services.serving.locks["tiny"]:  # as a service.start holds it that came before
        tasks.start_soon(services.serving.delete, "tiny")
        await hosted.until(lambda: services.engines.instance("llamacpp-tiny")["status"] == "stopped")
        await services.store.update("service", "tiny", desired_replicas=1)
        await services.engines.start("llamacpp", "tiny", {}, service_id="tiny")
    assert process.marked(services.home.path, "llamacpp-tiny") == []
    assert services.store.find("instance") == []


async def test_services_with_long_names_have_engines_of_their_own(hosted: Hosted) -> None:
    model, ids = await hosted.tiny(), set()
    for name in ("n" * 63 + "a", "n" * 63 + "b"):
        service = (await hosted.call("service.create", model_id=model, name=name, options={"context_length": 256}))["service"]
        ids.add(service["instance_id"])
        assert (await hosted.call("service.logs", service_id=service["id"]))["lines"]
    assert len(ids) == 2


async def test_a_deleted_service_leaves_no_key_behind(hosted: Hosted) -> None:
    model = await hosted.tiny()
    await hosted.call("service.create", model_id=model, name="gone")
    folder = hosted.gateway.services.home.path / "instances" / "llamacpp-gone"
    assert (folder / "key").exists()
    await hosted.call("service.delete", service_id="gone")
    assert not folder.exists()
