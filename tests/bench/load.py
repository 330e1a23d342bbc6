"""What many open streams cost, and what those do who send slowly or never read. Prints figures; asserts nothing.

python tests/bench/load.py [clients]
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
from measure import ROOT

from tests.world import HostProcess

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(port: int, *, limit: int = 4096) -> Stream:
    return await asyncio.open_connection("127.0.0.1", port, limit=limit)


async def follow(port: int, key: str) -> Stream:
    """An open stream of events, its head read."""
    reader, writer = await connect(port)
    writer.write(f"GET /events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
    await reader.readuntil(b"\n\n")
    return reader, writer


async def health(port: int, seconds: float) -> str:
    """How long /health took, one request after the other on one connection."""
    reader, writer = await connect(port)
    taken = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        writer.write(HEALTH)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        taken.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0.01)
    writer.close()
    taken.sort()
    return f"p50 {statistics.median(taken):.1f} ms, p99 {taken[int(len(taken) * 0.99)]:.1f} ms, longest {taken[-1]:.1f} ms ({len(taken)} asked)"


async def idle(host: HostProcess, port: int, clients: int) -> None:
    """Streams on which nothing comes but heartbeats."""
    process, key = psutil.Process(host.pid), host.home.key()
    print(f"/health with nobody there: {await health(port, 5)}")
    before, streams = process.memory_info().rss, list[Stream]()
    for start in range(0, clients, 200):
        streams += await asyncio.gather(*(follow(port, key) for _ in range(min(200, clients - start))))
    held = process.memory_info().rss - before
    print(f"{clients} idle streams: {held / clients / 1024:.1f} KiB each, {held / 2**20:.0f} MiB in all")
    print(f"/health with them: {await health(port, 32)}")
    began = time.perf_counter()
    waiting = [asyncio.ensure_future(reader.readuntil(b"event: device.detected")) for reader, _ in streams]
    answer = await asyncio.to_thread(detect, host)
    await asyncio.gather(*waiting)
    print(f"an event to all of them: {time.perf_counter() - began:.2f} s (the call that caused it {answer:.2f} s)")
    for _, writer in streams:
        writer.close()
    await asyncio.sleep(2)
    print(f"/health after they left: {await health(port, 3)}")


def detect(host: HostProcess) -> float:
    began = time.perf_counter()
    with host.client() as client:
        client.post("/units/device/detect", json={}).raise_for_status()
    return time.perf_counter() - began


async def slow(port: int, key: str, count: int = 300) -> None:
    """Heads that come a byte a second, and bodies that never come."""
    began = time.perf_counter()
    trickles = [asyncio.ensure_future(trickle(port)) for _ in range(count)]
    bodies = [asyncio.ensure_future(half_body(port, key)) for _ in range(count)]
    print(f"/health beside {count} slow heads and {count} slow bodies: {await health(port, 8)}")
    await asyncio.gather(*trickles)
    print(f"slow heads were closed after {time.perf_counter() - began:.1f} s")
    await asyncio.gather(*bodies)
    print(f"slow bodies were closed after {time.perf_counter() - began:.1f} s")


async def trickle(port: int) -> None:
    reader, writer = await connect(port)
    for byte in b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100:
        if reader.at_eof() or writer.is_closing():
            break
        writer.write(bytes([byte]))
        try:
            await asyncio.wait_for(reader.read(1000), 1)
            break
        except TimeoutError:
            continue
    writer.close()


async def half_body(port: int, key: str) -> None:
    reader, writer = await connect(port)
    head = "POST /units/device/detect HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
    writer.write(f"{head}Authorization: Bearer {key}\r\n\r\n{{".encode())
    await reader.read()
    writer.close()


async def deaf(host: HostProcess, port: int, count: int = 200, calls: int = 3000) -> None:
    """Followers that never read, while much happens."""
    process, key = psutil.Process(host.pid), host.home.key()
    streams = [await follow(port, key) for _ in range(count)]
    before = process.memory_info().rss
    await asyncio.to_thread(chatter, host, calls)
    print(f"{count} that never read, {calls} events: {(process.memory_info().rss - before) / 2**20:.0f} MiB more; {await health(port, 5)}")
    for _, writer in streams:
        writer.close()


def chatter(host: HostProcess, calls: int) -> None:
    with host.client() as client:
        for _ in range(calls):
            client.post("/units/device/detect", json={}).raise_for_status()


async def main(clients: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        host = HostProcess(Path(sys.executable), Path(folder) / "home", ROOT).start()
        port = int(host.url.rpartition(":")[2])
        try:
            await idle(host, port, clients)
            await deaf(host, port)
            await slow(port, host.home.key())
        finally:
            host.stop()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if sys.argv[1:] else 10_000))
