"""A process that stands for an engine which is elsewhere, or has no key of its own: `python relay.py FOLDER`.

It listens on loopback with the key of its start, as every engine of AIMA's does, and hands requests on to a base URL with the key that is
wanted there: so what is remote is started, watched, routed to and stopped like the rest. The way out is `egress`, which lets it go to the
endpoint that the owner named and nowhere else that is not public. With a `child` the engine is a program started here, behind the relay.

spec.json: {alias, model, base_url, tasks, port, probe, child, unload, context_length}; the file remote_key is read once and removed.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from aima_lib.errors import AimaError
from aima_lib.infra.egress import Egress

BODY_BYTES = 256 << 20
STALL_SECONDS = 900
INNER = "{inner}"
PROMPTED = re.compile(rb'"prompt_tokens":\s*([0-9]{1,12})')
FINISHED = re.compile(rb'"finish_reason":\s?"')
HELD = frozenset({"content-type", "cache-control", "x-sample-rate", "x-duration-seconds", "retry-after"})  # of the headers of an answer


class Relay:
    """One model of one endpoint."""

    def __init__(self, spec: Mapping[str, Any], key: str, remote_key: str) -> None:
        self.spec, self._key, self._remote_key = spec, key, remote_key
        self._base = str(spec["base_url"]).rstrip("/")
        there = str(spec["model"])
        names = {json.dumps(there, ensure_ascii=ascii)[1:-1].encode("utf-8", "replace") for ascii in (True, False)}
        self._there = re.compile(rb'("model":\s*)"(?:' + b"|".join(map(re.escape, sorted(names))) + rb')(?:@[^"\\]*)?"')
        self._egress = Egress((), lambda: [self._base], stall_seconds=STALL_SECONDS)

    def app(self) -> web.Application:
        """What answers."""
        app = web.Application(client_max_size=BODY_BYTES, middlewares=[self._guard])
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/props", self._props)
        app.router.add_post("/probe", self._probe)
        app.router.add_post("/v1/{path:.+}", self._forward)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode("utf-8", "replace")
        if not hmac.compare_digest(given, f"Bearer {self._key}".encode()):
            return _refused(401, "wrong key")
        try:
            answer: web.StreamResponse = await handler(request)
            return answer
        except AimaError as error:
            return _refused(503 if error.retryable else 502, str(error))

    async def _models(self, request: web.Request) -> web.Response:  # noqa: ARG002
        return web.json_response({"object": "list", "data": [{"id": self.spec["alias"], "object": "model"}]})

    async def _props(self, request: web.Request) -> web.Response:  # noqa: ARG002
        return web.json_response({"model": self.spec["alias"], "tasks": self.spec["tasks"]})

    async def _probe(self, request: web.Request) -> web.Response:  # noqa: ARG002
        """Whether the endpoint has the model. What costs money a token is not asked for one."""
        if self.spec["probe"] == "chat":
            body = {"model": self.spec["model"], "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
            status, said = await self._ask("POST", "/chat/completions", json.dumps(body).encode())
            return web.json_response({"status": "ok"}) if status == 200 else _refused(503, f"it answers {status}: {said[:200]!r}")
        status, said = await self._ask("GET", "/models", b"")
        if status in (401, 403):
            return _refused(400, f"{self._base} refuses the key: put the secret {self.spec['secret']}")
        if status != 200:
            return _refused(503 if status >= 500 else 400, f"{self._base}/models answers {status}")
        try:
            names = [str(row["id"]) for row in json.loads(said)["data"]]
        except (ValueError, KeyError, TypeError):
            return _refused(400, f"{self._base}/models is no list of OpenAI's form")
        if self.spec["model"] not in names:
            return _refused(400, f"{self._base} has no model {self.spec['model']!r}; it has {', '.join(names[:20])}")
        return web.json_response({"status": "ok"})

    async def _ask(self, method: str, path: str, content: bytes) -> tuple[int, bytes]:
        async with self._egress.send(method, self._base + path, self._headers("application/json"), content) as answer:
            return answer.status_code, (await answer.aread())[: 8 << 20]

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        kind = request.headers.get("Content-Type", "")
        content = self._renamed(kind, await request.read())
        headers = self._headers(kind) | {"Accept": request.headers.get("Accept", "*/*")}
        async with self._egress.send("POST", f"{self._base}/{request.match_info['path']}", headers, content) as answer:
            if answer.status_code in (401, 403):
                return _refused(502, f"{self._base} refuses the key: put the secret {self.spec['secret']}")
            held = {name: value for name, value in answer.headers.items() if name.lower() in HELD}
            kind = held.get("content-type", "")
            if kind.startswith("application/json"):
                return self._told(answer.status_code, held, await answer.aread())
            reply = web.StreamResponse(status=answer.status_code, headers=held)
            await reply.prepare(request)
            await self._told_as_it_comes(answer.aiter_bytes(), kind.startswith("text/event-stream"), reply)
            await reply.write_eof()
            return reply

    def _told(self, status: int, headers: Mapping[str, str], said: bytes) -> web.Response:
        if refusal := self._beyond(said):
            return web.json_response(refusal, status=400)
        return web.Response(body=self._ours(said), status=status, headers=headers)

    async def _told_as_it_comes(self, pieces: AsyncIterator[bytes], by_lines: bool, reply: web.StreamResponse) -> None:
        end, rest = End(), b""
        async for piece in pieces:
            end.hear(piece)
            lines, found, rest = (rest + piece).rpartition(b"\n") if by_lines else (piece, b"", b"")
            if by_lines and (refusal := self._beyond(lines)):
                await reply.write(b"data: " + json.dumps(refusal).encode() + b"\n\n")
                return
            if whole := lines + found:  # a name may be cut anywhere else
                await reply.write(self._ours(whole) if by_lines else whole)
        await reply.write(rest)
        if by_lines and end.is_unsaid:
            await reply.write(b"data: [DONE]\n\n")

    def _beyond(self, said: bytes) -> dict[str, Any] | None:
        """A refusal in llama.cpp's words, where the engine counted more in a prompt than its model was trained to read: transformers
        reads on, and answers with noise."""
        longest = int(self.spec.get("context_length") or 0)
        counts = [int(count) for count in PROMPTED.findall(said)] if longest else []
        if not counts or max(counts) <= longest:
            return None
        figures = {"n_prompt_tokens": max(counts), "n_ctx": longest}
        message = f"the prompt has {max(counts)} tokens, and the model reads {longest}"
        return {"error": {"message": message, "type": "exceed_context_size_error", "code": 400, **figures}}

    def _headers(self, kind: str) -> dict[str, str]:
        key = {"Authorization": f"Bearer {self._remote_key}"} if self._remote_key else {}
        return {"Content-Type": kind, **key}

    def _renamed(self, kind: str, body: bytes) -> bytes:
        """The request with the name that the model has there."""
        if kind.startswith("application/json"):
            return json.dumps({**json.loads(body), "model": self.spec["model"]}).encode()
        boundary = b"--" + kind.partition("boundary=")[2].partition(";")[0].strip('"').encode()
        parts = body.split(boundary)
        for place, part in enumerate(parts):
            head, found, value = part.partition(b"\r\n\r\n")
            if found and b'name="model"' in head and value.removesuffix(b"\r\n") == str(self.spec["alias"]).encode():
                parts[place] = head + found + str(self.spec["model"]).encode() + b"\r\n"
        return boundary.join(parts)

    def _ours(self, said: bytes) -> bytes:
        """What it said, with the name that the model has here: elsewhere it may be a path."""
        return self._there.sub(lambda found: found[1] + json.dumps(self.spec["alias"]).encode(), said)

    async def unload(self) -> None:
        """Ask the endpoint to let go of the model, where it knows how (Ollama)."""
        if path := self.spec.get("unload"):
            body = json.dumps({"model": self.spec["model"], "keep_alive": 0}).encode()
            try:
                async with self._egress.send("POST", self._base.removesuffix("/v1") + path, self._headers("application/json"), body):
                    pass
            except AimaError as error:
                sys.stderr.write(f"E not unloaded: {error}\n")

    async def close(self) -> None:
        """Let go of what was asked for and of the connections."""
        await self.unload()
        await self._egress.close()


class End:
    """Of a stream of events: whether an answer came to its end without saying [DONE], as transformers' server leaves it."""

    def __init__(self) -> None:
        self._last, self._finished = b"", False

    def hear(self, chunk: bytes) -> None:
        """The next piece, cut anywhere."""
        seen = self._last + chunk
        self._finished = self._finished or FINISHED.search(seen) is not None
        self._last = seen[-32:]

    @property
    def is_unsaid(self) -> bool:
        return self._finished and b"[DONE]" not in self._last


def _refused(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "server_error", "code": status}}, status=status)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def serve(folder: Path) -> int:
    """Relay until told to end, or until the child has ended; the child's status."""
    spec: dict[str, Any] = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    secret = folder / "remote_key"
    remote_key = secret.read_text(encoding="utf-8").strip() if secret.exists() else ""
    secret.unlink(missing_ok=True)
    child = None
    if argv := spec.get("child"):
        inner = str(_free_port())
        spec["base_url"] = spec["base_url"].replace(INNER, inner)
        child = await asyncio.create_subprocess_exec(*(word.replace(INNER, inner) for word in argv))
    relay = Relay(spec, (folder / "key").read_text(encoding="utf-8").strip(), remote_key)
    runner = web.AppRunner(relay.app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", spec.get("port") or 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    fresh = folder / "ready.json.new"
    fresh.write_text(json.dumps({"url": f"http://{host}:{port}", "on": spec["on"]}), encoding="utf-8")
    os.replace(fresh, folder / "ready.json")
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    waits = [asyncio.create_task(told.wait())] + ([asyncio.create_task(child.wait())] if child else [])
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    await relay.close()
    if child and child.returncode is None:
        child.terminate()
        await child.wait()
    return 0 if told.is_set() or child is None else int(child.returncode or 1)


if __name__ == "__main__":
    sys.exit(asyncio.run(serve(Path(sys.argv[1]))))
