"""Pulls that are killed, asked for a thousand times at once, or run out of disk."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from aima_lib import Aima, AimaError, AsyncAima
from tests.hub import Fault, Hub
from tests.tiny import write_tiny_gguf
from tests.world import HostProcess, agree, until

pytestmark = pytest.mark.crash
MIB = 1 << 20
KILLS = int(os.environ.get("AIMA_KILLS", "5"))
SIZE, RATE = 100 * MIB, 12 * MIB  # four segments, each at that rate
REPO, FILE = "aima/large-GGUF", "large-f32.gguf"
CDN_PATH = f"/{REPO}/{FILE}"
CALLERS = 1000


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Hub]:
    """A hub with a model of 100 MiB: the tiny one, and noise after its last tensor."""
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    with Hub(tmp_path / "hub") as running:
        running.add_repo(REPO, {FILE: tiny + random.Random(1).randbytes(SIZE - len(tiny))})
        yield running


@contextmanager
def hosting(python: Path, home: Path, hub: Hub, cwd: Path) -> Iterator[HostProcess]:
    host = HostProcess(python, home, cwd, hub.config).start()
    try:
        yield host
    finally:
        host.stop()


def settled(home: Path, sha256: str) -> None:
    """The blob is right, the model has it, and no part is left."""
    models = home / "models"
    blobs = list((models / "blobs").iterdir())
    assert [blob.name for blob in blobs] == [f"sha256-{sha256}"]
    assert hashlib.sha256(blobs[0].read_bytes()).hexdigest() == sha256
    assert list((models / "partial").rglob("*")) == []
    assert not [path for path in home.rglob("*.part") if path.is_file()]


def start(host: HostProcess, key: str) -> str:
    """Ask for the model and do not wait."""
    with host.client() as client:
        answer = client.post(
            "/units/model/pull", json={"repo": REPO, "name": "large"}, headers={"Prefer": "respond-async", "Idempotency-Key": key}
        )
        return str(answer.raise_for_status().json()["run"]["id"])


def run_of(host: HostProcess, run_id: str) -> dict[str, Any]:
    with host.client() as client:
        found: dict[str, Any] = client.get("/units/run/get", params={"run_id": run_id}).raise_for_status().json()["run"]
        return found


def test_a_pull_outlives_kill_after_kill(python: Path, large: Hub, tmp_path: Path, record_property: Any) -> None:
    """Killed while starting, resolving, downloading, verifying, recording; when a pull gets through, it is deleted and begun anew."""
    chance, home = random.Random(KILLS), tmp_path / "home"
    sha256 = hashlib.sha256((large.root / "hf" / REPO / FILE).read_bytes()).hexdigest()
    large.faults = {CDN_PATH: Fault(bytes_per_second=RATE)}
    with hosting(python, home, large, tmp_path) as host:
        pulls = 1
        run_id = start(host, "pull-1")
        for _ in range(KILLS):
            before, patience = large.counts[CDN_PATH], chance.uniform(0.0, 0.6)
            if chance.random() < 0.8:  # most in the midst of the transfer, the rest wherever the host happens to be
                until(lambda seen=before: large.counts[CDN_PATH] > seen or finished(host, run_id), 60, "the next byte")
            wait(patience)
            host.kill()
            host.spawn()
            if chance.random() < 0.2:
                continue  # and some before it has even started
            until(host.answers, 60, "the host")
            if finished(host, run_id):
                settled(home, sha256)
                with Aima(home) as aima:
                    assert [model["id"] for model in aima.call("model.list")["models"]] == ["large"]
                    agree(aima, "model.delete", {"model_id": "large"})
                pulls += 1
                run_id = start(host, f"pull-{pulls}")
        until(host.answers, 60, "the host")
        large.faults = {}
        until(lambda: finished(host, run_id), 60, "the end of the pull")
        ended = run_of(host, run_id)
        assert ended["status"] == "succeeded", ended
        settled(home, sha256)
        with Aima(home) as aima:
            assert aima.call("model.list")["total"] == 1
            assert aima.call("model.verify", {"model_id": "large"})["valid"] is True
            created = aima.call("event.list", {"after": 0, "types": ["model.created"], "limit": 1000})["events"]
        assert len(created) == pulls, "a model was recorded more than once, or its event lost"
    again = large.counts[CDN_PATH] - pulls * SIZE
    record_property("refetched_bytes_per_kill", again / KILLS)
    print(
        f"\n{KILLS} kills over {pulls} pulls: {again / KILLS / MIB:.2f} MiB fetched again per kill, {ended['attempts']} attempts of the last"
    )
    assert again <= KILLS * 32 * MIB
    assert again / KILLS <= 32 * MIB


def wait(seconds: float) -> None:
    """A random moment is a moment chosen by nobody: here a sleep is the thing itself."""
    time.sleep(seconds)


def finished(host: HostProcess, run_id: str) -> bool:
    try:
        return bool(run_of(host, run_id)["status"] != "running")
    except (httpx.HTTPError, AssertionError):
        return False


def test_a_thousand_pulls_of_one_model_are_one_transfer(python: Path, large: Hub, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4 * CALLERS:
        pytest.skip(f"{hard} files are too few for {CALLERS} connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4 * CALLERS), hard))
    found: list[Any] = []

    async def ask(aima: AsyncAima) -> None:
        found.append((await aima.call("model.pull", {"repo": REPO}))["model"])

    async def main(home: Path) -> None:
        async with AsyncAima(home) as aima, anyio.create_task_group() as tasks:
            for _ in range(CALLERS):
                tasks.start_soon(ask, aima)

    with hosting(python, tmp_path / "home", large, tmp_path) as host:
        anyio.run(main, host.home.path)
        assert len(found) == CALLERS
        assert {model["id"] for model in found} == {"large-f32"}
        assert large.counts[CDN_PATH] == SIZE
        assert large.requests[CDN_PATH] == 4, "a request for each segment"
        with Aima(host.home.path) as aima:
            assert aima.call("model.list")["total"] == 1
            assert aima.call("run.list", {"unit": "model.pull", "status": "succeeded"})["total"] == CALLERS


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes."""
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mount.returncode != 0:
        pytest.skip(f"no small disk without the right to mount: {mount.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_pull_that_cannot_fit_is_refused_before_it_begins(python: Path, large: Hub, tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", SIZE // 2) as disk,
        hosting(python, disk / "home", large, tmp_path) as host,
        Aima(host.home.path) as aima,
    ):
        with pytest.raises(AimaError) as raised:
            aima.call("model.pull", {"repo": REPO})
        assert raised.value.code == "resource_exhausted"
        assert any(letter.isdigit() for letter in str(raised.value)), "the figures are missing"
        assert raised.value.hint
        assert large.counts[CDN_PATH] == 0
        assert aima.call("model.list")["total"] == 0


def test_a_disk_that_fills_up_during_a_pull_leaves_nothing_half_recorded(python: Path, large: Hub, tmp_path: Path) -> None:
    large.faults = {CDN_PATH: Fault(bytes_per_second=RATE)}
    with small_disk(tmp_path / "disk", 3 * SIZE) as disk, hosting(python, disk / "home", large, tmp_path) as host:
        run_id = start(host, "full")
        until(lambda: large.counts[CDN_PATH] > 4 * MIB, 30, "the transfer")
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(b"\0" * MIB)
        until(lambda: finished(host, run_id), 60, "the end of the pull")
        ended = run_of(host, run_id)
        assert (ended["status"], ended["error"]["code"]) == ("failed", "resource_exhausted"), ended
        filler.unlink()
        with Aima(host.home.path) as aima:
            assert aima.call("model.list")["total"] == 0
            assert aima.call("system.info")["pid"] == host.pid
            large.faults = {}
            assert aima.call("model.pull", {"repo": REPO, "name": "large"})["model"]["id"] == "large"
        settled(host.home.path, hashlib.sha256((large.root / "hf" / REPO / FILE).read_bytes()).hexdigest())
