"""The event log at a million events: `python tests/bench/events.py [events]`. About two minutes; figures are ratios where they can be.

What it shows: cursor reads cost the same at both ends, by whatever filter; publishing is no slower with a hundred subscribers in the
way, none of whom loses an event or is marked as lagged; dropping the old stalls no writer.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import measure

from aima_lib.infra.clock import now
from aima_lib.infra.events import Events
from aima_lib.infra.store import Store
from aima_lib.registry import Registry
from tests.world import HostProcess

assert measure.ROOT
COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
SUBSCRIBERS, LIVE = 100, 50_000
IN_FLIGHT = 4096  # a publisher that never yields would only measure how much memory there is


def publish(log: Events, number: int) -> None:
    """One event of the kinds a busy host has: mostly requests, now and then something else."""
    if number % 50:
        who = {"request_id": f"chat-{number:x}", "model": "tiny", "task": "chat", "service_id": "tiny", "instance_id": f"i{number % 7}"}
        log.publish("inference.request_started", who, subject=f"i{number % 7}")
    elif number % 5_000:
        log.publish("model.deleted", {"model_id": f"m{number}", "freed_bytes": number}, subject=f"m{number % 97}")
    else:
        log.publish("service.failed", {"service_id": "tiny", "model_id": "tiny", "cause": "it ended"}, subject="tiny")


async def fill(log: Events, count: int) -> float:
    """Publish as fast as the log takes it; events a second, on disk."""
    began, start = time.perf_counter(), log.last
    for number in range(count):
        publish(log, number)
        if number % 64 == 0:
            await anyio.lowlevel.checkpoint()
            while start + number - log.last > IN_FLIGHT:
                await anyio.lowlevel.checkpoint()
    while log.last < start + count:
        await anyio.lowlevel.checkpoint()
    return count / (time.perf_counter() - began)


def ends(log: Events) -> None:
    """The same page at the beginning, in the middle and at the end of the log."""
    far = {"beginning": log.first - 1, "middle": (log.first + log.last) // 2, "end": log.last - 6_000}
    reads: dict[str, Callable[[int], object]] = {
        "a page of 100": lambda after: log.page(after, 100),
        "100 of a common type": lambda after: log.page(after, 100, ("inference.request_started",)),
        "a whole domain": lambda after: log.page(after, 100, ("model.*",)),
        "the next of a rare type": lambda after: log.page(after, 1, ("service.failed",)),
        "100 about one subject": lambda after: log.page(after, 100, subject="i3"),
    }
    for what, read in reads.items():
        taken: dict[str, list[float]] = {where: [] for where in far}
        for turn in range(60):
            for where, after in far.items():
                before = time.perf_counter()
                read(after + turn)
                taken[where].append(time.perf_counter() - before)
        medians = {where: statistics.median(times) * 1e6 for where, times in taken.items()}
        said = "  ".join(f"{where} {median:>7.0f} µs" for where, median in medians.items())
        print(f"{what:<26} {said}   end/beginning {medians['end'] / medians['beginning']:>5.2f}", flush=True)


async def live(log: Events) -> None:
    """A hundred subscribers, each of which must see every event once and in order."""
    start, lagged, lost = log.last, 0, 0

    async def subscribe(ready: anyio.Event) -> None:
        nonlocal lagged, lost
        cursor = start
        ready.set()
        async for event in log.follow(start):
            lagged += event["type"] == "lagged"
            lost += event["seq"] != cursor + 1
            cursor = event["seq"]
            if cursor == start + LIVE:
                return

    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for _ in range(SUBSCRIBERS):
            ready = anyio.Event()
            tasks.start_soon(subscribe, ready)
            await ready.wait()
        rate = await fill(log, LIVE)
    took = time.perf_counter() - began
    print(f"{SUBSCRIBERS} subscribers: published {rate:,.0f}/s; all had seen {LIVE:,} events after {took:.1f} s, "
          f"{SUBSCRIBERS * LIVE / took:,.0f} deliveries/s; lost {lost}, lagged marks {lagged}", flush=True)  # fmt: skip


async def forget(store: Store, log: Events) -> None:
    """Drop half of the log while somebody else writes."""
    waits: list[float] = []
    half, began = (log.last - log.first) // 2, time.perf_counter()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(log.prune, "2000-01-01T00:00:00.000Z", half, 1 << 40)
        await anyio.sleep(0.01)
        while log.last - log.first > half:
            before = time.perf_counter()
            await store.put("note", {"id": "n", "at": now()})
            waits.append(time.perf_counter() - before)
            await anyio.sleep(0.001)
    waits.sort()
    print(f"dropped {half:,} events in {time.perf_counter() - began:.1f} s; a write meanwhile took {waits[len(waits) // 2] * 1e3:.1f} ms, "
          f"99 % under {waits[int(len(waits) * 0.99)] * 1e3:.1f} ms, at most {waits[-1] * 1e3:.1f} ms", flush=True)  # fmt: skip


async def replayed(host: HostProcess, after: int, last: int) -> tuple[float, float, int]:
    """Seconds to the first event over SSE, to the last, and how many came."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(host.url.rpartition(":")[2]))
    key = host.home.key()
    writer.write(f"GET /events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nLast-Event-ID: {after}\r\n\r\n".encode())
    first, came, end, tail, rest = 0.0, 0, b"id: %d\n" % last, b"", b""
    while end not in tail:
        piece = await reader.read(1 << 16)
        assert piece, "the stream ended"
        tail = tail[-len(end) :] + piece
        came = came + (rest + piece).count(b"\ndata: ")
        rest = piece[-6:]
        first = first or (time.perf_counter() - began if came else 0.0)
    writer.close()
    return first, time.perf_counter() - began, came


async def over_sse(folder: Path) -> None:
    """A new host of the same home; clients that come back with Last-Event-ID."""
    config = "[events]\nretention_count = 100000000\nretention_bytes = 100000000000\n"
    host = HostProcess(Path(sys.executable), folder, measure.ROOT, config=config).start()
    try:
        with host.client() as client:
            page = client.post("/units/event/list", json={"limit": 1}).json()
        first, last = page["first"], page["last"]
        for where, after in (("beginning", first - 1), ("middle", (first + last) // 2), ("end", last - 1_000)):
            found = [await replayed(host, after, after + 1_000) for _ in range(5)]
            print(f"SSE, 1,000 from the {where:<10} first after {min(one[0] for one in found) * 1e3:.1f} ms, "
                  f"all after {min(one[1] for one in found) * 1e3:.1f} ms", flush=True)  # fmt: skip
        count = min(LIVE, last - first)
        _, seconds, came = await replayed(host, last - count, last)
        print(f"SSE, one client: {came:,} of {count:,} replayed at {came / seconds:,.0f}/s", flush=True)
        began, all_of = time.perf_counter(), []
        async with anyio.create_task_group() as tasks:

            async def one() -> None:
                all_of.append((await replayed(host, last - count // 10, last))[2])

            for _ in range(SUBSCRIBERS):
                tasks.start_soon(one)
        took = time.perf_counter() - began
        print(
            f"SSE, {SUBSCRIBERS} clients at once: {set(all_of)} of {count // 10:,} each, {sum(all_of) / took:,.0f} deliveries/s", flush=True
        )
    finally:
        host.stop()


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "aima.db"
        store = Store(path)
        types = {unit.name: unit for unit in Registry.described().of("event")}
        log = Events(store, types)
        first = await fill(log, min(LIVE, COUNT))
        rest = await fill(log, COUNT - log.last) if log.last < COUNT else first
        print(f"published {COUNT:,} events: {rest:,.0f}/s ({rest / first:.2f} of the first {LIVE:,}); "
              f"{os.path.getsize(path) / COUNT:.0f} bytes an event, the log says {log.bytes() / COUNT:.0f}", flush=True)  # fmt: skip
        before = time.perf_counter()
        log = Events(store, types)
        print(f"opened again in {(time.perf_counter() - before) * 1e3:.1f} ms", flush=True)
        ends(log)
        alone = await fill(log, LIVE)
        print(f"publisher alone: {alone:,.0f}/s", flush=True)
        await live(log)
        await forget(store, log)
        store.close()
        await over_sse(Path(folder))


if __name__ == "__main__":
    anyio.run(main)
