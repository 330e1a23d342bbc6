"""kill -9 of the host again and again with engines up: adopted by the next, none left of a home that stays dead, strangers left alone.

HOST_KILLS says how often.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from aima_lib import Aima
from aima_lib.infra.home import Home
from aima_lib.launchers import process
from tests.engines.pacing import write
from tests.world import until

pytestmark = pytest.mark.crash
KILLS = int(os.environ.get("HOST_KILLS", "6"))
SEED = int(os.environ.get("HOST_KILLS_SEED", "0"))
GRACE = 3.0
OPTIONS = {"parallel": 4, "context_length": 256}
INSTANCES = ("llama-server-tiny", "r2.llama-server-tiny")


class Hosts:
    """One host of a home after the other."""

    def __init__(self, home: Home) -> None:
        command = [sys.executable, str(Path(__file__).with_name("kill_host.py")), str(home.path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def fork(self) -> int:
        """Start one, and do not wait; its pid."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        while (line := self.heard())["said"] != "forked":
            pass  # of one that is dead by now
        return int(line["pid"])

    def until(self, said: str, pid: int) -> dict[str, Any]:
        while (line := self.heard())["said"] != said or line["pid"] != pid:
            pass
        return dict(line["pids"])

    def heard(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the hosts' parent ended"
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@pytest.fixture
def hosts(home: Home) -> Iterator[Hosts]:
    opened = Hosts(home)
    yield opened
    opened.close()


@pytest.fixture
def strangers(home: Home) -> Iterator[list[psutil.Popen]]:
    """Programs that are none of ours: one of another home, one that looks like an engine of this, one that has its instance's name only."""
    sleep, marks = [sys.executable, "-c", "import time; time.sleep(3600)"], {"AIMA_HOME_ID": home.id, "AIMA_INSTANCE": INSTANCES[0]}
    around = [{**marks, "AIMA_HOME_ID": "another"}, {}, {"AIMA_INSTANCE": INSTANCES[0]}]
    plain = {name: value for name, value in os.environ.items() if name not in marks}
    started = [psutil.Popen([*sleep, "--alias", "tiny"], env=plain | each) for each in around]
    yield started
    for each in started:
        each.kill()
        each.wait()


def left(home: Home) -> list[int]:
    """Whatever lives of the home's engines, keepers too."""
    found = [each for instance in INSTANCES for each in process.marked(home.path, instance)]
    return [each.pid for each in found if lives(each)]


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # it ended between the two
        return False


def test_hosts_that_are_killed_are_followed_by_hosts_that_take_up_their_engines(
    home: Home, hosts: Hosts, fixtures: Path, tmp_path: Path, strangers: list[psutil.Popen]
) -> None:
    write(home, tmp_path)
    config = home.path / "config.toml"
    config.write_text(config.read_text(encoding="utf-8").replace("grace_seconds = 1\n", f"grace_seconds = {GRACE}\n"), encoding="utf-8")
    chance, begun, deaths = random.Random(SEED), time.monotonic(), 0
    with Aima(home.path) as aima:
        aima.call("model.import", {"path": str(fixtures / "tiny.gguf"), "name": "tiny"})
        aima.call("service.create", {"model_id": "tiny", "engine": "llama-server", "options": OPTIONS, "replicas": 2})
    known = hosts.until("ready", pid := hosts.fork())
    assert sorted(known) == sorted(INSTANCES)
    for number in range(1, KILLS + 1):
        if number % 10 == 5:  # and the home stays dead
            os.kill(pid, signal.SIGKILL)
            until(lambda: not left(home), GRACE + 2, "the end of a dead home's engines")
            deaths += 1
            known = hosts.until("ready", pid := hosts.fork())
            continue
        time.sleep(chance.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        if chance.random() < 0.3:  # the next dies before it has begun
            pid = hosts.fork()
            time.sleep(chance.uniform(0, 0.15))
            os.kill(pid, signal.SIGKILL)
        pid = hosts.fork()
        assert hosts.until("up", pid) == known, number
    assert len(left(home)) == 4 and all(map(lives, strangers))
    os.kill(pid, signal.SIGKILL)
    until(lambda: not left(home), GRACE + 2, "the end of the last engines")
    took = time.monotonic() - begun
    print(
        f"{KILLS} kills of the host in {took:.0f} s: engines adopted every time, 0 processes left of {deaths + 1} dead homes, 0 strangers touched"
    )
    assert all(map(lives, strangers))
