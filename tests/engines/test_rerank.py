"""Ranks by llama.cpp: only of a model that has a head for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from aima_lib.errors import FailedPrecondition, InvalidArgument
from tests.engines.conftest import Hosted
from tests.tiny_rank import write_tiny_rank

pytestmark = [pytest.mark.anyio, pytest.mark.engine]


async def test_a_model_with_a_head_ranks(hosted: Hosted, tmp_path: Path) -> None:
    model = (await hosted.call("model.import", path=str(write_tiny_rank(tmp_path / "rank.gguf"))))["model"]
    assert (model["type"], model["capabilities"]) == ("rerank", ["rerank"])
    await hosted.call("service.create", model_id="rank", options={"context_length": 128})
    found = await hosted.call("inference.rerank", model="rank", query="a b", documents=["a b c", "x y", "z"], top_n=2)
    assert len(found["results"]) == 2 and found["results"][0]["score"] >= found["results"][1]["score"]
    assert found["usage"]["total_tokens"] > 0
    with pytest.raises(FailedPrecondition, match="can rerank, not chat"):
        await hosted.call("inference.chat", model="rank", messages=[{"role": "user", "content": "a"}])


async def test_a_model_without_one_is_refused_whatever_it_is_called(hosted: Hosted, tmp_path: Path) -> None:
    await hosted.tiny()
    write_tiny_rank(tmp_path / "encoder.gguf", head=False)
    await hosted.call("model.import", path=str(tmp_path / "encoder.gguf"), name="so-called", type="rerank")
    for engine in ("llamacpp", "llama-server"):
        with pytest.raises(InvalidArgument, match="has no head for ranks"):
            await hosted.call("engine.start", name=engine, model_id="so-called")
    with pytest.raises(FailedPrecondition, match="no engine reads so-called"):
        await hosted.call("service.create", model_id="so-called")


async def test_an_onnx_encoder_without_a_head_does_not_start(hosted: Hosted, fixtures: Path, tmp_path: Path) -> None:
    import numpy
    from onnx import TensorProto, helper

    from tests.playthings import save, write_tokenizer

    folder = tmp_path / "encoder"
    folder.mkdir()
    write_tokenizer(folder)
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["numbers", "last"], ["narrow"]),
        helper.make_node("Mul", ["narrow", "eight"], ["last_hidden_state"]),
    ]
    fixed = {"last": numpy.array([2]), "eight": numpy.ones((1, 1, 8), numpy.float32)}
    inputs = {name: (TensorProto.INT64, ["n", "t"]) for name in ("input_ids", "attention_mask")}
    save(folder / "model.onnx", nodes, inputs, {"last_hidden_state": (TensorProto.FLOAT, ["n", "t", 8])}, fixed)
    await hosted.call("model.import", path=str(folder), name="encoder-ranks", type="rerank")
    with pytest.raises(FailedPrecondition, match="it has no head for ranks"):
        await hosted.call("service.create", model_id="encoder-ranks")
    await hosted.call("model.import", path=str(folder), name="encoder", type="embedding", mode="copy")
    await hosted.call("model.create", name="encoder-embeds", type="embedding", path=str(folder))
    await hosted.call("service.create", model_id="encoder-embeds")
    vectors = (await hosted.call("inference.embed", model="encoder-embeds", input=["cats sleep", "cats sleep", "a b where"]))["embeddings"]
    assert vectors[0] == vectors[1] and sum(number * number for number in vectors[2]) == pytest.approx(1)
    with pytest.raises(InvalidArgument, match=r"has \d+ tokens and the model holds 512"):
        await hosted.call("inference.embed", model="encoder-embeds", input=["cats " * 600])
    await hosted.call("engine.stop", name="onnx", force=True)
