"""Vectors kept and found again, through a hosted home."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from aima_lib.errors import AimaError, InvalidArgument, NotFound, ResourceExhausted
from aima_lib.gateway import Gateway
from aima_lib.services import vectors as module
from tests.workshop import agreed

pytestmark = pytest.mark.anyio


async def found(hosted: Gateway, embedding: list[float], **given: Any) -> list[str]:
    answer = await hosted.call("vector.search", {"collection": "c", "embedding": embedding, **given})
    return [match["id"] for match in answer["matches"]]


async def put(hosted: Gateway, **vectors: list[float]) -> dict[str, Any]:
    answer = await hosted.call("vector.put", {"collection": "c", "ids": [*vectors], "embeddings": [*vectors.values()]})
    return dict(answer["collection"])


@pytest.mark.parametrize("native", [True, False])
async def test_the_nearest_come_first_whoever_compares(hosted: Gateway, monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    if not native:
        monkeypatch.setattr(module, "_extension", lambda: None)
    chance = random.Random(1)
    vectors = {f"v{place}": [chance.gauss(0, 1) for _ in range(24)] for place in range(200)}
    assert (await put(hosted, **vectors))["count"] == 200
    asked = [chance.gauss(0, 1) for _ in range(24)]

    def cosine(one: list[float]) -> float:
        return sum(a * b for a, b in zip(one, asked, strict=True)) / math.hypot(*one) / math.hypot(*asked)

    expected = sorted(vectors, key=lambda id: -cosine(vectors[id]))
    answer = await hosted.call("vector.search", {"collection": "c", "embedding": asked, "limit": 50})
    assert [match["id"] for match in answer["matches"]] == expected[:50]
    assert all(abs(match["score"] - cosine(vectors[match["id"]])) < 1e-6 for match in answer["matches"])
    least = cosine(vectors[expected[20]])
    assert await found(hosted, asked, limit=1000, min_score=least - 1e-7) == expected[:21]


async def test_an_id_that_is_there_gets_what_is_new(hosted: Gateway) -> None:
    await put(hosted, a=[1, 0], b=[0, 1])
    assert (await put(hosted, a=[0, -1]))["count"] == 2
    assert await found(hosted, [0, -1]) == ["a", "b"]
    assert (await put(hosted, a=[0, -1]))["count"] == 2


async def test_facts_are_compared_as_json(hosted: Gateway) -> None:
    facts: list[dict[str, Any]] = [{"x": 1}, {"x": True}, {"x": "1"}, {"x": None}, {}, {"x": 1.5, "y.z": 'a "quoted" é'}]
    given = {"collection": "c", "ids": [*"abcdef"], "embeddings": [[1, place / 10] for place in range(6)], "metadatas": facts}
    await hosted.call("vector.put", given)
    for wanted, ids in [(1, "a"), (1.0, "a"), (True, "b"), ("1", "c"), (None, "d"), (1.5, "f"), ([1, "1", 7], "ac"), ([], "")]:
        assert await found(hosted, [1, 0], filter={"x": wanted}) == [*ids], wanted
    assert await found(hosted, [1, 0], filter={"y.z": 'a "quoted" é', "x": 1.5}) == ["f"]
    assert await found(hosted, [1, 0], filter={"x": 1, "y.z": "a"}) == []
    with pytest.raises(InvalidArgument):
        await found(hosted, [1, 0], filter={"x') OR 1=1 --": 1})


async def test_deleting_takes_what_is_named_and_asks_first(hosted: Gateway) -> None:
    await put(hosted, a=[1, 0], b=[0, 1], c=[1, 1], d=[1, 2])
    await hosted.call("vector.put", {"collection": "c", "ids": ["e"], "embeddings": [[3, 1]], "metadatas": [{"old": True}]})
    assert (await agreed(hosted, "vector.delete", {"collection": "c", "ids": ["a", "x", "b"]}))["deleted"] == 2
    assert (await agreed(hosted, "vector.delete", {"collection": "c", "filter": {"old": True}}))["deleted"] == 1
    assert (await hosted.call("vector.list", {}))["collections"][0]["count"] == 2
    assert (await agreed(hosted, "vector.delete", {"collection": "c", "whole": True}))["deleted"] == 2
    assert await hosted.call("vector.list", {}) == {"collections": [], "total": 0}
    with pytest.raises(NotFound):
        await found(hosted, [1, 0])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"embeddings": [[1, 0], [1, 0, 0]], "ids": ["a", "b"]}, "embeddings.1: it has 3 numbers"),
        ({"embeddings": [[0, 0]], "ids": ["a"]}, "embeddings.0: it has no direction"),
        ({"embeddings": [[1.7e308, 1.7e308]], "ids": ["a"]}, "embeddings.0: it has no direction"),
        ({"embeddings": [[1, 0]]}, "ids: they are missing"),
        ({"embeddings": [[1, 0], [0, 1]], "ids": ["a", "a"]}, "ids: one is there twice"),
        ({"embeddings": [[1, 0], [0, 1]], "ids": ["a"]}, "ids: there are 1 for 2"),
        ({"embeddings": [[1, 0]], "ids": ["a"], "documents": ["x", "y"]}, "documents: there are 2 for 1"),
        ({"embeddings": [[1, 0]], "documents": ["x"], "metadatas": [{}, {}]}, "metadatas: there are 2 for 1"),
        ({"embeddings": [[1, 0]], "documents": ["x"], "metadatas": [{"a b": 1}]}, "metadatas.0"),
        ({"embeddings": [[1] * 5000], "ids": ["a"]}, "embeddings.0"),
    ],
)
async def test_what_does_not_fit_is_refused_and_nothing_is_kept(hosted: Gateway, given: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        await hosted.call("vector.put", {"collection": "c", **given})
    assert (await hosted.call("vector.list", {}))["total"] == 0


async def test_a_collection_has_one_length_and_an_end(hosted: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    await put(hosted, a=[1, 0])
    for call in (put(hosted, b=[1, 0, 0]), found(hosted, [1, 0, 0])):
        with pytest.raises(InvalidArgument, match="3 numbers, those of c have 2"):
            await call
    monkeypatch.setattr(module, "MOST_BYTES", 16)
    await put(hosted, a=[0, 1], b=[1, 1])
    with pytest.raises(ResourceExhausted):
        await put(hosted, c=[1, 2], d=[1, 3])
    monkeypatch.setattr(module, "MOST", 1)
    with pytest.raises(ResourceExhausted):
        await hosted.call("vector.put", {"collection": "d", "ids": ["a"], "embeddings": [[1]]})
    assert sorted(await found(hosted, [1, 0])) == ["a", "b"]


async def test_no_error_repeats_a_text(hosted: Gateway) -> None:
    with pytest.raises(AimaError) as error:
        await hosted.call("vector.put", {"collection": "c", "embeddings": [[1]], "documents": ["private words", 3]})
    assert "private" not in str(error.value.as_dict())
