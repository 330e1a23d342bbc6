"""Events from a cursor over every face, exactly once, though the host is killed while they are read and another takes the home over."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from aima_lib import Aima, AimaError, AsyncAima
from tests.world import ROOT, HostProcess, environment, until

SECONDS = 30
Take = Callable[[Any], None]
Read = Callable[[HostProcess, int, Take], None]


class Enough(Exception):
    """All that was to be seen was seen."""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[HostProcess]:
    host = HostProcess(Path(sys.executable), tmp_path / "home", ROOT).start()
    yield host
    host.stop()


def over_sse(host: HostProcess, after: int, take: Take) -> None:
    """As EventSource does: it comes back with the last id that it saw."""
    with host.client() as client, client.stream("GET", "/events", headers={"Last-Event-ID": str(after)}) as answer:
        lines: dict[str, str] = {}
        for line in answer.iter_lines():
            field, _, value = line.partition(": ")
            lines[field] = value
            if not line and "data" in lines:
                event = json.loads(lines["data"])
                assert lines["id"] == str(event["seq"]) and lines["event"] == event["type"]
                take(event)
                lines = {}


def over_the_library(host: HostProcess, after: int, take: Take) -> None:
    with Aima(host.home.path) as aima:
        for event in aima.events(after):
            take(event)


def over_the_async_library(host: HostProcess, after: int, take: Take) -> None:
    async def read() -> None:
        async with AsyncAima(host.home.path) as aima, aclosing(aima.events(after)) as events:  # type: ignore[type-var]
            async for event in events:
                take(event)

    anyio.run(read)


def over_the_command_line(host: HostProcess, after: int, take: Take) -> None:
    command = [sys.executable, "-m", "aima_mcp.main", "events", "--follow", "--after", str(after), "--output", "json"]
    around = environment(host.home.path) | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=around, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                take(json.loads(line))
        finally:
            process.kill()


def over_mcp(host: HostProcess, after: int, take: Take, transport: str) -> None:
    """Watch aima://events, and page through event_list from the cursor whenever it has changed: watching never carries an event itself."""

    async def read() -> None:
        cursor = after
        async with httpx2.AsyncClient(headers=host.headers, trust_env=False, timeout=SECONDS) as http:
            if transport == "stdio":
                around = environment(host.home.path) | {"PYTHONPATH": str(ROOT)}
                way: Any = stdio_client(StdioServerParameters(command=sys.executable, args=["-m", "aima_mcp.main", "mcp"], env=around))
            else:
                way = streamable_http_client(f"{host.url}/mcp", http_client=http)
            async with Client(way) as client, client.listen(resource_subscriptions=["aima://events"]) as changes:
                while True:
                    page = await client.call_tool("event_list", {"after": cursor, "limit": 7})
                    if page.is_error and transport == "stdio":  # the host is away; the server on our line waits for the next one
                        await anyio.sleep(0.1)
                        continue
                    if page.is_error:
                        raise OSError(str(page.content))
                    assert page.structured_content is not None and not page.structured_content["lagged"]
                    for event in page.structured_content["events"]:
                        cursor = event["seq"]
                        take(event)
                    if not page.structured_content["events"]:
                        await anext(aiter(changes))

    anyio.run(read)


READS: dict[str, Read] = {
    "sse": over_sse,
    "library": over_the_library,
    "async_library": over_the_async_library,
    "command_line": over_the_command_line,
    "mcp_stdio": partial(over_mcp, transport="stdio"),
    "mcp_http": partial(over_mcp, transport="http"),
}


class Reader:
    """One that reads until it has seen number `last`, and comes back to whatever host there is, from where it was."""

    def __init__(self, host: HostProcess, read: Read) -> None:
        self.seen: list[Any] = []
        self.last: int | None = None
        self.failed: BaseException | None = None
        self._host, self._read, self._stop = host, read, threading.Event()
        self.up = threading.Event()  # without a host some would start one, and this test starts its own
        self.up.set()
        self._thread = threading.Thread(target=self._go, daemon=True)
        self._thread.start()

    def take(self, event: Any) -> None:
        self.seen.append(event)
        if self._stop.is_set() or (self.last is not None and event["seq"] >= self.last):
            raise Enough

    def _go(self) -> None:
        while self.up.wait() and not self._stop.is_set():
            try:
                self._read(self._host, self.seen[-1]["seq"] if self.seen else 0, self.take)
            except Enough:
                return
            except (AimaError, httpx.HTTPError, OSError, AssertionError):  # the host is away
                self._stop.wait(0.1)
            except BaseException as error:
                if "Enough" in repr(_leaves(error)):
                    return
                self._stop.wait(0.1)  # a client of MCP whose server went away

    def end(self) -> list[int]:
        self._thread.join(SECONDS)
        alive = self._thread.is_alive()
        self._stop.set()
        assert not alive, f"it saw {len(self.seen)} events and not number {self.last}"
        return [event["seq"] for event in self.seen]


def _leaves(error: BaseException) -> list[BaseException]:
    return [leaf for inner in error.exceptions for leaf in _leaves(inner)] if isinstance(error, BaseExceptionGroup) else [error]


def happen(host: HostProcess, times: int) -> int:
    """Let things happen; the number of the newest event."""
    with host.client() as client:
        for _ in range(times):
            client.post("/units/device/detect", json={}).raise_for_status()
        return int(client.post("/units/event/list", json={"limit": 1}).json()["last"])


def test_each_face_replays_exactly_once_over_a_host_that_was_killed(process: HostProcess) -> None:
    happen(process, 10)
    readers = {name: Reader(process, read) for name, read in READS.items()}
    try:
        for name, reader in readers.items():
            until(lambda reader=reader: len(reader.seen) >= 10, SECONDS, f"{name} at the log's beginning")  # type: ignore[misc]
        happen(process, 3)
        for reader in readers.values():
            reader.up.clear()
        process.kill()
        process.start()
        for reader in readers.values():
            reader.up.set()
        last = happen(process, 10)
        for reader in readers.values():
            reader.last = last
        happen(process, 1)  # should they have seen it already
        seen = {name: reader.end() for name, reader in readers.items()}
    finally:
        for reader in readers.values():
            reader.last = 0
            reader.up.set()
    for name, numbers in seen.items():
        assert numbers[:last] == list(range(1, last + 1)), name


def test_who_comes_back_too_late_is_told_so_on_every_face(tmp_path: Path) -> None:
    config = "[events]\nretention_count = 100\n"
    process = HostProcess(Path(sys.executable), tmp_path / "home", ROOT, config=config).start()
    try:
        last = happen(process, 130)
        process.kill()
        process.start()  # the first thing a host does is to forget
        with process.client() as client:
            first = until(lambda: (found := client.post("/units/event/list", json={"after": 5}).json())["lagged"] and found, 20, "it")[
                "first"
            ]
            assert client.post("/units/event/list", json={"after": first - 1}).json()["lagged"] is False
            assert client.get("/resources", params={"uri": "aima://events"}).json()["first"] == first
        for name in ("sse", "library", "async_library", "command_line"):
            seen: list[Any] = []

            def take(event: Any, seen: list[Any] = seen) -> None:
                seen.append(event)
                if event["seq"] >= last:
                    raise Enough

            with pytest.raises(Enough):
                READS[name](process, 5, take)
            assert seen[0]["type"] == "lagged", name
            assert (seen[0]["payload"]["after"], seen[0]["payload"]["first"]) == (5, seen[1]["seq"]), name
            assert [event["seq"] for event in seen] == list(range(seen[0]["seq"], last + 1)), name
    finally:
        process.stop()


def test_a_stream_says_where_to_go_on_before_anything_happens(process: HostProcess) -> None:
    last = happen(process, 1)
    with process.client() as client, client.stream("GET", "/events") as answer:
        head = b""
        for piece in answer.iter_raw():
            head += piece
            if b"\n\n" in head:
                break
    start, end = b": open\nid: ", b"\n\n"
    assert head.startswith(start) and last <= int(head[len(start) :].partition(end)[0]) <= happen(process, 0)
