"""One home, one authority."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import psutil
import pytest

from aima_lib.errors import FailedPrecondition, ResourceExhausted, Unavailable
from aima_lib.gateway import Gateway
from aima_lib.infra.home import Home, create_time, is_alive, write_private
from aima_lib.launchers import keeper
from aima_lib.runtime import host
from aima_mcp import background

HOLD = """
import sys
from aima_lib.infra.home import Home
home = Home(sys.argv[1])
home.make()
home.acquire("1.2.3")
if len(sys.argv) > 2:
    home.announce(sys.argv[2], "1.2.3")
print("held", flush=True)
sys.stdin.read()
home.release()
"""


def holder(path: Path, *url: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), *url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_host_is_refused_and_told_the_first_ones_pid(home: Home) -> None:
    with holder(home.path, "http://127.0.0.1:8484") as first:
        with pytest.raises(FailedPrecondition, match=f"hosted by process {first.pid}") as raised:
            home.acquire("9")
        assert raised.value.details == {"pid": first.pid}
        assert raised.value.hint == "use it through http://127.0.0.1:8484"
        first.communicate()
    home.acquire("9")
    home.release()


def test_an_embedded_host_says_so(home: Home) -> None:
    with holder(home.path) as first:
        found = home.host()
        assert found is not None
        assert (found.pid, found.url, found.version) == (first.pid, None, "1.2.3")
        with pytest.raises(FailedPrecondition) as raised:
            home.acquire("9")
        assert "AIMA_HOME" in str(raised.value.hint)
        first.communicate()
    assert home.host() is None


def test_a_killed_host_leaves_no_claim(home: Home) -> None:
    with holder(home.path, "http://127.0.0.1:1") as first:
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
    assert (home.path / "host.json").exists()
    assert home.host() is None
    home.acquire("9")
    home.release()


def test_a_reused_pid_is_not_the_host(home: Home) -> None:
    record = {"pid": os.getpid(), "create_time": (create_time(os.getpid()) or 0.0) - 60, "url": None, "version": "1"}
    write_private(home.path / "host.json", json.dumps(record))
    assert home.host() is None
    assert is_alive(os.getpid(), create_time(os.getpid()) or 0.0)


@pytest.mark.parametrize("text", ["", "not json", "{}", '{"pid": "x"}'])
def test_a_broken_record_is_no_host(home: Home, text: str) -> None:
    (home.path / "host.json").write_text(text, encoding="utf-8")
    assert home.host() is None


def test_the_key_is_made_once_and_for_the_owner_only(home: Home) -> None:
    key = home.key()
    assert len(key) > 30
    assert Home(home.path).key() == key
    assert home.is_key(key)
    assert not home.is_key(key[:-1])
    assert not home.is_key("")
    assert not home.is_key("ключ")
    assert stat.S_IMODE((home.path / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700


def test_aima_home_moves_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AIMA_HOME", str(tmp_path / "elsewhere"))
    assert Home().path == tmp_path / "elsewhere"
    assert Home().id != Home(tmp_path).id
    monkeypatch.delenv("AIMA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Home().path == tmp_path / ".aima"


def test_a_private_file_is_replaced_whole(tmp_path: Path) -> None:
    write_private(tmp_path / "key", "one")
    write_private(tmp_path / "key", "two")
    assert (tmp_path / "key").read_text(encoding="utf-8") == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


@pytest.mark.anyio
async def test_a_home_that_is_hosted_is_well_and_refuses_a_second_host(hosted: Gateway, home: Home) -> None:
    assert (await hosted.call("system.doctor"))["healthy"] is True
    assert (await hosted.call("system.info"))["url"] is None
    with pytest.raises(FailedPrecondition, match=f"hosted by process {os.getpid()}"):
        async with host(home):
            raise AssertionError("two hosts of one home")
    assert (await hosted.call("system.info"))["pid"] == os.getpid()


def test_a_clock_that_is_set_changes_no_process(monkeypatch: pytest.MonkeyPatch, home: Home) -> None:
    home.acquire("1")
    try:
        kept = keeper.Host(home.path)
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: 0.0, raising=False)  # what a step of the clock moves
        assert home.host() is not None
        assert kept._is_alive()
    finally:
        home.release()


def test_what_cannot_be_a_home_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match="cannot be a home") as raised:
        Home(tmp_path / "file").make()
    assert "AIMA_HOME" in str(raised.value.hint)
    blocked = Home(tmp_path / "a home")
    blocked.make()
    (blocked.path / "host.lock").mkdir()
    with pytest.raises(FailedPrecondition, match="cannot be a home"):
        blocked.acquire("1")


def test_a_host_clears_what_a_killed_one_left_half_written(home: Home) -> None:
    """Found by the hundred kills: one fell between writing host.json's new text and giving it its name."""
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    left = home.path / f"host.json.{gone.stdout.strip()}.part"
    busy = home.path / f"key.{os.getpid()}.part"
    for part in (left, busy):
        part.write_text("{", encoding="utf-8")
    home.acquire("1")
    try:
        assert not left.exists()
        assert busy.exists(), "its writer lives"
    finally:
        home.release()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of two megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small disk here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # who is about to end there may still hold it


def fill(folder: Path, but: int = 0) -> Path:
    """What takes all the room that there is, but for so many bytes."""
    path, left = folder / "fill", shutil.disk_usage(folder).free - but
    path.write_bytes(bytes(left))
    return path


@pytest.mark.anyio
async def test_a_full_disk_is_told_and_what_was_there_is_there_when_it_has_room_again(small: Path) -> None:
    home = Home(small / "home")
    home.make()
    filling = fill(small)
    for wanted in (lambda: home.acquire("1"), home.key, home.secret):
        with pytest.raises(FailedPrecondition, match="No space left") as refused:
            wanted()
        assert refused.value.hint and refused.value.hint.startswith("free some space")
    with pytest.raises(Unavailable, match=r"no space is left in .*/home"):
        await anyio.to_thread.run_sync(background.start, home)
    filling.unlink()
    filling = fill(small, but=64 << 10)
    with pytest.raises(ResourceExhausted, match="the disk refused a write to the store"):
        async with host(home):
            pass
    filling.unlink()
    async with host(home) as gateway:
        assert (await gateway.call("system.info"))["pid"] == os.getpid()
