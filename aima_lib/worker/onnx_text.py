"""Texts as vectors, and pairs of texts as ranks: encoders in ONNX with a tokenizer.json beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from aima_lib.worker.base import Alive, Spec, Wrong
from aima_lib.worker.onnx import beside, session

BATCH, MOST_TOKENS = 16, 512
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def load(spec: Spec) -> Encoder:
    """What the spec's model is for."""
    return Reranker(spec) if "rerank" in spec["tasks"] else Embedder(spec)


class Encoder:
    """A network that takes tokens."""

    def __init__(self, spec: Spec) -> None:
        from tokenizers import Tokenizer

        path = beside(spec, "tokenizer.json")
        if path is None:
            raise Wrong("there is no tokenizer.json beside the weights")
        self._session, self.device = session(spec)
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._inputs = {node.name for node in self._session.get_inputs()}
        self._pooling, self._longest = spec.get("pooling") or "mean", int(spec.get("context_length") or MOST_TOKENS)
        if "input_ids" not in self._inputs or not self._inputs <= set(INPUTS):
            raise Wrong(f"it takes {', '.join(sorted(self._inputs))}; an encoder takes {', '.join(INPUTS)}")

    def props(self) -> dict[str, Any]:
        """How long a text may be."""
        return {"default_generation_settings": {"n_ctx": self._longest}}

    def _encoded(self, texts: Sequence[Any]) -> list[Any]:
        found: list[Any] = self._tokenizer.encode_batch(list(texts))
        for place, encoding in enumerate(found):
            if len(encoding.ids) > self._longest:
                raise Wrong(f"text {place} has {len(encoding.ids)} tokens and the model holds {self._longest}: it would be cut")
        return found

    def _run(self, encodings: Sequence[Any]) -> tuple[Any, Any]:
        """The network's first output for a batch, and the mask of its tokens."""
        import numpy

        width = max(len(each.ids) for each in encodings)
        arrays: dict[str, Any] = {name: numpy.zeros((len(encodings), width), numpy.int64) for name in INPUTS}
        for row, each in enumerate(encodings):
            arrays["input_ids"][row, : len(each.ids)] = each.ids
            arrays["attention_mask"][row, : len(each.ids)] = 1
            arrays["token_type_ids"][row, : len(each.ids)] = each.type_ids
        return self._session.run(None, {name: arrays[name] for name in self._inputs})[0], arrays["attention_mask"]

    def _batches(self, encodings: Sequence[Any], alive: Alive) -> Any:
        """Places and outputs, the short ones first: a batch is as wide as its longest."""
        order = sorted(range(len(encodings)), key=lambda place: len(encodings[place].ids))
        for start in range(0, len(order), BATCH):
            alive()
            places = order[start : start + BATCH]
            yield places, *self._run([encodings[place] for place in places])


class Embedder(Encoder):
    """A vector of length one for each text."""

    def probe(self) -> None:
        """Embed a letter."""
        self.embed(["a"], lambda: None)

    def embed(self, texts: Sequence[str], alive: Alive) -> tuple[list[list[float]], int]:
        """Vectors in the order of the texts, and how many tokens they had."""
        import numpy

        encodings = self._encoded(texts)
        vectors: dict[int, list[float]] = {}
        for places, output, mask in self._batches(encodings, alive):
            pooled = output if output.ndim == 2 else self._pooled(output, mask)
            norms = numpy.maximum(numpy.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
            vectors.update(zip(places, (pooled / norms).astype(float).tolist(), strict=True))
        return [vectors[place] for place in range(len(texts))], sum(len(each.ids) for each in encodings)

    def _pooled(self, output: Any, mask: Any) -> Any:
        if self._pooling == "cls":
            return output[:, 0]
        if self._pooling == "last":
            return output[range(len(output)), mask.sum(axis=1) - 1]
        weights = mask[:, :, None]
        return (output * weights).sum(axis=1) / weights.sum(axis=1)


class Reranker(Encoder):
    """A score for each pair: a cross-encoder, which reads both at once."""

    def probe(self) -> None:
        """Rank a letter; a network without a head for ranks is found out here, and answers nothing."""
        output, _ = self._run(self._encoded([("a", "a")]))
        if output.ndim > 2 or (output.ndim == 2 and output.shape[1] > 2):
            raise Wrong(f"it has no head for ranks: its output has the shape {list(output.shape)}, not a score for each pair")

    def rerank(self, query: str, documents: Sequence[str], alive: Alive) -> tuple[list[float], int]:
        """Scores from 0 to 1 in the order of the documents, and how many tokens were read."""
        encodings = self._encoded([(query, document) for document in documents])
        scores: dict[int, float] = {}
        for places, output, _ in self._batches(encodings, alive):
            rows = output.reshape(len(places), -1).astype(float).tolist()
            scores.update(zip(places, (row[0] if len(row) == 1 else row[1] - row[0] for row in rows), strict=True))
        return [_share(scores[place]) for place in range(len(documents))], sum(len(each.ids) for each in encodings)


def _share(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0
