"""The keeper: an engine outlives a host that comes back in time, and nothing outlives one that does not."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from aima_lib.errors import InvalidArgument
from aima_lib.infra.home import Home
from aima_lib.infra.launch import Launch
from aima_lib.launchers import process
from tests.world import until, within

pytestmark = pytest.mark.engine
HERE = Path(__file__).parent
UNRULY = Launch((sys.executable, str(HERE / "unruly.py")), "unruly", ("chat",))
TALKER = Launch(("/bin/sh", "-c", "echo key is $AIMA_INSTANCE; echo secret=$HF_TOKEN; while :; do sleep 60; done"), "talker", ("chat",))
GRACE = 1.0


@contextlib.contextmanager
def hosting(home: Home, *how: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(HERE / "host_process.py"), str(home.path), *how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        assert host.stdout.readline() == ("waiting\n" if how else "up\n")
        try:
            yield host
        finally:
            host.kill()


def start(home: Home, launch: Launch) -> process.Kept:
    kept, _ = process.start(home.path, launch.alias, launch, "the-key", GRACE)
    until(lambda: process.tail(process.log_of(home.path, launch.alias), 9), what="the engine's first words")
    return kept


def left(home: Home, launch: Launch) -> list[int]:
    return [one.pid for one in process.marked(home.path, launch.alias) if lives(one)]


def lives(one: psutil.Process) -> bool:
    try:
        return bool(one.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # it ends as it is looked at
        return False


def test_nothing_is_left_soon_after_the_grace(home: Home) -> None:
    with hosting(home) as host:
        start(home, UNRULY)
        assert len(left(home, UNRULY)) == 3, "the keeper, the engine and its orphan"
        killed = time.monotonic()
        host.kill()
        host.wait()
        until(lambda: not left(home, UNRULY), what="the end of the tree")
        assert time.monotonic() - killed >= GRACE * 0.9, "it had its grace"
    assert process.read_exit(home.path, "unruly") == {"returncode": -signal.SIGKILL, "reason": "no host", "oom": None}


def test_an_engine_goes_on_when_a_host_comes_back_within_the_grace(home: Home) -> None:
    with hosting(home) as host, hosting(home, "waiting") as other:
        kept = start(home, TALKER)
        host.kill()
        host.wait()
        assert other.stdin is not None and other.stdout is not None
        print(file=other.stdin, flush=True)
        assert other.stdout.readline() == "up\n"
        time.sleep(GRACE * 1.5)  # the only way to see that nothing happens
        assert kept.is_ours()
        assert process.stop(home.path, "talker", 2) > 0
    assert left(home, TALKER) == []


def test_an_engine_dies_with_its_keeper(home: Home) -> None:
    with hosting(home):
        kept = start(home, TALKER)
        os.kill(kept.keeper_pid, signal.SIGKILL)
        until(lambda: not kept.is_running(), what="the engine's end")
        assert process.read_exit(home.path, "talker") is None


def test_a_stop_is_polite_first_and_leaves_nothing(home: Home) -> None:
    with hosting(home):
        start(home, UNRULY)
        began = time.monotonic()
        with within(2):
            process.stop(home.path, "unruly", 0.5)
        assert time.monotonic() - began > 0.4
        assert left(home, UNRULY) == []


def test_a_process_that_only_has_the_pid_is_not_ours(home: Home) -> None:
    with hosting(home):
        kept = start(home, TALKER)
        stranger = process.Kept(kept.instance, "another-home", kept.pid, kept.create_time, kept.keeper_pid, kept.keeper_create_time)
        later = process.Kept(kept.instance, kept.home_id, kept.pid, kept.create_time + 5, kept.keeper_pid, kept.keeper_create_time)
        assert (kept.is_ours(), stranger.is_ours(), later.is_ours()) == (True, False, False)
        process.stop(home.path, "talker", 1)


def test_the_log_has_times_and_the_engine_sees_no_secret_of_the_host(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf-very-secret")
    with hosting(home):
        kept = start(home, TALKER)
        first, second = until(lambda: (lines := process.tail(process.log_of(home.path, "talker"), 9))[1:] and lines)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z key is talker", first)
        assert second.endswith("secret=")
        argv = " ".join(psutil.Process(kept.pid).cmdline() + psutil.Process(kept.keeper_pid).cmdline())
        assert "the-key" not in argv
        folder = process.folder_of(home.path, "talker")
        assert {path.stat().st_mode & 0o077 for path in [folder, *folder.iterdir(), process.log_of(home.path, "talker")]} == {0}
        process.stop(home.path, "talker", 1)


def test_the_log_is_bounded(home: Home) -> None:
    loud = Launch(("/bin/sh", "-c", "yes a line that is written over and over again | head -c 20000000"), "loud", ("chat",))
    with hosting(home):
        process.start(home.path, "loud", loud, "key", GRACE)
        until(lambda: process.read_exit(home.path, "loud"), 60, "the end of the noise")
    log = process.log_of(home.path, "loud")
    assert log.stat().st_size + log.with_suffix(".log.1").stat().st_size < 12 << 20


def test_a_program_that_is_not_there_is_said_at_once(home: Home) -> None:
    with hosting(home), pytest.raises(process.Unavailable, match="No such file"):
        process.start(home.path, "ghost", Launch(("/no/such/program",), "ghost", ()), "key", GRACE)


def test_a_keeper_is_small(home: Home) -> None:
    with hosting(home):
        kept = start(home, TALKER)
        keeper = psutil.Process(kept.keeper_pid)
        assert keeper.memory_full_info().uss < 24 << 20
        assert keeper.num_threads() == 1
        process.stop(home.path, "talker", 1)


def test_a_keeper_that_takes_too_long_is_an_error_of_ours_and_leaves_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "KEEPER_SECONDS", 0.001)
    with hosting(home), pytest.raises(process.Unavailable, match="the keeper of talker did not start"):
        process.start(home.path, "talker", TALKER, "key", GRACE)
    assert left(home, TALKER) == []


def test_an_engine_whose_state_cannot_be_written_is_not_left_running(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "KEEPER_SECONDS", 2)
    blocked = Launch(("/bin/sh", "-c", "while :; do sleep 60; done"), "blocked", ("chat",), files={"state.json.new/x": ""})
    monkeypatch.setattr(process, "write_private", lambda path, text: (path.parent.mkdir(exist_ok=True), path.write_text(text)))
    with hosting(home), pytest.raises(process.Unavailable, match="the keeper of blocked did not start"):
        process.start(home.path, "blocked", blocked, "key", 60)
    assert left(home, blocked) == []


def test_a_stop_needs_no_room_on_the_disk(home: Home) -> None:
    with hosting(home):
        start(home, TALKER)
        (process.folder_of(home.path, "talker") / "stop.json").mkdir()  # as if it could not be written
        assert process.stop(home.path, "talker", 2) > 0
        assert left(home, TALKER) == []


def test_a_disk_that_refuses_is_no_bug(home: Home) -> None:
    (home.path / "instances" / "talker").parent.rmdir()
    (home.path / "instances").touch()
    with pytest.raises(InvalidArgument, match="instances"):
        process.start(home.path, "talker", TALKER, "key", GRACE)


def test_no_key_or_token_of_the_hosts_environment_reaches_an_engine(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = {
        "HF_TOKEN", "AIMA_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "NVIDIA_API_KEY", "CUDA_REGISTRY_TOKEN", "GGML_PASSWORD",
        "HTTPS_PROXY", "PIP_INDEX_URL",
    }  # fmt: skip
    for name in planted:
        monkeypatch.setenv(name, f"planted-{name}")
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "LD_LIBRARY_PATH"):
        monkeypatch.setenv(name, "passed-on")
    with hosting(home):
        kept = start(home, TALKER)
        for one in (psutil.Process(kept.pid), psutil.Process(kept.keeper_pid)):
            around, words = one.environ(), one.cmdline()
            assert "planted-" not in f"{around} {words}"
            assert not planted & set(around)
            assert list(around.values()).count("passed-on") == 3, "and what it needs, it gets"
            assert "the-key" not in f"{around} {words}", "its own key comes in a file"
        process.stop(home.path, "talker", 0)
