"""An engine's streamed answer, put together: text, tool calls, usage, and how long each part took."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from aima_lib.errors import Unavailable

BYTES_A_TOKEN = 4


class Answer:
    """Takes chunks in OpenAI's shape (of chats or of completions) and holds what they amount to."""

    def __init__(self, id: str) -> None:
        self.id, self.began = id, time.monotonic()
        self.sent = self.began  # when an engine was asked
        self.usage: dict[str, Any] | None = None
        self.instance_id: str | None = None  # who answers
        self.pieces = 0  # of the stream so far: a token each, or nearly
        self._first: float | None = None
        self._texts: dict[str, list[str]] = {"content": [], "reasoning_content": []}
        self._tool_calls: dict[int, dict[str, Any]] = {}
        self._finish: str | None = None
        self._engine_timings: Mapping[str, Any] = {}

    @property
    def ttft_ms(self) -> float | None:
        """From the request to the first token."""
        return None if self._first is None else round((self._first - self.began) * 1000, 1)

    @property
    def speed(self) -> float | None:
        """Tokens a second, as the engine measured its own generation."""
        rate = self._engine_timings.get("predicted_per_second")
        return None if rate is None else round(float(rate), 2)

    @property
    def tokens(self) -> int | None:
        """Prompt and answer together, as the engine counted."""
        return None if self.usage is None else int(self.usage["total_tokens"])

    def busy_seconds(self, at: float) -> float:
        """How long the engine worked on it: by its own clock, else all the time since it was sent there."""
        read, said = self._engine_timings.get("prompt_ms"), self._engine_timings.get("predicted_ms")
        return at - self.sent if read is None or said is None else (float(read) + float(said)) / 1000

    def cost(self, request: Mapping[str, Any], left: bool) -> int:
        """Tokens that it took. The engine counts them at the end; of one that was cut off (by its reader, who has `left`, or by the
        engine) the pieces that came count as one each, and four bytes of the prompt as one."""
        if self.usage is not None:
            return int(self.usage["total_tokens"])
        if not (left or self.pieces):
            return 0  # refused before it began
        asked = next((request[key] for key in ("messages", "prompt", "input") if key in request), "")
        return self.pieces + len(json.dumps(asked, ensure_ascii=False).encode("utf-8", "replace")) // BYTES_A_TOKEN

    def take(self, chunk: Mapping[str, Any]) -> dict[str, Any]:
        """Add a chunk; what it adds for a reader, which may be nothing."""
        self.counted(chunk.get("usage"), chunk.get("timings"))
        fresh: dict[str, Any] = {}
        for choice in chunk.get("choices") or ():
            self._finish = choice.get("finish_reason") or self._finish
            delta = choice.get("delta") or {"content": choice.get("text")}
            fresh |= self._add(delta)
        if fresh:
            self.pieces += 1
            self.begun()
        return fresh

    def counted(self, usage: Mapping[str, Any] | None, timings: Mapping[str, Any] | None) -> None:
        """What the engine counted, by OpenAI's names, and how long each part took it; what it did not say stays as it was."""
        self._engine_timings = timings or self._engine_timings
        if usage:
            self.usage = {
                "prompt_tokens": usage.get("prompt_tokens", 0),
                "completion_tokens": usage.get("completion_tokens", 0),
                "total_tokens": usage.get("total_tokens", 0),
                "cached_tokens": (usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
            }

    def begun(self) -> None:
        """The first token is here. `take` sees that itself; whoever passes bytes on says it."""
        if self._first is None:
            self._first = time.monotonic()

    def _add(self, delta: Mapping[str, Any]) -> dict[str, Any]:
        fresh: dict[str, Any] = {}
        for key, texts in self._texts.items():
            if text := delta.get(key):
                texts.append(text)
                fresh[key] = text
        if calls := delta.get("tool_calls"):
            for call in calls:
                self._add_call(call)
            fresh["tool_calls"] = calls
        return fresh

    def _add_call(self, part: Mapping[str, Any]) -> None:
        """A tool call comes in pieces: first its id and name, then its arguments bit by bit."""
        empty = {"id": None, "type": "function", "function": {"name": "", "arguments": ""}}
        call = self._tool_calls.setdefault(int(part.get("index", 0)), empty)
        call["id"] = part.get("id") or call["id"]
        function = part.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""

    def result(self, model: str, placement: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer.

        Raises:
            Unavailable: the engine never said why it stopped: the answer may be half.
        """
        if self._finish is None:
            raise Unavailable("the engine ended its answer without a reason to stop")
        calls = [call | {"id": call["id"] or f"call-{self.id}-{index}"} for index, call in sorted(self._tool_calls.items())]
        return {
            "id": self.id,
            "model": model,
            "content": "".join(self._texts["content"]),
            "reasoning_content": "".join(self._texts["reasoning_content"]) or None,
            "tool_calls": calls,
            "finish_reason": self._finish,
            "usage": self.usage,
            "timings": self._timings(),
            "placement": dict(placement),
        }

    def _timings(self) -> dict[str, Any]:
        prompt = self._engine_timings.get("prompt_ms")
        waited = None if prompt is None or self.ttft_ms is None else max(0.0, round(self.ttft_ms - float(prompt), 1))
        total = round((time.monotonic() - self.began) * 1000, 1)
        return {"queue_ms": waited, "ttft_ms": self.ttft_ms, "total_ms": total, "tokens_per_second": self.speed}
