"""The pipelines that come with AIMA, run with a real engine: those whose units are all here."""

from __future__ import annotations

from typing import Any

import pytest

from aima_lib.registry import Registry
from tests.engines.conftest import Hosted

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
