"""An engine's answer on its way through: which bytes go on, whether it ended as it should, and what it cost."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from aima_lib.errors import Unavailable

TAIL_BYTES = 8192
LONGEST_EVENT = 32 << 20
ITEM = re.compile(rb'"item_id":"([^"\\]+)"')
TYPE = re.compile(rb'"type":"response\.([a-z_.]+)"')
ECHOED = (
    "instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "temperature", "tool_choice", "tools", "top_p",
)  # fmt: skip
Figures = tuple[dict[str, Any], dict[str, Any]]
READS = json.JSONDecoder()
ENDS = {b"response.completed", b"response.incomplete", b"response.failed"}


class Passing:
    """OpenAI's chats and completions: every byte goes on as it came, and the tail says the end and the usage."""

    def __init__(self) -> None:
        self._tail = bytearray()

    def take(self, chunk: bytes) -> bytes:
        """What to send for what came."""
        self._tail += chunk
        if len(self._tail) > 4 * TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]
        return chunk

    @property
    def ended(self) -> bool:
        """Whether the answer is whole."""
        return b"[DONE]" in self._lines(self._tail)

    def figures(self) -> Figures:
        """Usage and timings, as `Answer.counted` wants them."""
        usage, timings = dict[str, Any](), dict[str, Any]()
        for line in self._lines(self._tail):
            if b'"usage"' in line or b'"timings"' in line:
                found = figures(parsed(line))
                usage, timings = found[0] or usage, found[1] or timings
        return usage, timings

    @staticmethod
    def _lines(part: bytes | bytearray) -> list[bytes]:
        return [bytes(line[5:]).strip() for line in part.splitlines() if line.startswith(b"data:")]


class PassingMessages(Passing):
    """Anthropic's messages: as above, but the prompt's tokens stand in the first event and the answer's in the last but one."""

    def __init__(self) -> None:
        super().__init__()
        self._head = b""

    def take(self, chunk: bytes) -> bytes:
        if len(self._head) < TAIL_BYTES:
            self._head += chunk[: TAIL_BYTES - len(self._head)]
        return super().take(chunk)

    @property
    def ended(self) -> bool:
        return any(parsed(line).get("type") == "message_stop" for line in self._lines(self._tail))

    def figures(self) -> Figures:
        usage: dict[str, Any] = {}
        for line in [*self._lines(self._head)[:1], *self._lines(self._tail)]:
            if b'"usage"' in line:
                event = parsed(line)
                usage |= (event.get("message") or event).get("usage") or {}
        return figures({"usage": usage})


class PassingResponse(Passing):
    """OpenAI's responses. llama.cpp leaves out where each event belongs, which SDKs index by, so that is put in front of its bytes.

    Only the few events that are not pieces of text are read as JSON.
    """

    def __init__(self, request: Mapping[str, Any], created_at: int) -> None:
        super().__init__()
        self._request, self._created_at = request, created_at
        self._rest, self._last, self._number = b"", b"", 0
        self._places: dict[bytes, int] = {}

    def take(self, chunk: bytes) -> bytes:
        *events, self._rest = (self._rest + chunk).split(b"\n\n")
        if len(self._rest) > LONGEST_EVENT:
            raise Unavailable(f"the engine sent an event of more than {LONGEST_EVENT >> 20} MiB")
        return b"".join(self._mended(event) + b"\n\n" for event in events)

    @property
    def ended(self) -> bool:
        return self._kind(self._last) in ENDS

    def figures(self) -> Figures:
        event = parsed(self._last.partition(b"data: ")[2])
        return figures(event | {"usage": (event.get("response") or {}).get("usage")})

    def _mended(self, event: bytes) -> bytes:
        head, found, data = event.partition(b"data: {")
        if not found:  # a comment
            return event
        self._last = event
        if b'"sequence_number":' in data:
            return event
        kind = TYPE.search(data)
        name = kind[1] if kind else b""
        if name in (b"created", b"in_progress", b"completed"):
            event = self._with_response(parsed(b"{" + data))
        elif place := self._place(name, data):
            event = head + b'data: {"sequence_number":%d,%s' % (self._number, place) + data
        self._number += 1
        self._last = event
        return event

    def _place(self, name: bytes, data: bytes) -> bytes:
        """Which item, and which part of it (llama.cpp's items have one), an event belongs to."""
        if found := ITEM.search(data):
            key = found[1]
        else:
            item = parsed(b"{" + data).get("item") or {}
            key = str(item.get("id") or item.get("call_id")).encode()
        where = b'"output_index":%d,' % self._places.setdefault(key, len(self._places))
        return where if name.startswith((b"output_item", b"function_call")) else where + b'"content_index":0,'

    def _with_response(self, event: dict[str, Any]) -> bytes:
        """An event that holds the response itself, which is to have what a response has."""
        event["response"] = whole(event.get("response") or {}, self._request, self._created_at)
        if event["type"] == "response.completed" and event["response"]["status"] == "incomplete":
            event["type"] = "response.incomplete"
        event = {"type": event["type"], "sequence_number": self._number} | event
        return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}".encode()

    @staticmethod
    def _kind(event: bytes) -> bytes:
        return event.partition(b"event: ")[2].partition(b"\n")[0].strip()


def whole(response: Mapping[str, Any], request: Mapping[str, Any], created_at: int) -> dict[str, Any]:
    """A response with what OpenAI's have and llama.cpp's lack: what was asked, and that the answer was cut off where it was.

    llama.cpp calls an answer that used up its tokens completed. One that ended by itself with the very last of them is taken for cut.
    """
    asked = {name: request.get(name) for name in ECHOED} | {"tools": request.get("tools") or [], "metadata": request.get("metadata") or {}}
    asked["tool_choice"] = request.get("tool_choice") or "auto"
    found = {"created_at": created_at, "model": request["model"], "output": [], "error": None, "incomplete_details": None}
    found |= asked | dict(response)
    longest, said = request.get("max_output_tokens"), (response.get("usage") or {}).get("output_tokens")
    if found.get("status") == "completed" and isinstance(longest, int | float) and said is not None and 0 < longest <= said:
        found |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    return found


def figures(body: Mapping[str, Any]) -> Figures:
    """Usage by OpenAI's names, and speed; llama.cpp says the counts in `timings` even where nobody asked for usage."""
    usage, timings = body.get("usage") or {}, body.get("timings") or {}
    if "output_tokens" in usage:
        cached = usage.get("cache_read_input_tokens")  # Anthropic counts them apart, OpenAI among the rest
        details = usage.get("input_tokens_details") or {"cached_tokens": cached}
        prompt = usage.get("input_tokens", 0) + (cached or 0) + (usage.get("cache_creation_input_tokens") or 0)
        usage = _counts(prompt, usage["output_tokens"]) | {"prompt_tokens_details": details}
    elif not usage and "predicted_n" in timings:
        usage = _counts(timings.get("prompt_n", 0) + timings.get("cache_n", 0), timings["predicted_n"])
    return usage, timings


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object in an engine's bytes, or an empty one."""
    try:
        value = READS.decode(body.decode())
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _counts(prompt: int, said: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}
