"""What a served model does under load: measured, judged, kept, and weighed by catalog.match."""

from __future__ import annotations

from typing import Any

import pytest

from aima_lib.catalog.benchmark import PROMPTS, digest, impossible
from aima_lib.errors import AimaError, NotFound
from tests.engines.conftest import Hosted

pytestmark = pytest.mark.anyio
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "title": "Random weights",
    "type": "llm",
    "engines": ["llamacpp"],
    "license": "mit",
    "size_bytes": 1_000_000,
    "memory_bytes": 90_000_000,
    "sources": [{"source": "huggingface", "repo": "a/b", "evidence": "unverified"}],
    "evidence": {"size_bytes": "unverified", "memory_bytes": "unverified"},
}


@pytest.mark.engine
async def test_a_service_is_measured_and_the_recipe_is_measured_here(hosted: Hosted) -> None:
    await hosted.tiny()
    await hosted.call("service.create", model_id="tiny")
    await hosted.call("catalog.create_recipe", recipe=RECIPE)
    found = (await hosted.call("catalog.match", recipe_id="tiny"))["recipes"][0]
    assert found["evidence"]["kind"] == "unverified" and found["evidence"]["weight"] == 0
    made = (await hosted.call("benchmark.run", model="tiny", requests=6, max_tokens=8, concurrency=2))["benchmark"]
    assert (made["model_id"], made["service_id"], made["engine"]) == ("tiny", "tiny", "llamacpp")
    assert (made["requests"], made["failures"], made["completion_tokens"], made["prompts_digest"]) == (6, 0, 48, digest(PROMPTS))
    assert made["tokens_per_second"] > 0 and 0 < made["ttft_ms"]["p50"] <= made["ttft_ms"]["p99"] <= made["duration_seconds"] * 1000
    assert made["hardware"]["fingerprint"] and made["engine_version"] and made["hardware"]["device_id"] == "cpu"
    assert impossible(made) is None
    listed = await hosted.call("benchmark.list", model_id="tiny")
    assert listed == {"benchmarks": [made], "total": 1}
    assert (await hosted.call("benchmark.list", engine="vllm"))["total"] == 0
    known = (await hosted.call("catalog.match", recipe_id="tiny"))["recipes"][0]
    assert (known["evidence"]["kind"], known["evidence"]["weight"], known["evidence"]["benchmark_id"]) == ("measured here", 1, made["id"])
    assert known["score"] > found["score"] and known["evidence"]["figures"]["tokens_per_second"] == made["tokens_per_second"]
    store = hosted.gateway.services.store
    await store.update("benchmark", made["id"], engine_version="0.0.1")
    older = (await hosted.call("catalog.match", recipe_id="tiny"))["recipes"][0]
    assert older["evidence"]["weight"] == 0.6 and "engine 0.0.1, now" in older["evidence"]["text"]
    [event] = hosted.events("benchmark.completed")
    assert event["payload"]["benchmark_id"] == made["id"]


async def test_what_nobody_serves_is_not_measured(hosted: Hosted) -> None:
    await hosted.tiny()
    for name in ("tiny", "nobody"):
        with pytest.raises(NotFound, match="nothing serves"):
            await hosted.call("benchmark.run", model=name)
    assert (await hosted.call("benchmark.list"))["total"] == 0


@pytest.mark.engine
async def test_an_engine_that_fails_leaves_no_record(hosted: Hosted) -> None:
    await hosted.tiny()
    await hosted.call("service.create", model_id="tiny", options={"context_length": 64})
    with pytest.raises(AimaError):
        await hosted.call("benchmark.run", model="tiny", prompts=["word " * 500], max_tokens=4)
    assert (await hosted.call("benchmark.list"))["total"] == 0


GOOD: dict[str, Any] = {
    "tokens_per_second": 24.0,
    "ttft_ms": {"p50": 40.0, "p99": 90.0},
    "duration_seconds": 2.0,
    "completion_tokens": 48,
    "requests": 6,
    "max_tokens": 8,
    "memory_bytes": 1_000_000,
}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"tokens_per_second": 0.0, "completion_tokens": 0}, "not a token"),
        ({"tokens_per_second": float("nan")}, "no number"),
        ({"tokens_per_second": float("inf")}, "no number"),
        ({"tokens_per_second": 2e6}, "tokens a second"),
        ({"ttft_ms": {"p50": -1.0, "p99": 5.0}}, "first token after -1"),
        ({"ttft_ms": {"p50": 0.0, "p99": 5.0}}, "first token after 0"),
        ({"ttft_ms": {"p50": 5.0, "p99": 9_000.0}}, "in 2 s in all"),
        ({"completion_tokens": 60, "tokens_per_second": 30.0}, "more than 6 x 8"),
        ({"tokens_per_second": 48.0}, "are not 48 a second"),
        ({"memory_bytes": 0}, "no memory"),
    ],
)
async def test_figures_that_cannot_be_true_are_refused(changes: dict[str, Any], why: str) -> None:
    assert impossible(GOOD) is None
    assert why in str(impossible(GOOD | changes))
