"""The pipelines that come with AIMA, run with a real engine: those whose units are all here."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aima_lib import runtime
from aima_lib.infra.home import Home
from aima_lib.registry import Registry
from tests.engines.conftest import Hosted
from tests.playthings import spoken
from tests.workshop import agreed
from tests.world import ROOTS

pytestmark = [pytest.mark.anyio, pytest.mark.engine]
REGISTRY = Registry.described()
TEXTS = ["The sky is blue.", "Grass is green.", "Snow is white."]


def needs(*units: str) -> Any:
    """A mark: skipped while one of these units is missing."""
    lacking = [name for name in units if name not in REGISTRY]
    return pytest.mark.skipif(bool(lacking), reason=f"not here: {', '.join(lacking)}")


@pytest.fixture
async def collection(hosted: Hosted) -> Hosted:
    """A model that chats, one that embeds, and a collection of what it embedded."""
    await hosted.call("service.create", model_id=await hosted.tiny(), name="chatter", options={"context_length": 512})
    await hosted.call("service.create", model_id="tiny", name="embedder", options={"embedding": True})
    embedded = await hosted.call("inference.embed", model="embedder", input=TEXTS)
    await hosted.call("vector.put", collection="colours", embeddings=embedded["embeddings"], documents=TEXTS)
    return hosted


async def test_what_a_model_embedded_is_found_by_itself(collection: Hosted) -> None:
    asked = (await collection.call("inference.embed", model="embedder", input=TEXTS[1]))["embeddings"][0]
    matches = (await collection.call("vector.search", collection="colours", embedding=asked))["matches"]
    assert {match["document"] for match in matches} == set(TEXTS)
    assert matches[0]["document"] == TEXTS[1]
    assert matches[0]["score"] == pytest.approx(1, abs=1e-4)


@needs("pipeline.run", "inference.rerank")
async def test_rag_answers_from_what_is_near(collection: Hosted) -> None:
    given = {"question": TEXTS[2], "collection": "colours", "embed_model": "embedder", "chat_model": "chatter", "search_limit": 2}
    output = (await collection.call("pipeline.run", pipeline_id="rag", input=given))["output"]
    assert output["answer"]
    assert output["sources"][0]["document"] == TEXTS[2]
    assert len(output["sources"]) == 2


@needs("pipeline.run")
async def test_a_batch_is_answered_in_its_order(collection: Hosted) -> None:
    given = {"prompts": TEXTS, "model": "chatter", "max_tokens": 4}
    output = (await collection.call("pipeline.run", pipeline_id="batch_inference", input=given))["output"]
    assert len(output["answers"]) == 3
    assert output["finish_reasons"] == ["length"] * 3


@pytest.fixture
async def talking(home: Home, fixtures: Path, tmp_path: Path, anyio_backend: str) -> AsyncIterator[Hosted]:
    """A model that takes its time over what it is told to say, and a voice."""
    script = tmp_path / "llama-server"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).parents[1] / "paced_engine.py"} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    engines = f'[engines]\ngrace_seconds = 1\nllama_server = "{script}"\nespeak_ng = "{fixtures / "espeak-ng"}"\n'
    (home.path / "config.toml").write_text(engines + ROOTS, encoding="utf-8")
    async with runtime.host(home) as gateway:
        hosted = Hosted(gateway, fixtures)
        await hosted.call("service.create", model_id=await hosted.tiny(), engine="llama-server")
        await hosted.call("engine.install", name="espeak-ng")
        await hosted.call("service.create", model_id="espeak-ng")
        try:
            yield hosted
        finally:
            for service in (await gateway.call("service.list"))["services"]:
                await agreed(gateway, "service.delete", {"service_id": service["id"]})


def said(text: str, **more: Any) -> dict[str, Any]:
    """A pipeline that speaks what a model says."""
    words = json.dumps({"say": text, "pace": 0.1})
    return {
        "name": "said",
        "steps": [
            {"id": "chat", "type": "inference.chat", "input": {"model": "tiny", "messages": [{"role": "user", "content": words}]}},
            {"id": "speak", "type": "inference.synthesize", "input": {"model": "espeak-ng", "text": "${steps.chat.response}", **more}},
        ],
    }


@pytest.mark.parametrize("begins", [True, False])
async def test_speech_begins_at_the_first_sentence_and_its_record_is_of_the_whole(talking: Hosted, begins: bool) -> None:
    text = "This is the first sentence. Here comes the second! And Dr. Who says the third one"
    more = {} if begins else {"format": "pcm"}  # of which no two can be joined
    await talking.gateway.call("pipeline.create", said(text, **more))
    run = await talking.call("pipeline.run", pipeline_id="said")
    output = run["output"]["speak"]
    kinds = ("inference.request_started", "inference.request_completed")
    told = [(event["type"].rpartition("_")[2], event["payload"]["task"]) for event in await talking.until(lambda: talking.events(*kinds))]
    assert (told.index(("started", "synthesize")) < told.index(("completed", "chat"))) == begins
    assert told.count(("started", "synthesize")) == (3 if begins else 1)
    steps = (await talking.call("pipeline.status", run_id=run["run_id"]))["steps"]
    assert [(step["status"], step["attempts"]) for step in steps] == [("succeeded", 1)] * 2
    assert len((await talking.call("blob.list"))["blobs"]) == 1, "those of the sentences are gone"
    sound = base64.b64decode((await talking.gateway.read(output["audio"]))["content"]["content"])
    assert output["size_bytes"] == len(sound)
    if begins:
        assert sound == spoken(text.replace(". H", ".H").replace("! A", "!A"))
        assert output["duration_seconds"] == pytest.approx((len(text) - 2) / 100, abs=0.01)


async def test_what_cannot_be_spoken_fails_its_own_step(talking: Hosted) -> None:
    await talking.gateway.call("pipeline.create", said("This is the first sentence. Here comes the second!", voice="nobody"))
    with pytest.raises(Exception, match=r"step speak: .*there is no such voice"):
        await talking.call("pipeline.run", pipeline_id="said")
    [run] = talking.gateway.services.store.find("run", unit="pipeline.run")
    steps = (await talking.call("pipeline.status", run_id=run["id"]))["steps"]
    assert [step["status"] for step in steps] == ["succeeded", "failed"]
