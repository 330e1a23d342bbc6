"""kill -9 of the host with an engine up, and of the engine: what goes on, what is started again, what is given up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from aima_lib import Aima
from aima_lib.launchers import process
from tests.world import HostProcess, furnish, until

pytestmark = pytest.mark.crash
GRACE = 5.0
CONFIG = f"[engines]\ngrace_seconds = {GRACE}\nrestart_limit = 5\nrestart_window_seconds = 60\nprobe_seconds = 0.5\n"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def up(python: Path, fixtures: Path, tmp_path: Path) -> Iterator[HostProcess]:
    """A host of the installed wheel that serves `tiny`."""
    running = HostProcess(python, tmp_path / "home", fixtures, CONFIG).start()
    try:
        with Aima(running.home.path) as aima:
            furnish(aima)
        yield running
    finally:
        running.stop()


def instance(host: HostProcess) -> Mapping[str, Any]:
    found: Mapping[str, Any] = call(host, "service.status", service_id="tiny")["instance"]
    return found


def call(host: HostProcess, unit: str, **arguments: Any) -> Mapping[str, Any]:
    with Aima(host.home.path) as aima:
        return aima.call(unit, arguments)


def events(host: HostProcess, *types: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = call(host, "event.list", types=list(types), limit=1000)["events"]
    return found


def left(host: HostProcess) -> list[int]:
    marked = process.marked(host.home.path, "llamacpp-tiny")
    return [one.pid for one in marked if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def test_an_engine_goes_on_under_a_host_that_comes_back(up: HostProcess) -> None:
    before = instance(up)
    up.kill()
    up.start()
    after = instance(up)
    assert (after["pid"], after["base_url"], after["status"]) == (before["pid"], before["base_url"], "ready")
    assert call(up, "inference.chat", model="tiny", messages=HELLO, max_tokens=2)["usage"]["completion_tokens"] == 2
    adopted = [event for event in events(up, "engine.started") if event["payload"]["adopted"]]
    assert [event["payload"]["pid"] for event in adopted] == [before["pid"]]
    assert events(up, "service.restarted") == []
    time.sleep(GRACE + 1)  # the keeper has seen the new host
    assert instance(up)["pid"] == before["pid"]


def test_nothing_is_left_one_second_after_the_grace_and_a_later_host_starts_it_again(up: HostProcess) -> None:
    before = instance(up)
    up.kill()
    assert len(left(up)) == 2
    until(lambda: not left(up), GRACE + 1, "the end of the engine")
    up.start()
    until(lambda: call(up, "service.get", service_id="tiny")["service"]["status"] == "running", 20, "the service")
    after = instance(up)
    assert after["pid"] != before["pid"]
    assert [event["payload"]["reason"] for event in events(up, "engine.stopped")] == ["no host"]


def test_an_engine_that_dies_again_and_again_is_given_up_with_the_cause(up: HostProcess) -> None:
    killed = set[int]()
    for _ in range(5):
        pid = until(
            lambda: (seen := instance(up)) and seen["status"] == "ready" and seen["pid"] not in killed and seen["pid"], 40, "a fresh engine"
        )
        killed.add(pid)
        os.kill(pid, signal.SIGKILL)
    failed = until(lambda: (row := call(up, "service.get", service_id="tiny")["service"])["status"] == "failed" and row, 20, "the failure")
    assert "5 deaths in 60 s" in failed["error"]
    assert "SIGKILL" in failed["error"]
    restarts = [event["payload"] for event in events(up, "service.restarted")]
    assert [(one["attempt"], one["delay_seconds"]) for one in restarts] == [(1, 1), (2, 2), (3, 4), (4, 8)]
    assert all("SIGKILL" in one["cause"] for one in restarts)
    assert len(events(up, "service.failed")) == 1
    assert left(up) == []
    assert call(up, "service.start", service_id="tiny")["service"]["status"] == "running"


def test_a_keeper_that_is_killed_takes_its_engine_along_and_the_service_comes_back(up: HostProcess) -> None:
    before = instance(up)
    os.kill(before["keeper_pid"], signal.SIGKILL)
    until(lambda: (seen := instance(up))["status"] == "ready" and seen["pid"] != before["pid"], 20, "a fresh engine")
    assert not psutil.pid_exists(before["pid"]) or psutil.Process(before["pid"]).status() == psutil.STATUS_ZOMBIE
    [restart] = events(up, "service.restarted")
    assert "keeper" in restart["payload"]["cause"]


def test_a_start_whose_host_died_is_finished_by_the_next(up: HostProcess) -> None:
    call(up, "service.stop", service_id="tiny")
    with Aima(up.home.path) as aima:
        run = aima.start("service.start", {"service_id": "tiny"})
    up.kill()
    up.start()
    until(lambda: call(up, "run.get", run_id=run["id"])["run"]["status"] == "succeeded", 30, "the run")
    assert call(up, "service.get", service_id="tiny")["service"]["status"] == "running"
    assert len(left(up)) == 2
