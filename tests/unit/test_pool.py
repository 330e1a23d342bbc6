"""The pool of connections to engines, against small real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from aima_lib.infra import pool
from aima_lib.infra.pool import Line, Lost, Pool

pytestmark = pytest.mark.anyio
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: Application/JSON; charset=utf-8\r\nContent-Length: 2\r\n\r\n{}"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server's URL, and the heads of the requests it got. `serve` gets the number of the connection."""
    heads: list[bytes] = []
    count = 0

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        try:
            await serve(Recorded(reader, heads), writer, count)  # type: ignore[arg-type]
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", heads


class Recorded:
    def __init__(self, reader: asyncio.StreamReader, heads: list[bytes]) -> None:
        self._reader, self._heads = reader, heads

    async def request(self) -> None:
        head = await self._reader.readuntil(b"\r\n\r\n")
        self._heads.append(head)
        await self._reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0))

    async def read(self) -> bytes:
        return await self._reader.read()


async def post(asked: Pool, url: str, keep: int = 1) -> tuple[int, str, bytes]:
    async with asked.ask("POST", url, "/v1/x", {"Authorization": "Bearer k"}, b"{}", keep) as line:
        return line.status, line.content_type, await line.read()


async def test_a_line_is_kept_as_far_as_the_host_bears_it() -> None:
    async def serve(reader: Recorded, writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            await reader.request()
            writer.write(WHOLE)

    async with server(serve) as (url, heads):  # type: ignore[arg-type]
        asked = Pool()
        assert [await post(asked, url) for _ in range(2)] == [(200, "application/json", b"{}")] * 2
        async with asked.ask("POST", url, "/a", {}, b"{}", 1) as first, asked.ask("POST", url, "/b", {}, b"{}", 1) as second:
            assert first is not second and await first.read() == await second.read()
        assert [b"Connection: close" in head for head in heads] == [False, False, False, True]
        with pytest.raises(ValueError, match="end of a line"):
            await asked.begin("GET", url, "/", {"X": "a\r\nY: b"}, None, 1)
        asked.close()


async def test_a_post_that_meets_the_close_of_an_idle_line_is_sent_again_once() -> None:
    async def serve(reader: Recorded, writer: asyncio.StreamWriter, number: int) -> None:
        await reader.request()
        writer.write(WHOLE)
        if number == 1:
            await reader.request()  # and closes without a word, as if it had been idle for too long

    async with server(serve) as (url, heads):  # type: ignore[arg-type]
        asked = Pool()
        for _ in range(2):
            assert (await post(asked, url))[0] == 200
        assert len(heads) == 3
        asked.close()


@pytest.mark.parametrize("answered", [0, 1])
async def test_whoever_ends_with_a_request_is_told_from_whoever_is_not_there(answered: int) -> None:
    """Over a fresh line, and over a kept one whose request is sent again to nobody."""
    stopped: list[asyncio.Server] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(answered + 1):
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(2)
            assert head.startswith(b"POST")
            if number < answered:
                writer.write(WHOLE)
        stopped[0].close()
        writer.close()

    stopped.append(listening := await asyncio.start_server(serve, "127.0.0.1", 0))
    url, asked = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", Pool()
    for _ in range(answered):
        assert (await post(asked, url))[0] == 200
    with pytest.raises(Lost) as lost:
        await post(asked, url)
    assert lost.value.gone and not lost.value.heard
    with pytest.raises(Lost) as lost:
        await post(asked, url)
    assert not lost.value.gone and not lost.value.reached


async def test_nothing_is_sent_again_once_a_byte_of_an_answer_has_come() -> None:
    async def serve(reader: Recorded, writer: asyncio.StreamWriter, number: int) -> None:
        await reader.request()
        writer.write(WHOLE)
        await reader.request()
        writer.write(WHOLE[:20])

    async with server(serve) as (url, heads):  # type: ignore[arg-type]
        asked = Pool()
        await post(asked, url)
        with pytest.raises(Lost) as lost:
            await post(asked, url)
        assert lost.value.heard and len(heads) == 2


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"", "closed"),
        (b"SSH-2.0\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab", "closed"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * (pool.LONGEST_HEAD + 1), "does not end"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "no HTTP"),
    ],
)
async def test_what_is_no_answer_is_lost(said: bytes, message: str) -> None:
    async def serve(reader: Recorded, writer: asyncio.StreamWriter, number: int) -> None:
        await reader.request()
        writer.write(said)

    async with server(serve) as (url, _):  # type: ignore[arg-type]
        with pytest.raises(Lost, match=message):
            await post(Pool(), url)


async def test_bodies_of_every_framing_and_size_come_whole_and_wait_for_their_reader() -> None:
    big = b"x" * (3 * pool.HIGH)
    answers = [
        b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n{}",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(big) + big,
    ]

    async def serve(reader: Recorded, writer: asyncio.StreamWriter, number: int) -> None:
        await reader.request()
        writer.write(answers[number - 1])
        await writer.drain()

    async with server(serve) as (url, _):  # type: ignore[arg-type]
        asked = Pool()
        assert [(await post(asked, url, 0))[2] for _ in answers[:-1]] == [b"{}", b"{}", b"{}", b""]
        async with asked.ask("POST", url, "/", {}, b"{}", 0) as line:
            await line.first()
            while not line._paused:
                await asyncio.sleep(0.001)
            assert line._held < 2 * pool.HIGH
            assert sum([len(piece) async for piece in line.pieces()]) == len(big)


async def test_leaving_an_answer_closes_its_line_and_nobody_there_is_said() -> None:
    closed = asyncio.Event()

    async def serve(reader: Recorded, writer: asyncio.StreamWriter, number: int) -> None:
        await reader.request()
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
        try:
            await reader.read()
        finally:
            closed.set()

    async with server(serve) as (url, _):  # type: ignore[arg-type]
        asked = Pool()
        async with asked.ask("POST", url, "/", {}, b"{}", 1) as line:
            await line.first()
            assert isinstance(line, Line) and not line.is_free
        await asyncio.wait_for(closed.wait(), 5)
    with pytest.raises(Lost) as lost:
        await post(asked, url)
    assert not lost.value.reached and not lost.value.heard


async def test_what_pours_into_a_full_sink_is_held_back_at_its_source() -> None:
    """A client that reads slowly must not make this process hold what an engine says."""
    length, sent, took = 8 << 20, [0], bytearray()

    async def serve(reader: Recorded, writer: asyncio.StreamWriter, number: int) -> None:
        await reader.request()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % length)
        while sent[0] < length:
            writer.write(bytes(1 << 16))
            sent[0] += 1 << 16
            await writer.drain()

    seen = list[int]()

    def sink(data: bytes) -> bool:
        took.extend(data)
        return len(took) < length // 2

    async def drained() -> None:
        before = len(took)
        await asyncio.sleep(0.001)
        seen.append(len(took) - before)

    async with server(serve) as (url, _):
        asked = Pool()
        line = await asked.begin("POST", url, "/v1/x", {}, b"{}", 1)
        await line.pour(sink, drained)
        assert len(took) == length and line.is_free
        assert seen and not any(seen), "nothing comes while the sink is full"
        asked.end(line)
        asked.close()
