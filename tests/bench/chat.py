"""/v1/chat/completions through AIMA against the engine asked directly: `python tests/bench/chat.py`. About 60 s.

Requests a second, time to the first token and tokens a second, with 1, 8 and 64 clients, on the tiny model: its tokens cost next to
nothing, so that what is in between shows.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import measure

from aima_lib import Aima
from aima_lib.infra.home import Home
from tests.tiny import write_tiny_gguf
from tests.world import HostProcess

assert measure.ROOT
SECONDS, TOKENS = 4.0, 16
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": TOKENS, "temperature": 0, "stream": True}


@dataclass
class Figures:
    """What the clients of one target saw."""

    done: int = 0
    tokens: int = 0
    firsts: list[float] = field(default_factory=list)


async def ask(session: aiohttp.ClientSession, url: str, key: str, model: str, figures: Figures, end: float) -> None:
    """One client: request after request."""
    while time.perf_counter() < end:
        began, first = time.perf_counter(), 0.0
        async with session.post(
            f"{url}/v1/chat/completions", json=BODY | {"model": model}, headers={"Authorization": f"Bearer {key}"}
        ) as answer:
            assert answer.status == 200, await answer.text()
            async for line in answer.content:
                if line.startswith(b"data: {") and json.loads(line[6:]).get("choices", [{}])[:1] != []:
                    first = first or time.perf_counter()
                    figures.tokens += 1
        figures.done += 1
        figures.firsts.append(first - began)


async def load(url: str, key: str, model: str, clients: int) -> tuple[float, float, float]:
    """(requests/s, median seconds to the first token, tokens/s)."""
    figures = Figures()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await ask(session, url, key, model, Figures(), time.perf_counter() + 0.2)
        began = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for _ in range(clients):
                tasks.start_soon(ask, session, url, key, model, figures, began + SECONDS)
        took = time.perf_counter() - began
    return figures.done / took, statistics.median(figures.firsts), figures.tokens / took


async def main(host: HostProcess, instance: dict[str, Any]) -> None:
    engine_key = (Home(host.home.path).path / "instances" / instance["id"] / "key").read_text(encoding="utf-8").strip()
    for clients in (1, 8, 64):
        aima = await load(host.url, host.home.key(), "tiny", clients)
        engine = await load(str(instance["base_url"]), engine_key, "tiny", clients)
        for name, unit, scale, place in (("requests/s", "", 1, 0), ("first token", " ms", 1000, 1), ("tokens/s", "", 1, 2)):
            ours, theirs = aima[place] * scale, engine[place] * scale
            print(
                f"{clients:>3} clients  {name:<12} AIMA {ours:>9.1f}{unit:<3}  engine {theirs:>9.1f}{unit:<3}  ratio {ours / theirs:>6.2f}",
                flush=True,
            )


def furnished() -> None:
    import sys

    with tempfile.TemporaryDirectory() as folder:
        write_tiny_gguf(Path(folder) / "tiny.gguf")
        host = HostProcess(Path(sys.executable), Path(folder) / "home", Path(folder)).start()
        try:
            with Aima(host.home.path) as aima:
                aima.call("model.import", {"path": "tiny.gguf", "name": "tiny"})
                aima.call("service.create", {"model_id": "tiny", "name": "tiny", "options": {"parallel": 8}})
                instance = dict(aima.call("service.status", {"service_id": "tiny"})["instance"])
            anyio.run(main, host, instance)
        finally:
            host.stop()


if __name__ == "__main__":
    furnished()
