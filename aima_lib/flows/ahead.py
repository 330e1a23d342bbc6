"""Speech that begins before its text is whole: a step that speaks what another step's model says begins at its first sentence.

Each sentence is a call of inference.synthesize of its own, one after the other, while the model goes on. What is on record is the whole:
the step's row is written once its text is, as ever, and its output is the sentences joined. What a crash cuts off is spoken anew.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import anyio

from aima_lib.errors import AimaError
from aima_lib.flows.document import Pipeline, Step

SPEAKS, CHATS = "inference.synthesize", "inference.chat"
SHORTEST = 12  # characters; what is shorter than that goes with what follows: "Dr. ", "1. "
END = re.compile(r"[.!?…。！？]+[\"'”’)\]]*\s+|\n+")
Output = Mapping[str, Any]
Speak = Callable[[str], Awaitable[Output]]


def sentences(text: str, is_whole: bool = True) -> list[str]:
    """A text in sentences, nothing left out. While it grows, those that stay as they are."""
    cuts = [0]
    for match in END.finditer(text):
        if match.end() < len(text) and len(text[cuts[-1] : match.end()].strip()) >= SHORTEST:
            cuts.append(match.end())
    pieces = [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    return pieces if is_whole and text[cuts[-1] :].strip() else pieces[:-1]


def speakers(pipeline: Pipeline) -> Mapping[str, Step]:
    """The steps that can begin ahead, by the step whose model they speak: nothing but the text may keep them from it."""
    found: dict[str, Step] = {}
    for step in pipeline.steps:
        text = re.fullmatch(r"\$\{steps\.([a-z0-9_-]+)\.(?:response|content)\}", str(step.input.get("text")), re.IGNORECASE)
        first = pipeline.by_id.get(text[1]) if text else None
        if first is None or (step.type, first.type) != (SPEAKS, CHATS) or step.input.get("format", "wav") != "wav":
            continue
        is_plain = all(each.for_each is None and each.fallback is None and each.id not in pipeline.fallbacks for each in (step, first))
        if is_plain and not (step.condition or step.approval or step.cache_seconds):
            found[first.id] = step
    return found


class Ahead:
    """One text that grows, and its sentences as speech."""

    def __init__(self, speak: Speak) -> None:
        self._speak, self._text = speak, ""
        self._said: list[tuple[str, Output]] = []
        self._news, self._turn = anyio.Event(), anyio.Lock()
        self._over = False

    async def hear(self, item: Mapping[str, Any]) -> None:
        """A bit of the text: what a chat sends while it streams."""
        self._text += str(item.get("delta", {}).get("content") or "")
        self._news.set()

    async def run(self) -> None:
        """Speak each sentence once it is whole, until somebody asks for all of them."""
        while not self._over:
            self._news = anyio.Event()
            try:
                async with self._turn:
                    await self._catch_up(sentences(self._text, False))
            except AimaError:
                return  # the step itself will say why, if it fares no better
            if not self._over:
                await self._news.wait()

    async def whole(self, text: str) -> Sequence[Output]:
        """The speech of each sentence of the whole text, in order. Raises what speaking does."""
        self._over = True
        self._news.set()
        async with self._turn:
            wanted = sentences(text)
            if [sentence for sentence, _ in self._said] != wanted[: len(self._said)]:
                self._said.clear()  # it was another attempt of the model
            await self._catch_up(wanted)
            return [output for _, output in self._said]

    async def _catch_up(self, wanted: Sequence[str]) -> None:
        for sentence in wanted[len(self._said) :]:
            self._said.append((sentence, await self._speak(sentence.strip())))
