"""A llama-server that thinks nothing and takes its time over it: the last message says how.

`{"tokens": 5, "pace": 0.01, "wait": 0.1}`: so many tokens, so far apart in seconds, after a wait; `{"say": "Two words."}` are those. It
answers `--parallel` requests at once and lets others wait, as llama.cpp does. With `--seed 13` its chats are no answers, with `--seed 14`
each answer takes 0.3 s more, with `--seed 15` it does not start. `{"hoard": 300}` takes so many MiB of memory first, and `{"die": true}` is the end of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any


def option(name: str, default: str = "") -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def reply(status: str, body: bytes, kind: str = "application/json") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


class Engine:
    def __init__(self) -> None:
        self.slots = asyncio.Semaphore(int(option("--parallel", "1")))
        self.key = f"Bearer {Path(option('--api-key-file')).read_text(encoding='utf-8').strip()}"
        self.alias, self.seed = option("--alias"), option("--seed")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])}
            body = await reader.readexactly(int(fields.get("content-length", 0)))
            if fields.get("authorization") != self.key:
                writer.write(reply("401 Unauthorized", b"{}"))
            elif head.startswith("GET"):
                writer.write(reply("200 OK", json.dumps({"data": [{"id": self.alias}]}).encode()))
            else:
                await self.answer(json.loads(body), reader, writer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, asked: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = asked["messages"][-1]["content"] if "messages" in asked else "{}"
        how = {"tokens": 1, "pace": 0.0, "wait": 0.0} | (json.loads(said) if said.startswith("{") else {})
        work = asyncio.ensure_future(self.work(how, asked, writer))
        left = asyncio.ensure_future(reader.read(1))
        await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
        work.cancel()
        left.cancel()

    async def work(self, how: dict[str, Any], asked: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        words = how["say"].split() if "say" in how else ["word"] * how["tokens"]
        how["tokens"] = len(words)
        if how.get("die"):
            os._exit(1)
        self.hoard = b"x" * (how.get("hoard", 0) << 20)
        async with self.slots:
            await asyncio.sleep(how["wait"] + (0.3 if self.seed == "14" else 0.0))
            if self.seed == "13" and "messages" in asked:
                writer.write(reply("200 OK", b'{"choices": []}'))
                return
            usage = {"prompt_tokens": 1, "completion_tokens": how["tokens"], "total_tokens": how["tokens"] + 1}
            if not asked.get("stream"):
                choice = {"index": 0, "finish_reason": "stop", "text": "word", "message": {"role": "assistant", "content": "word"}}
                writer.write(reply("200 OK", json.dumps({"id": "1", "choices": [choice], "usage": usage}).encode()))
                return
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            for number in range(how["tokens"]):
                last = number + 1 == how["tokens"]
                choice = {"index": 0, "finish_reason": "stop" if last else None, "delta": {"content": f"{words[number]} "}, "text": "word "}
                event = {"id": "1", "choices": [choice]} | ({"usage": usage} if last else {})
                writer.write(b"data: " + json.dumps(event).encode() + b"\n\n")
                await writer.drain()
                await asyncio.sleep(how["pace"])
            writer.write(b"data: [DONE]\n\n")


async def main() -> None:
    engine = Engine()
    async with await asyncio.start_server(engine.serve, "127.0.0.1", int(option("--port")), backlog=2048) as server:
        await server.serve_forever()


if __name__ == "__main__":
    if "--version" in sys.argv:
        print("version: 1 (paced)")
    elif "--list-devices" in sys.argv:
        print("Available devices:")
    elif option("--seed") == "15":
        sys.exit("error: it is not to start")
    else:
        asyncio.run(main())
