"""The library's clients: embedded and attached, blocking and awaited."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from aima_lib import Aima, AimaError, AsyncAima, errors
from aima_lib.attached import _lines
from aima_lib.gateway import Context, Gateway
from aima_lib.infra.home import Home
from aima_lib.runtime import host


@pytest.mark.anyio
async def test_what_the_block_raises_stays_what_it_is(home: Home) -> None:
    with pytest.raises(errors.NotFound, match="no model called 'nothing'"):
        async with AsyncAima(home.path) as aima:
            await aima.model.get(model_id="nothing")
    with pytest.raises(ZeroDivisionError):
        async with AsyncAima(home.path):
            _ = 1 / 0


@pytest.mark.anyio
async def test_a_home_that_another_process_embeds_cannot_be_opened(home: Home) -> None:
    async with host(home):
        with pytest.raises(errors.FailedPrecondition, match="does not listen"):
            async with AsyncAima(home.path):
                pass


def test_a_wrong_config_is_said_plainly(home: Home) -> None:
    (home.path / "config.toml").write_text("[server]\nprot = 1\n", encoding="utf-8")
    with pytest.raises(errors.InvalidArgument, match=r"unknown key server\.prot"):
        Aima(home.path)


def test_the_blocking_client_streams_and_closes(home: Home, tmp_path: Path) -> None:
    with Aima(home.path) as aima:
        wait = aima.stream("model.import", path=str(tmp_path / "nothing.gguf"))
        with pytest.raises(AimaError):
            list(wait)
        assert aima.system.info()["url"] is None
        assert "events" in aima.read("aima://events")
    assert home.host() is None


@pytest.mark.anyio
async def test_an_open_stream_can_be_left(home: Home) -> None:
    async with AsyncAima(home.path) as aima:
        stream = aima.stream("run.list")
        assert [item async for item in stream] == []
        assert stream.result == {"runs": [], "total": 0}
        with pytest.raises(errors.FailedPrecondition, match="not open"):
            AsyncAima(home.path).stream("run.list")


def test_methods_are_described_as_their_units_are(home: Home) -> None:
    with Aima(home.path) as aima:
        assert "Download a model" in (aima.model.pull.__doc__ or "")
        assert aima.model.import_.__name__ == "import"
        with pytest.raises(AttributeError, match="no domain called 'modle'"):
            _ = aima.modle
        with pytest.raises(errors.InvalidArgument):
            aima.model.list(limitt=3)


@pytest.mark.anyio
async def test_a_passing_host_brings_nothing_up(home: Home) -> None:
    async with host(home) as gateway:
        wanted = {"id": "wanted", "name": "wanted", "model_id": "gone", "engine": "llamacpp", "options": {}, "desired_replicas": 1}
        await gateway.services.store.insert("service", wanted | {"error": None, "created_at": "", "instance_id": "llamacpp-wanted"})
    async with host(home, passing=True) as gateway:
        assert (await gateway.call("service.get", {"service_id": "wanted"}))["service"]["error"] is None
        assert (await gateway.call("event.list", {"types": ["service.*"]}))["events"] == []


def test_a_program_that_forgets_to_close_ends_all_the_same(home: Home) -> None:
    forgetful = f"from aima_lib import Aima; aima = Aima({str(home.path)!r}); print(aima.model.list()['total'])"
    done = subprocess.run([sys.executable, "-c", forgetful], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
    assert not (home.path / "host.json").exists(), "it was closed, not cut off"


@pytest.mark.anyio
async def test_a_reader_that_leaves_is_no_bug_of_aima(home: Home) -> None:
    async with AsyncAima(home.path) as aima:
        gateway, done = aima.door, anyio.Event()
        assert isinstance(gateway, Gateway)

        async def chatty(ctx: Context, **arguments: object) -> dict[str, object]:
            try:
                while True:
                    await ctx.send({"delta": {"content": "a"}})
            finally:
                done.set()

        unit = gateway.registry["inference.chat"]
        gateway._callable["inference.chat"] = dataclasses.replace(unit, handler=chatty)
        stream = aiter(aima.stream("inference.chat", model="any", messages=[{"role": "user", "content": "hi"}]))
        assert await anext(stream) == {"delta": {"content": "a"}}
        await stream.aclose()  # type: ignore[attr-defined]
        with anyio.fail_after(5):
            await done.wait()
            while not gateway.outcomes:
                await anyio.sleep(0)
        assert dict(gateway.outcomes) == {("inference.chat", "cancelled"): 1}


@pytest.mark.anyio
async def test_lines_end_where_the_protocol_says() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in ("data: a\u2028".encode(), b"b\xc2", b"\x85c\n\nda", b"ta: ", b"d\n"):
            yield piece

    assert [line.decode() async for line in _lines(pieces())] == ["data: a\u2028b\x85c", "", "data: d"]
