"""The process that serves: where it listens, how it ends, and what it does with clients that take their time."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anyio
import httpx
import psutil
import pytest

from aima_lib.errors import FailedPrecondition, InvalidArgument
from aima_lib.infra.home import Home
from aima_lib.infra.store import Store
from aima_mcp import guard
from aima_mcp.server import listen, refuse_open, serve
from tests.tiny import write_tiny_gguf
from tests.world import ROOT, HostProcess, until, within

ENDS_WITHIN_SECONDS = 2.0


@contextlib.asynccontextmanager
async def served(home: Home) -> AsyncIterator[tuple[str, int]]:
    """A home served by this process; its URL and port."""
    urls: list[str] = []
    ready = anyio.Event()

    def began(url: str) -> None:
        urls.append(url)
        ready.set()

    async def run() -> None:
        await serve(home, port=0, ready=began)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        with anyio.fail_after(20):
            await ready.wait()
        yield urls[0], int(urls[0].rpartition(":")[2])
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.post(f"{urls[0]}/shutdown", headers={"x-api-key": home.key()})


@pytest.fixture
def process(tmp_path: Path) -> Iterator[HostProcess]:
    host = HostProcess(Path(sys.executable), tmp_path / "home", ROOT, '[egress]\nallow = ["127.0.0.1"]\n').start()
    yield host
    host.kill()  # nothing happens to one that has ended


@pytest.fixture
def silent_hub() -> Iterator[str]:
    """The URL of a hub that takes requests and never answers one."""
    leave = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            leave.wait(30)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    leave.set()
    server.shutdown()
    thread.join()
    server.server_close()


# Where it listens


@pytest.mark.anyio
async def test_a_taken_port_is_refused_at_once_naming_who_holds_it(home: Home) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with within(1), pytest.raises(FailedPrecondition) as refused:
            await serve(home, port=port)
    assert str(port) in str(refused.value) and f"pid {os.getpid()}" in str(refused.value)
    assert home.host() is None


@pytest.mark.anyio
@pytest.mark.parametrize("address", ["no.such.host.invalid", "192.0.2.1"])
async def test_an_address_that_is_not_ours_is_refused(home: Home, address: str) -> None:
    with pytest.raises(InvalidArgument, match=address):
        await serve(home, host=address, port=0, behind_proxy=True)


@pytest.mark.anyio
@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1"])
async def test_an_address_that_others_reach_is_refused_unless_a_proxy_is_in_front(home: Home, address: str) -> None:
    with pytest.raises(FailedPrecondition, match="beyond this machine") as refused:
        await serve(home, host=address, port=0)
    assert "--behind-proxy" in str(refused.value.hint) and home.host() is None
    (home.path / "config.toml").write_text(f'[server]\nhost = "{address}"\n', encoding="utf-8")
    with pytest.raises(FailedPrecondition, match="beyond this machine"):
        await serve(home, port=0)
    for inside in ("127.0.0.1", "localhost", "::1"):
        refuse_open(inside)


@pytest.mark.anyio
async def test_behind_a_proxy_every_address_may_be_bound(home: Home) -> None:
    (home.path / "config.toml").write_text('[server]\nhost = "0.0.0.0"\nbehind_proxy = true\n', encoding="utf-8")
    async with served(home) as (url, _), httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"{url}/health")).is_success


@pytest.mark.anyio
async def test_a_second_host_is_refused_naming_the_first_even_on_its_port(home: Home) -> None:
    async with served(home) as (_, port):
        with pytest.raises(FailedPrecondition) as refused:
            await serve(home, port=port)
    assert str(os.getpid()) in str(refused.value) and "hosted" in str(refused.value)


@pytest.mark.anyio
async def test_any_port_is_announced_once_it_answers_and_taken_back(home: Home) -> None:
    async with served(home) as (url, _):
        found = home.host()
        assert found is not None and found.url == url
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"{url}/health")).json()["status"] == "ok"
    assert home.host() is None


def test_mcp_is_loaded_by_whoever_asks_over_it() -> None:
    """Its SDK takes longer to import than all the rest of a host."""
    found = (
        "import sys, aima_mcp.app, aima_mcp.server; print(sorted({name.partition('.')[0] for name in sys.modules} & {'mcp', 'pydantic'}))"
    )
    done = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


# How it ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_within_two_seconds_whatever_is_open(process: HostProcess, silent_hub: str, number: signal.Signals) -> None:
    with process.client() as client, contextlib.ExitStack() as open:
        pull = client.post("/units/model/pull", json={"repo": "some/model", "mirror": silent_hub}, headers={"Prefer": "respond-async"})
        assert pull.status_code == 202, pull.text
        run = pull.json()["run"]["id"]
        lines = []
        for path in ("/events", "/resources?uri=aima://devices", f"/units/run/wait?run_id={run}"):
            response = open.enter_context(client.stream("GET", path, headers={"Accept": "text/event-stream"}))
            lines.append(response.iter_lines())
            next(lines[-1])
        assert process._process is not None
        with within(ENDS_WITHIN_SECONDS):
            process._process.send_signal(number)
            for rest in lines:
                list(rest)  # every stream ends, none is cut
            assert process._process.wait(30) == 0
    assert process.home.host() is None
    store = Store(process.home.path / "aima.db")
    assert store.get("run", run)["status"] == "running", "the next host takes it up"
    store.close()
    assert "Traceback" not in process.log.read_text(encoding="utf-8")


def test_shutdown_answers_first(process: HostProcess) -> None:
    with process.client() as client:
        for wrong in ({"stop_engines": 1}, {"stop": True}, [True]):
            assert client.post("/shutdown", json=wrong).status_code == 400
        answer = client.post("/shutdown", json={"stop_engines": True})
    assert (answer.status_code, answer.json()["status"]) == (202, "stopping")
    assert process._process is not None and process._process.wait(30) == 0


@pytest.mark.engine
def test_engines_end_with_the_host_when_asked_and_come_back_with_the_next(process: HostProcess, tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "tiny.gguf")
    with process.client() as client:
        client.post("/units/model/import", json={"path": str(model), "name": "tiny"}).raise_for_status()
        client.post("/units/service/create", json={"model_id": "tiny", "engine": "llamacpp"}).raise_for_status()
        engine = client.get("/units/engine/get?name=llamacpp").json()["engine"]["instances"][0]["pid"]
    process.stop()
    assert not psutil.pid_exists(engine) or psutil.Process(engine).status() == psutil.STATUS_ZOMBIE
    process.start()
    with process.client() as client:
        until(lambda: client.get("/units/service/get?service_id=tiny").json()["service"]["status"] == "running", 20, "the service")
    process.stop()


# Clients that take their time


async def received(port: int, first: bytes, more: bytes = b"", every: float = 0.1) -> bytes:
    """What comes back until the host closes, for bytes that come slowly."""
    async with await anyio.connect_tcp("127.0.0.1", port) as stream, anyio.create_task_group() as tasks:
        await stream.send(first)

        async def trickle() -> None:
            with contextlib.suppress(anyio.BrokenResourceError):
                while more:
                    await stream.send(more)
                    await anyio.sleep(every)

        tasks.start_soon(trickle)
        answer = b""
        with anyio.fail_after(20), contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                answer += await stream.receive()
        tasks.cancel_scope.cancel()
    return answer


@pytest.mark.anyio
async def test_slow_heads_and_bodies_are_given_up(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "HEAD_SECONDS", 0.4)
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.4)
    async with served(home) as (_, port):
        head = b"POST /units/system/info HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"x-api-key: {home.key()}\r\n".encode()
        whole = head + b"Content-Length: 2\r\n\r\n{}"
        slow = [
            (b"", b""),
            (b"GET / HT", b""),
            (head, b"X: y\r\n"),
            (head + b"Content-Length: 999\r\n\r\n", b" "),
            (whole + b"GET /", b"x"),
        ]
        for first, more in slow:
            began = time.monotonic()
            answer = await received(port, first, more)
            assert time.monotonic() - began > 0.3
            assert answer.count(b"HTTP/1.1 200") == (first.startswith(whole))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            assert (await client.get("/health")).is_success
            await anyio.sleep(0.8)  # an idle connection owes nothing: it is not cut by these deadlines
            assert (await client.get("/health")).is_success


@pytest.mark.anyio
async def test_more_connections_than_it_can_hold_are_told_so(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    most: Callable[[], int] = lambda: 3  # noqa: E731
    monkeypatch.setattr(guard, "most_connections", most)
    async with served(home) as (_, port):
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        asked = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert (await received(port, asked)).startswith(b"HTTP/1.1 503")
        for one in held:
            one.close()
        with anyio.fail_after(10):
            while not (await received(port, asked)).startswith(b"HTTP/1.1 200"):
                await anyio.sleep(0.01)
