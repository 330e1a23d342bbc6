"""The library's clients: embedded and attached, blocking and awaited."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sqlite3
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
from aima_lib.results import Result
from aima_lib.runtime import host
from tests.tiny import write_tiny_gguf
from tests.world import ROOTS, HostProcess


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
        with anyio.fail_after(20):
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


def test_a_run_is_followed_to_its_end(home: Home, tmp_path: Path) -> None:
    weights = write_tiny_gguf(tmp_path / "tiny.gguf")
    with Aima(home.path) as aima:
        run = aima.start("model.import", {"path": str(weights), "name": "tiny"}, idempotency_key="once")
        following = aima.follow(run["id"])
        assert all("phase" in item for item in following)
        assert following.result is not None and following.result["status"] == "succeeded"
        lost = aima.follow("nothing-1")
        with pytest.raises(errors.NotFound):
            list(lost)


@pytest.mark.anyio
async def test_leaving_a_run_leaves_it_as_it_is(home: Home, tmp_path: Path) -> None:
    async with AsyncAima(home.path) as aima:
        gateway, told, go_on = aima.door, anyio.Event(), anyio.Event()
        assert isinstance(gateway, Gateway)

        async def steps(ctx: Context, **arguments: object) -> dict[str, object]:
            await ctx.send({"phase": "one", "message": "first"})
            told.set()
            await go_on.wait()
            await ctx.send({"phase": "two", "message": "second"})
            return {"valid": True, "issues": []}

        unit = gateway.registry["model.verify"]
        gateway._callable["model.verify"] = dataclasses.replace(unit, handler=steps)
        run = await aima.start("model.verify", {"model_id": "any"})
        await told.wait()
        async for item in aima.follow(run["id"]):
            assert item["phase"] == "one"
            break
        again = aima.follow(run["id"])
        seen = []
        async for item in again:
            seen.append(item["phase"])
            go_on.set()
        assert seen == ["one", "two"] and again.result is not None and again.result["status"] == "succeeded", again.result


def test_the_blocking_client_follows_events(home: Home) -> None:
    with Aima(home.path) as aima:
        before = aima.event.list(limit=1)["last"]
        events = aima.events(after=before, types=("device.*",))
        aima.device.detect()
        assert next(events)["type"] == "device.detected"
        events.close()  # type: ignore[attr-defined]
        with pytest.raises(errors.InvalidArgument, match="no event called"):
            list(aima.events(types=("no.such",)))


def test_sql_reads_a_copy_of_what_this_process_hosts(home: Home) -> None:
    with Aima(home.path) as aima:
        aima.device.detect()
        db = aima.sql()
        assert ("device", "cpu") in db.execute("SELECT kind, id FROM documents").fetchall()
        assert db.execute("SELECT body ->> 'type' FROM documents WHERE kind = 'device' AND id = 'cpu'").fetchone() == ("cpu",)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            db.execute("DELETE FROM documents")
        db.close()
        assert aima.device.info()["devices"], "the store holds its own locks still"


@pytest.mark.anyio
async def test_sql_is_awaited_too(home: Home) -> None:
    async with AsyncAima(home.path) as aima:
        db = await aima.sql()
        assert db.execute("SELECT count(*) FROM documents").fetchone()[0] >= 0
        db.close()


def test_sql_reads_what_another_process_hosts_as_it_changes(home: Home, tmp_path: Path) -> None:
    (home.path / "config.toml").write_text(ROOTS, encoding="utf-8")
    process = HostProcess(Path(sys.executable), home.path, Path(__file__).parents[2]).start()
    try:
        with Aima(home.path) as aima:
            db = aima.sql()
            asked = "SELECT count(*) FROM documents WHERE kind = 'run'"
            assert db.execute(asked).fetchone() == (0,)
            with pytest.raises(errors.NotFound):
                aima.model.verify(model_id="nothing")
            assert db.execute(asked).fetchone() == (1,)
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                db.execute("DELETE FROM documents")
            db.close()
        for afar in ({"url": process.url, "key": home.key()}, {"home": home.path, "key": home.key()}):
            with Aima(**afar) as aima, pytest.raises(errors.FailedPrecondition, match="SQL reads the file"):  # type: ignore[arg-type]
                aima.sql()
    finally:
        process.stop()


def test_a_notebook_sees_results_and_names(home: Home) -> None:
    with Aima(home.path) as aima:
        found = aima.device.info()
        assert isinstance(found, dict) and json.loads(json.dumps(found)) == found
        shown = found._repr_html_()  # type: ignore[attr-defined]
        assert shown.startswith("<table><caption>devices</caption>") and "<td>cpu</td>" in shown
        assert {"model", "device", "sql", "stream"} <= set(dir(aima))
        assert "token" in inspect.signature(aima.model.delete).parameters
        assert "idempotency_key" in inspect.signature(aima.model.pull).parameters
        assert "pull" in dir(aima.model)


def test_a_results_html_holds_no_markup_of_others() -> None:
    evil = "<script>alert(1)</script>"
    shown = Result({"models": [{"id": evil, evil: 1}] * 200, "total": 200, "text": "x" * 9000, "one": {evil: evil}})._repr_html_()
    assert "<script" not in shown and "&lt;script&gt;" in shown and "and 100 more" in shown and len(shown) < 60_000
    assert Result({"model": {"id": "a", "size_bytes": 1_500_000}})._repr_html_() == (
        "<table><tr><th>id</th><td>a</td></tr><tr><th>size</th><td>1.5 MB</td></tr></table>"
    )
    assert Result({})._repr_html_() == "" and Result({"models": []})._repr_html_() == "<table><tr><th>models</th><td>–</td></tr></table>"
