"""/v1/chat/completions through AIMA, LiteLLM's proxy and vllm-router, in one run: `python tests/bench/peers.py`.

The proxy has one core to itself; a mock engine that answers at once and the load share another. Keys, routing and accounting are on in
AIMA. It wants `wrk` and, in environments of their own, the two peers; what is not there is left out:

    python3 -m venv /tmp/peers/litellm && /tmp/peers/litellm/bin/pip install 'litellm[proxy]'
    python3 -m venv /tmp/peers/vr && /tmp/peers/vr/bin/pip install vllm-router
    PEERS=/tmp/peers python tests/bench/peers.py [aima] [litellm] [vllm-router]
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from tests.tiny import write_tiny_gguf  # noqa: E402
from tests.world import HostProcess  # noqa: E402

SECONDS = float(os.environ.get("SECONDS", "5"))
PEERS = Path(os.environ.get("PEERS", "/tmp/peers"))
MOCK = Path(__file__).parent / "mock_engine.py"
PROXY_CORE, LOAD_CORE = {0}, {1}
STREAMS = 64


@dataclass
class Subject:
    """What is measured: where it is, the key it wants, the process that does the work."""

    name: str
    url: str
    key: str
    pid: int
    model: str = "mock"
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.pid)

    def cpu(self) -> float:
        """CPU seconds of it and its children that run on its core."""
        total = 0.0
        for one in [self.process, *self.process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                if set(one.cpu_affinity() or ()) <= PROXY_CORE or self.name == "direct":
                    times = one.cpu_times()
                    total += times.user + times.system
        return total

    def rss(self) -> float:
        """MiB of the same processes."""
        total = 0
        for one in [self.process, *self.process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                if set(one.cpu_affinity() or ()) <= PROXY_CORE:
                    total += one.memory_info().rss
        return total / 2**20


def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def answers(url: str, key: str, seconds: float, model: str = "mock") -> None:
    """Wait for a whole answer."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}]}).encode()
    end = time.monotonic() + seconds
    while True:
        try:
            asked = urllib.request.Request(f"{url}/v1/chat/completions", body, headers(key))
            with urllib.request.urlopen(asked, timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError as error:
            if time.monotonic() > end:
                said = error.read().decode() if hasattr(error, "read") else ""
                raise AssertionError(f"{url} does not answer: {error} {said}") from error
            time.sleep(0.1)


def headers(key: str) -> dict[str, str]:
    return {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}


def pinned(command: list[str], core: set[int], log: Path, **around: str) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        cores = ",".join(map(str, core))
        env = os.environ | around
        return subprocess.Popen(["taskset", "-c", cores, *command], stdout=out, stderr=out, env=env, cwd=log.parent)


@contextlib.contextmanager
def engine(folder: Path) -> Iterator[Subject]:
    where = port()
    process = pinned([sys.executable, str(MOCK), "--port", str(where)], LOAD_CORE, folder / "mock.log")
    try:
        answers(f"http://127.0.0.1:{where}", "any", 10)
        yield Subject("direct", f"http://127.0.0.1:{where}", "any", process.pid)
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def aima(folder: Path) -> Iterator[Subject]:
    write_tiny_gguf(folder / "mock.gguf")
    script = folder / "llama-server"
    script.write_text(f'#!/bin/sh\nexec taskset -c 1 {sys.executable} {MOCK} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    host = HostProcess(Path(sys.executable), folder / "home", folder, f'[engines]\nllama_server = "{script}"\n').start()
    os.sched_setaffinity(host.pid, PROXY_CORE)
    for thread in psutil.Process(host.pid).threads():
        os.sched_setaffinity(thread.id, PROXY_CORE)
    try:
        with host.client() as http:
            http.post("/units/model/import", json={"path": "mock.gguf"}).raise_for_status()
            made = {"model_id": "mock", "engine": "llama-server", "options": {"parallel": 64, "context_length": 512}}
            http.post("/units/service/create", json=made).raise_for_status()
            key = http.post("/units/key/create", json={"name": "bench", "scopes": ["inference"], "models": ["mock"]})
            if key.status_code == 409 or "secret" not in key.json():
                token = key.json()["details"]["plan"]["token"]
                asked = {"name": "bench", "scopes": ["inference"], "models": ["mock"]}
                key = http.post("/units/key/create", json=asked, headers={"Aima-Token": token})
            secret = key.raise_for_status().json()["secret"]
        yield Subject("AIMA", host.url, secret, host.pid)
    finally:
        if os.environ.get("KEEP_LOG"):
            print(host.log.read_text()[-3000:])
        host.stop()


@contextlib.contextmanager
def litellm(folder: Path) -> Iterator[Subject]:
    with engine(folder) as behind:
        where = port()
        config = folder / "litellm.yaml"
        parameters = {"model": "openai/mock", "api_base": f"{behind.url}/v1", "api_key": "any"}
        said = {"model_list": [{"model_name": "mock", "litellm_params": parameters}], "general_settings": {"master_key": "sk-bench"}}
        config.write_text(json.dumps(said), encoding="utf-8")
        command = [str(PEERS / "litellm/bin/litellm"), "--config", str(config), "--port", str(where), "--host", "127.0.0.1"]
        log, around = folder / "litellm.log", {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
        yield from _peer("LiteLLM", command, where, "sk-bench", log, around)


@contextlib.contextmanager
def vllm_router(folder: Path) -> Iterator[Subject]:
    with engine(folder) as behind:
        where = port()
        command = [str(PEERS / "vr/bin/vllm-router"), "--host", "127.0.0.1", "--port", str(where), "--worker-urls", behind.url]
        command += ["--policy", "round_robin", "--log-level", "warning", "--prometheus-port", str(port())]
        yield from _peer("vllm-router", command, where, "any", folder / "router.log", {})


def _peer(name: str, command: list[str], where: int, key: str, log: Path, around: dict[str, str]) -> Iterator[Subject]:
    process = pinned(command, PROXY_CORE, log, **around)
    url = f"http://127.0.0.1:{where}"
    try:
        answers(url, key, 90)
        yield Subject(name, url, key, process.pid)
    finally:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.Error):
                one.kill()
        process.wait()


def load(subject: Subject, clients: int, folder: Path) -> tuple[float, float]:
    """Requests a second, and the proxy's CPU µs a request."""
    script = folder / "ask.lua"
    body = json.dumps({"model": subject.model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8})
    lines = ['wrk.method = "POST"', f"wrk.body = {json.dumps(body)}"]
    lines += [f'wrk.headers["{name}"] = {json.dumps(value)}' for name, value in headers(subject.key).items()]
    lines += ["function done(summary, latency, requests)", '  io.write("FAILED ", summary.errors.status, "\\n")', "end"]
    script.write_text("\n".join(lines), encoding="utf-8")
    before, began = subject.cpu(), time.monotonic()
    command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{clients}", f"-d{SECONDS:g}s", "--timeout", "60s", "-s", str(script)]
    done = subprocess.run([*command, f"{subject.url}/v1/chat/completions"], capture_output=True, text=True, check=True)
    took, spent = time.monotonic() - began, subject.cpu() - before
    count = int(re.search(r"(\d+) requests in", done.stdout)[1])  # type: ignore[index]
    failed = int(float(re.search(r"FAILED (\S+)", done.stdout)[1]))  # type: ignore[index]
    assert failed == 0, f"{subject.name}: {failed} of {count} answered otherwise than 200"
    return count / took, spent / max(count, 1) * 1e6


async def stream(subject: Subject, firsts: list[float], counts: list[int], until: float) -> None:
    """Streamed answers one after the other, over one connection each."""
    host, _, where = subject.url.removeprefix("http://").partition(":")
    body = json.dumps({"model": subject.model, "stream": True, "messages": [{"role": "user", "content": "hello"}]}).encode()
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers(subject.key).items())
    asked = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{where}\r\n{fields}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    while time.monotonic() < until:
        began = time.monotonic()
        reader, writer = await asyncio.open_connection(host, int(where))
        writer.write(asked.encode() + body)
        first, tail = None, b""
        while data := await reader.read(65536):
            found = data.count(b'" word"')
            if found and first is None:
                first = time.monotonic() - began
            counts[0] += found
            tail = (tail + data)[-200:]
            if tail.endswith(b"0\r\n\r\n"):
                break
        assert b"[DONE]" in tail, f"{subject.name} broke off: {tail!r}"
        firsts.append(first or 0.0)
        writer.close()


async def streams(subject: Subject) -> tuple[float, float, float]:
    """Chunks a second, the proxy's CPU µs a chunk, and the median ms to the first chunk."""
    firsts, counts, before, began = list[float](), [0], subject.cpu(), time.monotonic()
    until = began + SECONDS
    async with asyncio.TaskGroup() as tasks:
        for number in range(STREAMS):
            await asyncio.sleep(1.0 / STREAMS if number else 0)
            tasks.create_task(stream(subject, firsts, counts, until))
    took = time.monotonic() - began
    return counts[0] / took, (subject.cpu() - before) / counts[0] * 1e6, statistics.median(firsts) * 1000


def measure(subject: Subject, folder: Path) -> None:
    answers(subject.url, subject.key, 10, subject.model)
    time.sleep(2)
    subject.figures["rss"] = subject.rss()
    for clients in (1, 64):
        load(subject, clients, folder) if subject.name != "LiteLLM" else None
        rate, cost = load(subject, clients, folder)
        subject.figures |= {f"rate{clients}": rate, f"cpu{clients}": cost}
    rate, cost, first = asyncio.run(streams(subject))
    subject.figures |= {"chunks": rate, "chunk_cpu": cost, "first": first}
    row = subject.figures
    print(
        f"{subject.name:12} {row['rate1']:9.0f} ({row['cpu1']:7.0f}) {row['rate64']:9.0f} ({row['cpu64']:7.0f})  "
        f"{row['chunks']:8.0f} ({row['chunk_cpu']:6.1f}) {row['first']:8.2f}  {row['rss']:7.0f}",
        flush=True,
    )


KINDS = {"direct": engine, "aima": aima, "vllm-router": vllm_router, "litellm": litellm}


def main() -> None:
    assert shutil.which("wrk"), "apt install wrk"
    os.sched_setaffinity(0, LOAD_CORE)
    print("              requests/s (CPU µs each)                    64 streams              idle RSS")
    print("              1 client            64 clients              chunks/s (CPU)  first ms    MiB", flush=True)
    for name in sys.argv[1:] or list(KINDS):
        with tempfile.TemporaryDirectory() as folder, KINDS[name](Path(folder)) as subject:
            measure(subject, Path(folder))


if __name__ == "__main__":
    main()
