"""What real starts take: foretold, measured, kept, learned from, and asked of before the next start."""

from __future__ import annotations

from typing import Any

import psutil
import pytest

from aima_lib.errors import ResourceExhausted
from aima_lib.launchers.footprint import measure
from tests.engines.conftest import Hosted

pytestmark = [pytest.mark.anyio, pytest.mark.engine]
OPTIONS = {"context_length": 512, "batch_size": 64}


def rows(hosted: Hosted) -> list[dict[str, Any]]:
    columns = ("instance_id", "model_id", "engine", "version", "context_length", "predicted_bytes", "ready_bytes", "peak_bytes", "source")
    found = hosted.gateway.services.store.read(f"SELECT {', '.join(columns)} FROM measurements ORDER BY started_at")
    return [dict(zip(columns, row, strict=True)) for row in found]


async def estimate(hosted: Hosted, **arguments: Any) -> Any:
    return await hosted.call("model.estimate_resources", model_id="tiny", **arguments)


async def test_a_start_is_measured_and_the_next_estimate_says_so(hosted: Hosted) -> None:
    model = await hosted.tiny()
    options = {"context_length": 512, "batch_size": 512}
    before = await estimate(hosted, context_length=512)
    assert (before["memory"]["basis"], before["memory"]["observations"]) == ("formula", 0)
    instance = (await hosted.call("engine.start", name="llamacpp", model_id=model, options=options))["instance"]
    [row] = rows(hosted)
    assert row["predicted_bytes"] == before["memory"]["total_bytes"]
    assert (row["engine"], row["source"]) == ("llamacpp", "rss")
    taken = psutil.Process(instance["pid"]).memory_info().rss
    assert 0.8 * taken < row["ready_bytes"] <= row["peak_bytes"] <= 1.2 * taken
    after = await estimate(hosted, context_length=512)
    assert (after["memory"]["basis"], after["memory"]["observations"]) == ("measured", 1)
    assert after["memory"]["low_bytes"] <= row["peak_bytes"] <= after["memory"]["high_bytes"]
    near = await estimate(hosted, context_length=1024)
    assert (near["memory"]["basis"], near["memory"]["observations"]) == ("adjusted", 1)
    other = await estimate(hosted, context_length=512, engine="llama-server")
    assert other["memory"]["basis"] == "formula", "another engine's measurements are its own"
    await hosted.call("engine.restart", instance_id=instance["id"])
    assert (await estimate(hosted, context_length=512))["memory"]["observations"] == 2


async def test_the_peak_is_seen_while_it_runs_and_before_its_end(hosted: Hosted) -> None:
    model = await hosted.tiny()
    instance = (await hosted.call("engine.start", name="llamacpp", model_id=model, options=OPTIONS))["instance"]
    ready = rows(hosted)[0]
    await hosted.call("inference.complete", model=instance["id"], prompt="the " * 100, max_tokens=50)
    found = measure([instance["pid"]])
    assert found is not None
    await hosted.call("engine.stop", instance_id=instance["id"])
    [row] = rows(hosted)
    assert row["ready_bytes"] == ready["ready_bytes"]
    assert row["peak_bytes"] >= max(ready["peak_bytes"], found.bytes)
    assert measure([instance["pid"]]) is None


async def test_admission_asks_what_was_measured(hosted: Hosted) -> None:
    """A start that was seen to take more than there is is refused, whatever the formula says."""
    model, store = await hosted.tiny(), hosted.gateway.services.store
    instance = (await hosted.call("engine.start", name="llamacpp", model_id=model, options=OPTIONS))["instance"]
    await hosted.call("engine.stop", instance_id=instance["id"])
    await store.submit(lambda db: db.execute("UPDATE measurements SET peak_bytes = ?", (1 << 50,)))
    with pytest.raises(ResourceExhausted, match="needs up to"):
        await hosted.call("engine.start", name="llamacpp", model_id=model, options=OPTIONS)
    plan = await hosted.gateway.call("model.estimate_resources", {"model_id": model, "context_length": 512})
    assert plan["memory"]["basis"] == "adjusted"


async def test_keys_and_values_of_twice_the_size_take_twice(hosted: Hosted) -> None:
    model, taken = await hosted.tiny(), dict[str, int]()
    for kind in ("f16", "f32"):
        options = {"context_length": 1024, "parallel": 64, "cache_type": kind, "batch_size": 64}
        instance = (await hosted.call("engine.start", name="llamacpp", model_id=model, options=options))["instance"]
        await hosted.call("engine.stop", instance_id=instance["id"])
        taken[kind] = rows(hosted)[-1]["ready_bytes"]
    more = 64 * 1024 * 3 * 2 * 32 * 2  # 64 requests, 3 layers, 2 heads, 16 + 16 numbers, two bytes more for each
    assert taken["f32"] - taken["f16"] == pytest.approx(more, rel=0.5)


async def test_what_runs_what_is_what_the_adapters_say(hosted: Hosted) -> None:
    uri = "aima://models/compatibility"
    found = hosted.gateway.registry.resource(uri)
    assert found is not None
    listed = (await hosted.call("engine.list"))["engines"]
    told = (await hosted.gateway.read(uri))["content"]["rows"]
    for engine in listed:
        own = [row for row in told if row["engine"] == engine["name"] and row["device_id"] == "cpu"]
        assert {row["format"] for row in own} == set(engine["formats"])
        assert {row["task"] for row in own} == set(engine["tasks"])
        assert {row["usable"] for row in own} == {engine["installed"]}
        assert {row["reason"] for row in own} == {engine["reason"]}
    assert {tuple(row["types"]) for row in told if row["task"] == "embed"} == {("embedding",)}


async def test_weights_that_two_engines_have_mapped_are_counted_whole_for_each(hosted: Hosted) -> None:
    """Else the first would seem to take half of what it takes alone."""
    model = await hosted.tiny()
    alone = (await hosted.call("engine.start", name="llamacpp", model_id=model, options=OPTIONS))["instance"]
    first = measure([alone["pid"]])
    await hosted.call("service.create", model_id=model, name="second", engine="llamacpp", options=OPTIONS)
    again = measure([alone["pid"]])
    assert first is not None and again is not None
    assert again.bytes == pytest.approx(first.bytes, rel=0.02)
