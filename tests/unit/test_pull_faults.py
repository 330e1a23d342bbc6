"""What goes wrong between a server and the disk: each ends in the right bytes or in an error, and in nothing left over."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest

from aima_lib.errors import AimaError, FailedPrecondition, PermissionDenied, ResourceExhausted, Unavailable
from aima_lib.infra.ranges import Ranges, arrived
from tests.hub import Fault, Hub, sha256_of
from tests.tiny import write_tiny_gguf
from tests.unit.test_model import QUICK, Shop, shop

pytestmark = pytest.mark.anyio
MIB = 1 << 20
SIZE = 5 * MIB
BLOB = "/a/big/big-Q8_0.gguf"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A model of five segments: the tiny one, and noise after its last tensor."""
    tiny = write_tiny_gguf(tmp_path_factory.mktemp("big") / "tiny.gguf").read_bytes()
    return tiny + random.Random(2).randbytes(SIZE - len(tiny))


@pytest.fixture
def hub(tmp_path: Path, big: bytes) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as running:
        running.add_repo("a/big", {"big-Q8_0.gguf": big})
        yield running


@pytest.fixture
async def here(hub: Hub, tmp_path: Path) -> AsyncIterator[Shop]:
    async with shop(tmp_path / "home", hub.config, pace=replace(QUICK, segment=MIB)) as opened:
        yield opened


def clean(here: Shop, blobs: int = 0) -> bool:
    found = here.on_disk()
    return found["partial"] == [] and len(found["blobs"]) == blobs


async def until(found: Any, seconds: float = 20) -> None:
    with anyio.fail_after(seconds):
        while not found():
            await anyio.sleep(0.01)


# Bytes


async def test_ranges_side_by_side_bring_the_file(hub: Hub, here: Shop) -> None:
    model = await here.models.pull("a/big")
    assert model["digest"] == f"sha256:{sha256_of(hub.root / 'hf/a/big/big-Q8_0.gguf')}"
    assert (hub.requests[BLOB], hub.counts[BLOB]) == (5, SIZE) and clean(here, 1)


@pytest.mark.parametrize("place", [0, 900_000, MIB, 2 * MIB + 5, 3 * MIB - 1, 4 * MIB + 77, SIZE - 1])
async def test_one_flipped_bit_in_any_part_is_seen(hub: Hub, here: Shop, place: int) -> None:
    hub.faults = {BLOB: Fault(wrong_byte=place, etag='"same"')}
    with pytest.raises(Unavailable, match="hash to sha256"):
        await here.models.pull("a/big")
    assert clean(here)
    hub.faults = {}
    await here.models.pull("a/big")
    assert clean(here, 1)


async def test_a_length_that_is_not_the_promised_one(hub: Hub, here: Shop, big: bytes) -> None:
    hub.faults = {BLOB: Fault(more=9)}
    with pytest.raises(Unavailable, match=f"{SIZE + 9} bytes, {SIZE} were promised"):
        await here.models.pull("a/big")
    hub.faults = {}
    api = f"/api/models/a/big/revision/{hub.commit('a/big')}"
    for size in (SIZE - 1, SIZE + 1, -1, "5", 1 << 60):
        told = {"rfilename": "big-Q8_0.gguf", "size": size, "lfs": {"sha256": sha256_of(hub.root / "hf/a/big/big-Q8_0.gguf")}}
        hub.lies[api] = json.dumps({"sha": hub.commit("a/big"), "siblings": [told]}).encode()
        if isinstance(size, int) and 0 <= size < 1 << 53:
            with pytest.raises(Unavailable, match="were promised"):
                await here.models.pull("a/big", revision=hub.commit("a/big"))
            assert clean(here)
        else:  # no size at all: the digest tells
            await here.models.pull("a/big", revision=hub.commit("a/big"), name=f"m{size}")
    for name in ("../x.gguf", "/x.gguf", "a/../../x.gguf"):
        hub.lies[api] = json.dumps({"siblings": [{"rfilename": name, "size": 1}]}).encode()
        with pytest.raises(Unavailable, match="would leave"):
            await here.models.pull("a/big", revision=hub.commit("a/big"), name="other")


async def test_a_tag_that_changes_midway_begins_anew(hub: Hub, here: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter(range(1000))

    def fault(path: str) -> Fault:
        return Fault(etag='"old"' if next(asked) < 3 else '"new"') if path == BLOB else Fault()

    monkeypatch.setattr(hub, "fault", fault)
    await here.models.pull("a/big")
    assert clean(here, 1) and hub.requests[BLOB] > 5


async def test_a_file_that_never_stays_the_same_is_given_up(hub: Hub, here: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter(range(1000))
    monkeypatch.setattr(hub, "fault", lambda path: Fault(etag=f'"{next(asked)}"') if path == BLOB else Fault())
    with anyio.fail_after(10), pytest.raises(Unavailable, match="changes while it is read"):
        await here.models.pull("a/big")


@pytest.mark.parametrize(
    "fault",
    [
        Fault(stall_after=MIB // 2, times=3),
        Fault(bytes_per_second=200, times=1),
        Fault(reset_after=MIB // 2, times=9),
        Fault(status=416, times=1),
        Fault(no_range=True),
        Fault(no_range=True, no_etag=True),
        Fault(status=503, times=3),
    ],
    ids=["stalls", "a drip", "resets", "416", "no ranges", "no ranges or tags", "503"],
)
async def test_what_passes_is_waited_out_in_each_segment(hub: Hub, tmp_path: Path, fault: Fault) -> None:
    hub.faults = {BLOB: fault}
    pace = replace(QUICK, segment=MIB, stall_seconds=1)
    async with shop(tmp_path / "home", hub.config, stall_seconds=1, pace=pace) as here:
        with anyio.fail_after(20):
            model = await here.models.pull("a/big")
        assert model["digest"] == f"sha256:{sha256_of(hub.root / 'hf/a/big/big-Q8_0.gguf')}" and clean(here, 1)


async def test_a_reset_each_mebibyte_costs_no_byte_twice(hub: Hub, tmp_path: Path) -> None:
    async with shop(tmp_path / "home", hub.config, pace=replace(QUICK, lanes=1, segment=64 * MIB)) as here:
        hub.faults = {BLOB: Fault(reset_after=MIB, bytes_per_second=40 * MIB)}
        await here.models.pull("a/big")
        assert hub.counts[BLOB] <= SIZE * 1.3 and clean(here, 1)


async def test_a_token_that_is_taken_away_midway_keeps_what_came(hub: Hub, here: Shop) -> None:
    hub.faults = {BLOB: Fault(bytes_per_second=2 * MIB, reset_after=MIB // 2)}
    seen: list[Any] = []

    async def send(item: Any) -> None:
        seen.append(item)
        if hub.counts[BLOB] > MIB:
            hub.faults = {"/resolve/*": Fault(status=403), **hub.faults}

    with pytest.raises(PermissionDenied, match="HTTP 403") as caught:
        await here.models.pull("a/big", send=send)
    assert caught.value.hint
    kept = sum(arrived(path) for path in (here.home / "models/partial").glob("*/*.part"))
    before, hub.faults = hub.counts[BLOB], {}
    assert kept > 0
    await here.models.pull("a/big")
    assert SIZE - kept <= hub.counts[BLOB] - before <= SIZE - kept + MIB, "what was on its way is fetched again, and no more"


async def test_a_mirror_goes_on_from_what_the_hub_sent(hub: Hub, tmp_path: Path, big: bytes) -> None:
    with Hub(tmp_path / "mirror") as mirror:
        mirror.add_repo("a/big", {"big-Q8_0.gguf": big})
        mirror.faults = {BLOB: Fault(etag='"its own"')}
        places = ", ".join(f'"{urlsplit(url).netloc}"' for url in (hub.cdn, mirror.url, mirror.cdn))
        toml = f"{hub.config.partition('[egress]')[0]}[egress]\nallow = [{places}]\n"
        async with shop(tmp_path / "home", toml, pace=replace(QUICK, segment=MIB)) as here:
            hub.faults = {BLOB: Fault(bytes_per_second=4 * MIB, reset_after=MIB // 2, times=1), "/big/big-Q8_0.gguf": Fault(status=503)}
            with pytest.raises(Unavailable, match="the next pull goes on"):
                await here.models.pull("a/big")
            kept = sum(arrived(path) for path in (here.home / "models/partial").glob("*/*.part"))
            assert kept > 0
            model = await here.models.pull("a/big", mirror=mirror.url)
            assert mirror.counts[BLOB] == SIZE - kept and here.models.path(model).read_bytes() == big and clean(here, 1)


async def test_a_cap_is_kept_by_all_pulls_together(hub: Hub, tmp_path: Path) -> None:
    toml = hub.config.replace("[egress]", "[downloads]\nmib_per_second = 4\n[egress]")
    async with shop(tmp_path / "home", toml, pace=replace(QUICK, segment=MIB)) as here:
        began = time.monotonic()
        await here.models.pull("a/big")
        assert time.monotonic() - began > 0.8


def test_what_is_written_down_is_believed_only_when_it_can_be_true(tmp_path: Path) -> None:
    path = tmp_path / "0.0.part"
    ranges = Ranges(path, 4)
    ranges.lay('"tag"', 10)
    ranges.write(1, [b"efgh"])
    ranges.write(0, [b"ab"])
    ranges.close()
    again = Ranges(path, 4)
    again.recall(True)
    assert (again.tag, again.counts, again.have, again.prefix(), arrived(path)) == ('"tag"', [2, 4, 0], 6, 2, 6)
    again.close()
    state = path.with_name("0.0.part.state")
    whole = state.read_bytes()
    for torn in (
        whole[:-3],
        b"",
        b"{}\n",
        whole.replace(b'"total": 10', b'"total": -1'),
        whole[:-8] + b"\xff" * 8,
        whole.replace(b"tag", b"\xff"),
    ):
        path.write_bytes(b"x" * 10)
        state.write_bytes(torn)
        torn_ranges = Ranges(path, 4)
        torn_ranges.recall(False)
        assert torn_ranges.counts == [] and not path.exists() and not state.exists()
    ranges = Ranges(path, 4)
    ranges.lay("", 10)
    ranges.close()
    untold = Ranges(path, 4)
    untold.recall(True)
    assert untold.counts == [], "without a tag or a digest nothing says that it still fits"


# Many at once


async def test_a_thousand_pulls_of_ten_models_and_three_hundred_leave(hub: Hub, here: Shop, tmp_path: Path) -> None:
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    for number in range(10):
        hub.add_repo(f"many/m{number}", {f"m{number}-Q8_0.gguf": tiny + bytes([number]) * 1000})
    hub.faults = {"/many/*": Fault(bytes_per_second=2 * MIB)}
    chance, ids, scopes = random.Random(3), list[str](), list[anyio.CancelScope]()

    async def one(number: int) -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            ids.append((await here.models.pull(f"many/m{number}"))["id"])

    async with anyio.create_task_group() as group:
        for number in range(1000):
            group.start_soon(one, number % 10)
        await until(lambda: len(scopes) == 1000 and sum(hub.counts.values()) > 0)
        for scope in chance.sample(scopes, 300):
            scope.cancel()
    assert len(ids) == 700 and set(ids) == {f"m{number}-q8_0" for number in range(10)}
    assert all(hub.counts[f"/many/m{number}/m{number}-Q8_0.gguf"] == len(tiny) + 1000 for number in range(10)) and clean(here, 10)


async def test_a_delete_in_the_middle_of_a_pull_of_the_same_bytes(hub: Hub, here: Shop, big: bytes) -> None:
    hub.add_repo("b/same", {"same-Q8_0.gguf": big})
    await here.models.pull("a/big")
    before = sum(hub.counts.values())
    async with anyio.create_task_group() as group:
        group.start_soon(here.models.pull, "b/same")
        group.start_soon(here.models.delete, "big-q8_0")
    model = here.models.get("same-q8_0")
    assert here.models.path(model).read_bytes() == big and sum(hub.counts.values()) - before in (0, SIZE) and clean(here, 1)


# What lies on the disk


async def test_a_planted_blob_is_put_aside_and_fetched_anew(hub: Hub, here: Shop, big: bytes) -> None:
    digest = sha256_of(hub.root / "hf/a/big/big-Q8_0.gguf")
    blob = here.home / f"models/blobs/sha256-{digest}"
    blob.write_bytes(big[:-1] + b"!")
    model = await here.models.pull("a/big")
    assert here.models.path(model).read_bytes() == big and len(here.on_disk()["quarantine"]) == 1
    found, freed = await here.models.gc()
    assert len(found) == 1 and freed >= SIZE and here.on_disk()["quarantine"] == []
    # one that is right is hashed once and then believed for as long as it is the same file
    assert (await here.models.pull("a/big", name="other"))["digest"] == model["digest"]
    assert hub.counts[BLOB] == SIZE


async def test_damage_that_verify_finds_is_put_aside_and_mended_by_a_pull(hub: Hub, here: Shop, big: bytes) -> None:
    model = await here.models.pull("a/big")
    with here.models.path(model).open("r+b") as file:
        file.write(b"X")
    valid, issues = await here.models.verify(model["id"])
    assert not valid and issues[0]["code"] == "content" and here.models.get(model["id"])["status"] == "corrupt"
    assert len(here.on_disk()["quarantine"]) == 1 and here.on_disk()["blobs"] == []
    mended = await here.models.pull("a/big")
    assert (mended["id"], mended["status"]) == (model["id"], "ready") and here.models.path(mended).read_bytes() == big
    assert (await here.models.verify(model["id"]))[0] is True


async def test_gc_takes_what_nobody_has_and_nothing_else(hub: Hub, here: Shop, big: bytes) -> None:
    model = await here.models.pull("a/big")
    models = here.home / "models"
    (models / "blobs/sha256-orphan").write_bytes(b"o" * 5000)
    (models / "partial/old").mkdir()
    (models / "partial/old/0.0.part").write_bytes(b"p" * 9000)
    (models / "gone").mkdir()
    (models / "gone/m.gguf").hardlink_to(models / "blobs/sha256-orphan")
    (models / "gone/mine.txt").write_text("not AIMA's", encoding="utf-8")
    (models / "empty").mkdir()
    hub.add_repo("a/slow", {"slow-Q8_0.gguf": big + b"s"})
    hub.faults = {"/a/slow/slow-Q8_0.gguf": Fault(bytes_per_second=MIB)}
    async with anyio.create_task_group() as group:
        group.start_soon(here.models.pull, "a/slow")
        await until(lambda: hub.counts["/a/slow/slow-Q8_0.gguf"] > 0)
        foreseen, size = await here.models.foresee_gc()
        removed, freed = await here.models.gc()
        assert {path.name for path in removed} == {path.name for path in foreseen} == {"sha256-orphan", "old", "m.gguf"}
        assert freed == size and 14_000 <= freed < 100_000
        hub.faults = {}
    assert (models / "gone/mine.txt").exists() and not (models / "partial/old").exists()
    assert here.models.path(model).read_bytes() == big and here.models.get("slow-q8_0")["status"] == "ready" and clean(here, 2)
    assert await here.models.gc() == ([], 0)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


async def test_wheels_do_not_take_their_size_twice(hub: Hub, tmp_path: Path, big: bytes) -> None:
    count, noise = 12, big + random.Random(5).randbytes(11 * MIB)
    share = len(noise) // count + 1
    for number in range(1, count + 1):
        hub.add_wheel(f"w-part{number}", "1.0", {f"w{number}/part.bin": noise[(number - 1) * share : number * share]})
    home = tmp_path / "home"
    home.mkdir()
    with small_disk(tmp_path / "small", 44 * MIB) as small:
        (home / "models").symlink_to(small)
        async with shop(home, hub.config) as here:
            model = await here.models.pull("w-part{1..12}", file="*.bin", name="w")
            assert here.models.path(model).stat().st_size == len(noise) and clean(here, 1)
            await here.models.delete("w")
            with pytest.raises(FailedPrecondition, match="expected was"):
                await here.models.pull("w-part{1..12}", file="*.bin", sha256="0" * 64)
            assert clean(here)


async def test_the_disk_is_reserved_before_the_first_byte(hub: Hub, tmp_path: Path, big: bytes) -> None:
    hub.add_repo("a/two", {"two-Q8_0.gguf": big + b"2"})
    address = hub.add_file("three-Q8_0.gguf", big * 7)
    home = tmp_path / "home"
    home.mkdir()
    with small_disk(tmp_path / "small", 24 * MIB) as small:
        (home / "models").symlink_to(small)
        async with shop(home, hub.config) as here:
            with pytest.raises(ResourceExhausted, match=r"\d+ bytes are needed .* \d+ are free") as caught:
                await here.models.pull(address)  # which tells its size only when it is asked for
            assert caught.value.next[0]["unit"] == "model.gc" and hub.counts["/files/three-Q8_0.gguf"] < MIB
            hub.faults = {BLOB: Fault(bytes_per_second=MIB)}
            async with anyio.create_task_group() as group:
                group.start_soon(here.models.pull, "a/big")
                await until(lambda: hub.counts[BLOB] > 0)
                with pytest.raises(ResourceExhausted, match="are needed"):
                    await here.models.pull("a/two")
                hub.faults = {}
            assert clean(here, 1)
            with pytest.raises(AimaError):
                await here.models.pull("a/two")
