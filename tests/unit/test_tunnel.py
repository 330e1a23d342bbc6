"""Bytes between two machines: carried for the other end of one start, and for nobody else."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator

import pytest

from aima_lib.launchers.tunnel import Door, Identity, Streams, context, identity, reach

pytestmark = pytest.mark.anyio
HERE, THERE = identity(), identity()


@pytest.fixture
async def door(anyio_backend: str) -> AsyncIterator[tuple[Door, int]]:
    """A door before a program that repeats what it hears."""

    async def repeat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(repeat, "127.0.0.1", 0) as inner:
        opened = Door(lambda: reach("127.0.0.1", inner.sockets[0].getsockname()[1]))
        yield opened, await opened.listen("127.0.0.1", tls=context(THERE, HERE.certificate, listens=True))
        opened.close()


async def said(streams: Streams, data: bytes) -> bytes:
    reader, writer = streams
    writer.write(data)
    await writer.drain()
    return await asyncio.wait_for(reader.readexactly(len(data)), 10)


async def ended(streams: Streams) -> bool:
    try:
        return await asyncio.wait_for(streams[0].read(1), 10) == b""
    except OSError:
        return True
    finally:
        streams[1].close()


async def test_what_one_end_says_the_other_hears(door: tuple[Door, int]) -> None:
    opened, port = door
    streams = await reach("127.0.0.1", port, context(HERE, THERE.certificate, listens=False))
    assert await said(streams, data := bytes(range(256)) * 4096) == data
    opened.close_all()
    assert await ended(streams), "cut, when its node is lost"


@pytest.mark.parametrize("stranger", [None, identity()], ids=["nobody", "somebody else"])
async def test_nobody_else_comes_in(door: tuple[Door, int], stranger: Identity | None) -> None:
    if stranger is None:
        tls = ssl.create_default_context(cadata=THERE.certificate)
        tls.check_hostname = False
    else:
        tls = context(stranger, THERE.certificate, listens=False)
    streams = await reach("127.0.0.1", door[1], tls)
    streams[1].write(b"GET / HTTP/1.1\r\n\r\n")
    assert await ended(streams), "before a byte was carried"


async def test_who_is_not_whom_it_takes_it_for_is_told_nothing(door: tuple[Door, int]) -> None:
    with pytest.raises(ssl.SSLError, match="certificate verify failed"):
        await reach("127.0.0.1", door[1], context(HERE, identity().certificate, listens=False))


async def test_a_far_side_that_is_not_there_is_a_closed_connection(anyio_backend: str) -> None:
    async def gone() -> Streams:
        raise ConnectionRefusedError

    opened = Door(gone)
    assert await ended(await reach("127.0.0.1", await opened.listen("127.0.0.1")))
    opened.close()
