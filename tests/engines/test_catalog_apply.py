"""A recipe put to work, from nothing to an answer; what a failure undoes, and what it leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from aima_lib import runtime
from aima_lib.door import Caller
from aima_lib.errors import AimaError, Cancelled, FailedPrecondition, NotFound, PermissionDenied, ResourceExhausted
from aima_lib.infra.home import Home
from tests.engines.conftest import Hosted
from tests.hub import Fault, Hub
from tests.tiny import write_tiny_gguf
from tests.workshop import agreed

pytestmark = [pytest.mark.anyio, pytest.mark.engine]
WEIGHTS = "/a/m/m-f32.gguf"
SOURCE = {"source": "huggingface", "repo": "a/m", "evidence": "unverified"}


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Hub]:
    """A hub with one model, and an index with one engine that does nothing."""
    with Hub(tmp_path / "shop") as hub:
        hub.add_repo("a/m", {"m-f32.gguf": write_tiny_gguf(tmp_path / "m.gguf").read_bytes()})
        info = "piper_tts-1.8.0.dist-info"
        files = {"piper/__init__.py": b"", f"{info}/METADATA": b"Metadata-Version: 2.1\nName: piper-tts\nVersion: 1.8.0\n"}
        files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        hub.add_wheel("piper-tts", "1.8.0", files | {f"{info}/RECORD": "".join(f"{name},,\n" for name in files).encode()})
        yield hub


@pytest.fixture
async def hosted(home: Home, fixtures: Path, shop: Hub, anyio_backend: str) -> AsyncIterator[Hosted]:
    (home.path / "config.toml").write_text(f"[engines]\ngrace_seconds = 1\nstart_timeout_seconds = 30\n{shop.config}", encoding="utf-8")
    async with runtime.host(home) as gateway:
        try:
            yield Hosted(gateway, fixtures)
        finally:
            for service in (await gateway.call("service.list"))["services"]:
                await agreed(gateway, "service.delete", {"service_id": service["id"]})


async def made(hosted: Hosted, **changes: Any) -> str:
    base = {"name": "mine", "title": "My own", "type": "llm", "engines": ["llamacpp"], "license": "mit", "size_bytes": 1_000_000}
    known = {"size_bytes": "unverified", "memory_bytes": "unverified"}
    recipe = {**base, "memory_bytes": 90_000_000, "sources": [SOURCE], "evidence": known, **changes}
    return str((await hosted.call("catalog.create_recipe", recipe=recipe))["recipe"]["id"])


async def left(hosted: Hosted) -> tuple[list[str], list[str]]:
    models, services = await hosted.call("model.list"), await hosted.call("service.list")
    return [each["id"] for each in models["models"]], [each["id"] for each in services["services"]]


async def refused(hosted: Hosted, recipe_id: str, **more: Any) -> AimaError:
    with pytest.raises(AimaError) as caught:
        await hosted.call("catalog.apply_recipe", recipe_id=recipe_id, **more)
    return caught.value


async def status(hosted: Hosted) -> Mapping[str, Any]:
    return await hosted.call("catalog.check_status", recipe_id="mine")


async def test_from_nothing_to_an_answer_and_again(hosted: Hosted) -> None:
    missing = {**SOURCE, "repo": "a/nobody"}
    await made(hosted, sources=[missing, SOURCE], options={"context_length": 512}, service={"priority": 60})
    assert (await status(hosted))["status"] == "absent"
    plan = await hosted.gateway.plan("catalog.apply_recipe", {"recipe_id": "mine"})
    assert [thing["id"] for thing in plan["changes"]["creates"]] == ["mine", "mine"] and plan["changes"]["download_bytes"] == 1_000_000
    told = await hosted.call("catalog.apply_recipe", recipe_id="mine")
    assert (told["service_id"], told["engine"], told["made"]) == ("mine", "llamacpp", ["model:mine", "service:mine"])
    assert told["test"]["answer"] and told["test"]["unit"] == "inference.chat"
    assert len(told["notes"]) == 1 and "a/nobody" in told["notes"][0]
    service = (await hosted.call("service.get", service_id="mine"))["service"]
    assert (service["options"], service["priority"]) == ({"context_length": 512}, 60)
    stands = await status(hosted)
    assert (stands["status"], stands["differences"], stands["model"]["intact"]) == ("applied", [], True)
    again = await hosted.call("catalog.apply_recipe", recipe_id="mine")
    assert again["made"] == [] and again["service_id"] == "mine"
    types = ("catalog.recipe_matched", "catalog.recipe_applied")
    assert [event["type"] for event in hosted.events(*types)] == [types[0], types[1], types[1]]  # what runs is not matched again
    assert (await hosted.gateway.plan("catalog.apply_recipe", {"recipe_id": "mine"}))["changes"]["creates"] == []
    await look_at_what_really_stands(hosted)


async def look_at_what_really_stands(hosted: Hosted) -> None:
    """Files and processes, not records."""
    await hosted.call("service.stop", service_id="mine")
    assert ((await status(hosted))["status"], (await status(hosted))["service"]["status"]) == ("partial", "stopped")
    await hosted.call("service.update", service_id="mine", options={"context_length": 256})
    assert (await status(hosted))["differences"] == ["options.context_length: 256 there, 512 in the recipe"]
    file = next(iter((hosted.gateway.services.home.path / "models" / "mine").iterdir()))
    file.unlink()
    assert (await status(hosted))["model"]["intact"] is False


async def test_what_it_made_is_undone_and_what_was_there_stays(hosted: Hosted) -> None:
    await made(hosted, limits={"answer_seconds": 0.001})
    error = await refused(hosted, "mine")
    assert isinstance(error, FailedPrecondition) and "its limit is 0.001" in str(error)
    assert error.details["undone"] == ["service:mine", "model:mine"] and await left(hosted) == ([], [])
    await hosted.call("model.pull", repo="a/m", name="mine", source="huggingface")
    error = await refused(hosted, "mine")
    assert error.details["undone"] == ["service:mine"] and await left(hosted) == (["mine"], [])
    await hosted.call("service.create", model_id="mine")
    await hosted.call("service.stop", service_id="mine")
    error = await refused(hosted, "mine")
    assert error.details["undone"] == [] and await left(hosted) == (["mine"], ["mine"])
    assert (await hosted.call("service.get", service_id="mine"))["service"]["status"] == "stopped"  # as it was
    await hosted.call("service.start", service_id="mine")
    await refused(hosted, "mine")
    assert (await hosted.call("service.get", service_id="mine"))["service"]["status"] == "running"
    assert [run["status"] for run in (await hosted.call("run.list", unit="catalog.apply_recipe"))["runs"]] == ["failed"] * 4


async def test_an_engine_that_it_installed_goes_too(hosted: Hosted) -> None:
    engine = [{"name": "piper", "version": "1.8.0"}]
    await made(hosted, name="voice", type="tts", engines=engine, sources=[{**SOURCE, "repo": "a/nobody"}])
    assert "not installed" in str(await refused(hosted, "voice", skip_engine=True))
    error = await refused(hosted, "voice")
    assert isinstance(error, NotFound) and error.details["undone"] == ["engine:piper"]
    assert not list((hosted.gateway.services.home.path / "engines").glob("piper-*/bin"))
    piper = (await hosted.call("engine.get", name="piper"))["engine"]
    assert piper["installed"] is False


async def test_cancelled_in_the_middle_it_undoes_itself(hosted: Hosted, shop: Hub) -> None:
    await made(hosted)
    shop.faults[WEIGHTS] = Fault(bytes_per_second=100_000)
    run = await hosted.gateway.start("catalog.apply_recipe", {"recipe_id": "mine"})
    await hosted.until(lambda: (hosted.gateway.runs.get(run["id"])["progress"] or {}).get("phase") == "downloading")
    child = hosted.gateway.services.store.find("run", parent=run["id"], unit="model.pull")
    await hosted.call("run.cancel", run_id=run["id"])
    ended = (await hosted.call("run.get", run_id=run["id"]))["run"]
    assert (ended["status"], ended["error"]["code"]) == ("cancelled", Cancelled.code) and await left(hosted) == ([], [])
    assert hosted.gateway.services.store.get("run", child[0]["id"])["status"] == "cancelled"


async def test_two_at_once_make_one(hosted: Hosted, shop: Hub) -> None:
    await made(hosted)
    shop.faults[WEIGHTS] = Fault(bytes_per_second=1_000_000)
    told: list[Mapping[str, Any]] = []

    async def apply() -> None:
        told.append(await hosted.call("catalog.apply_recipe", recipe_id="mine"))

    async with anyio.create_task_group() as both:
        both.start_soon(apply)
        both.start_soon(apply)
    assert [each["made"] for each in told] == [["model:mine", "service:mine"], []]
    assert await left(hosted) == (["mine"], ["mine"])


async def test_what_does_not_fit_or_may_not_be_is_refused_before_anything_is_made(hosted: Hosted, shop: Hub) -> None:
    before = sum(shop.counts.values())
    await made(hosted, name="huge", memory_bytes=10**13, size_bytes=10**12)
    assert isinstance(await refused(hosted, "huge"), ResourceExhausted)
    await made(hosted, name="elsewhere", hardware={"vendors": ["nobody"]})
    assert "it is for nobody" in str(await refused(hosted, "elsewhere"))
    with pytest.raises(ResourceExhausted):
        await hosted.gateway.plan("catalog.apply_recipe", {"recipe_id": "huge"})
    await made(hosted)
    writer = Caller("writer", frozenset({"read", "write"}))
    with pytest.raises(PermissionDenied, match=r"inference\.chat"):
        await hosted.gateway.call("catalog.apply_recipe", {"recipe_id": "mine"}, caller=writer)
    assert "skip_models leaves it so" in str(await refused(hosted, "mine", skip_models=True))
    with pytest.raises(NotFound, match="no recipe called"):
        await hosted.call("catalog.apply_recipe", recipe_id="mime")
    assert sum(shop.counts.values()) == before and await left(hosted) == ([], [])
