"""`/v1/chat/completions` through AIMA against the engine asked directly: `python tests/bench/openai_proxy.py`.

One real engine with a tiny model, which answers in milliseconds: what AIMA adds is seen as large as it can be. Engine, host and client share
this machine's cores, so read the ratios. Each line is two rounds in turn, the better of each.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import anyio

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from tests.tiny import write_tiny_gguf  # noqa: E402
from tests.world import HostProcess  # noqa: E402

SECONDS = 3.0
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}


@dataclass
class Round:
    requests: float
    first_ms: float
    tokens: float


async def ask(http: aiohttp.ClientSession, url: str, key: str, stream: bool, tokens: int) -> tuple[float, int]:
    """One request: seconds to the first bytes of the answer, and tokens it held."""
    began = time.perf_counter()
    body = {**ASK, "max_tokens": tokens, "stream": stream}
    async with http.post(f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}) as response:
        first, count = None, 0
        async for chunk in response.content.iter_any():
            first = first or time.perf_counter() - began
            count += chunk.count(b'"content":') if stream else 0
        assert response.status == 200
        return first or 0.0, count or tokens


async def measure(url: str, key: str, clients: int, stream: bool, tokens: int) -> Round:
    firsts: list[float] = []
    counts: list[int] = []

    async def client(http: aiohttp.ClientSession, end: float) -> None:
        while time.perf_counter() < end:
            first, count = await ask(http, url, key, stream, tokens)
            firsts.append(first)
            counts.append(count)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as http:
        began = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for _ in range(clients):
                tasks.start_soon(client, http, began + SECONDS)
        took = time.perf_counter() - began
    return Round(len(firsts) / took, statistics.median(firsts) * 1000, sum(counts) / took)


async def compare(direct: tuple[str, str], proxy: tuple[str, str], clients: int, stream: bool, tokens: int) -> None:
    rounds: dict[str, list[Round]] = {"direct": [], "proxy": []}
    for _ in range(2):
        for name, (url, key) in (("direct", direct), ("proxy", proxy)):
            rounds[name].append(await measure(url, key, clients, stream, tokens))
    plain, ours = (max(rounds[name], key=lambda r: r.requests) for name in ("direct", "proxy"))
    shape = f"{'stream' if stream else 'whole':6} {tokens:4} tokens {clients:3} clients"
    print(
        f"{shape}   {plain.requests:8.1f} {ours.requests:8.1f} {ours.requests / plain.requests:6.2f}   "
        f"{plain.first_ms:8.1f} {ours.first_ms:8.1f}   {plain.tokens:8.0f} {ours.tokens:8.0f} {ours.tokens / plain.tokens:6.2f}",
        flush=True,
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_gguf(Path(folder, "tiny.gguf"))
        host = HostProcess(Path(sys.executable), Path(folder, "home"), Path(folder)).start()
        try:
            with host.client() as http:
                calls: list[tuple[str, dict[str, Any]]] = [
                    ("model/import", {"path": "tiny.gguf"}),
                    ("service/create", {"model_id": "tiny", "options": {"parallel": 8, "context_length": 512}}),
                ]
                for unit, arguments in calls:
                    http.post(f"/units/{unit}", json=arguments).raise_for_status()
                service = http.post("/units/service/get", json={"service_id": "tiny"}).json()["service"]
            instance = service["endpoints"][0]
            direct = (instance["base_url"], (host.home.path / "instances" / instance["instance_id"] / "key").read_text().strip())
            proxy = (host.url, host.home.key())
            print("                                requests/s              first answer ms     tokens/s")
            print("                                  direct     AIMA  ratio     direct     AIMA     direct     AIMA  ratio")
            for stream, tokens in ((False, 8), (True, 64)):
                for clients in (1, 8, 64):
                    anyio.run(compare, direct, proxy, clients, stream, tokens)
        finally:
            host.stop()


if __name__ == "__main__":
    main()
