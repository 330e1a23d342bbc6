"""An engine that thinks nothing and answers at once: OpenAI's API over bare asyncio, so that what stands in front of it is seen.

It takes llama-server's flags and honours `--port` and `--alias`. A streamed answer is CHUNKS pieces, PACE seconds apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path

CHUNKS, PACE = 100, 0.010


def option(name: str, default: str = "") -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def head(status: str, kind: str, length: int | None) -> bytes:
    size = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    return b"HTTP/1.1 %s\r\nContent-Type: %s\r\n%s\r\n\r\n" % (status.encode(), kind.encode(), size)


def whole(value: object, status: str = "200 OK") -> bytes:
    body = json.dumps(value, separators=(",", ":")).encode()
    return head(status, "application/json", len(body)) + body


ALIAS = option("--alias", "mock")
USAGE = {"prompt_tokens": 9, "completion_tokens": 8, "total_tokens": 17}
CHOICE = {"index": 0, "message": {"role": "assistant", "content": "Hello! How can I help?"}, "finish_reason": "stop", "text": "Hello"}
CHAT = whole({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": ALIAS, "choices": [CHOICE], "usage": USAGE})
MODELS = whole({"object": "list", "data": [{"id": ALIAS, "object": "model", "created": 1, "owned_by": "mock"}]})
STREAM = head("200 OK", "text/event-stream", None)


def event(value: object) -> bytes:
    data = b"data: " + (value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()) + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def piece(delta: dict[str, str], finish: str | None = None, **more: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": ALIAS, "choices": [choice], **more})


PIECE, LAST = piece({"content": " word"}), piece({}, "stop", usage=USAGE) + event(b"[DONE]") + b"0\r\n\r\n"


class Mock(asyncio.Protocol):
    def __init__(self) -> None:
        self._rest = b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.WriteTransport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while (end := self._rest.find(b"\r\n\r\n")) >= 0:
            top = self._rest[:end].lower()
            length = int(top.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            if len(self._rest) < end + 4 + length:
                return
            body, self._rest = self._rest[end + 4 : end + 4 + length], self._rest[end + 4 + length :]
            self._answer(top, body)

    def _answer(self, top: bytes, body: bytes) -> None:
        if top.startswith((b"get /health", b"get /metrics")):
            self._transport.write(whole({}))
        elif b"\r\nauthorization: bearer " not in top:
            self._transport.write(whole({"error": {"message": "a key is needed"}}, "401 Unauthorized"))
        elif top.startswith(b"get /v1/models"):
            self._transport.write(MODELS)
        elif top.startswith(b"get "):
            self._transport.write(whole({}))
        elif b'"stream":true' in body.replace(b" ", b""):
            self._task = asyncio.get_running_loop().create_task(self._stream())
        else:
            self._transport.write(CHAT)

    async def _stream(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._transport.write(STREAM)
        for number in range(CHUNKS):
            self._transport.write(PIECE)
            await asyncio.sleep(max(0.0, began + (number + 1) * PACE - loop.time()))
        self._transport.write(LAST)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Mock, "127.0.0.1", int(option("--port")), backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    if "--version" in sys.argv:
        print("version: 1 (mock)")
    elif "--list-devices" in sys.argv:
        print("Available devices:")
    else:
        with contextlib.suppress(ImportError):
            import uvloop

            uvloop.install()
        if key := option("--api-key-file"):
            Path(key).read_text(encoding="utf-8")
        asyncio.run(main())
