"""Engines as processes: start one under its keeper, recognise it again, measure it, end it.

Everything here blocks for at most a moment and is called in a thread. Linux and macOS only: without fork there is no keeper.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from aima_lib.errors import FailedPrecondition, Unavailable
from aima_lib.infra.blobs import disk_error
from aima_lib.infra.home import Home, is_alive, write_private
from aima_lib.infra.launch import FOLDER, HOST, PORT, Launch, environment

KEEPER = Path(__file__).with_name("keeper.py")
KEEPER_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Kept:
    """An engine process and its keeper, each by pid and start time."""

    instance: str
    home_id: str
    pid: int
    create_time: float
    keeper_pid: int
    keeper_create_time: float

    def is_running(self) -> bool:
        """Whether the engine process lives. Cheap."""
        return _process(self.pid, self.create_time) is not None

    def has_keeper(self) -> bool:
        """Whether its keeper lives. Cheap."""
        return _process(self.keeper_pid, self.keeper_create_time) is not None

    def is_ours(self) -> bool:
        """Whether both live and the engine carries this home's mark: then it may be adopted."""
        process = _process(self.pid, self.create_time)
        return process is not None and self.has_keeper() and _mark(process) == (self.home_id, self.instance)


def folder_of(home: Path, instance: str) -> Path:
    """The private folder of an instance."""
    return home / "instances" / instance


def clear(home: Path, instance: str) -> None:
    """Remove what an instance that has ended left in its folder, its key too. Blocking."""
    shutil.rmtree(folder_of(home, instance), ignore_errors=True)


def log_of(home: Path, instance: str) -> Path:
    """Where its output goes. Survives the process and the next start."""
    return home / "logs" / f"{instance}.log"


def start(home: Path, instance: str, launch: Launch, key: str, grace_seconds: float, port: int | None = None) -> tuple[Kept, int | None]:
    """Start an engine under a keeper; returns as soon as it runs, with the port chosen for it (None when it announces its own).

    Raises:
        Unavailable: the keeper did not start, or the engine's program cannot be run.
        ResourceExhausted: the disk is full.
    """
    if not hasattr(os, "fork"):
        raise Unavailable("process engines need Linux or macOS", hint="use a remote engine, or run AIMA under WSL")
    folder = folder_of(home, instance)
    chosen = port or (None if launch.announces else free_port())
    argv = [part.replace(FOLDER, str(folder)).replace(PORT, str(chosen)).replace(HOST, "127.0.0.1") for part in launch.argv]
    spec = {"argv": argv, "log": str(log_of(home, instance)), "home": str(home), "grace_seconds": grace_seconds}
    spec |= {"discreet": [*launch.discreet], "last_words": launch.last_words}
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        log_of(home, instance).parent.mkdir(exist_ok=True)
        for name, text in {"key": key, "launch.json": json.dumps(spec), **launch.files}.items():
            write_private(folder / name, text)
    except OSError as error:
        raise disk_error(error, home) from error
    marks = {"AIMA_HOME_ID": Home(home).id, "AIMA_INSTANCE": instance}
    try:
        _start_keeper(folder, environment() | dict(launch.env) | marks)
        return _await_state(home, instance), chosen
    except Unavailable:
        stop(home, instance, 0.0)  # a keeper that could not say that it runs may run
        raise


def _start_keeper(folder: Path, environment: dict[str, str]) -> None:
    """Returns when the keeper has gone into the background, where nobody needs to reap it."""
    try:
        subprocess.run(
            [sys.executable, "-P", str(KEEPER), str(folder)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=environment, start_new_session=True, close_fds=True, timeout=KEEPER_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the keeper of {folder.name} did not start: {error}", hint="is this machine out of memory?") from error


def _await_state(home: Path, instance: str) -> Kept:
    deadline = time.monotonic() + KEEPER_SECONDS
    while time.monotonic() < deadline:
        if kept := read_state(home, instance):
            return kept
        if over := read_exit(home, instance):
            lines = tail(log_of(home, instance), 1)
            why = lines[-1].partition(" E ")[2] if lines else "no reason given"
            raise Unavailable(f"the engine of {instance} was {over['reason']}: {why}")
        time.sleep(0.01)
    raise Unavailable(f"the keeper of {instance} did not start within {KEEPER_SECONDS} s", hint="is psutil installed beside AIMA?")


def read_state(home: Path, instance: str) -> Kept | None:
    """Who the instance's processes are, as its keeper wrote it."""
    state = _read(folder_of(home, instance) / "state.json")
    return Kept(instance, Home(home).id, **state) if state else None


def read_exit(home: Path, instance: str) -> dict[str, Any] | None:
    """How it ended: {returncode, reason, oom}; None while it runs, or when its keeper was killed."""
    return _read(folder_of(home, instance) / "exit.json")


def read_ready(home: Path, instance: str) -> dict[str, Any] | None:
    """What an engine that chooses its own port announced: {url, before, after}."""
    return _read(folder_of(home, instance) / "ready.json")


def read_inner(home: Path, instance: str) -> dict[str, Any] | None:
    """Of a container: {container_id, pid, create_time} of its first process; pid is None where it is not seen from here."""
    return _read(folder_of(home, instance) / "inner.json")


def read_why(home: Path, instance: str) -> str | None:
    """What ended it, where that is known better than its log tells."""
    found = _read(folder_of(home, instance) / "why.json")
    return str(found["why"]) if found else None


def read_key(home: Path, instance: str) -> str:
    """The engine's API key for this start.

    Raises:
        FailedPrecondition: there is none: the instance never started here.
    """
    try:
        return (folder_of(home, instance) / "key").read_text(encoding="utf-8")
    except OSError as error:
        raise FailedPrecondition(f"{instance} has no key on disk: {error.strerror}", hint="start it again") from error


def rss_bytes(home: Path, instance: str) -> int:
    """Resident memory of everything that belongs to the instance, read now."""
    return sum(_rss(process) for process in _tree(home, instance))


def pids(home: Path, instance: str) -> list[int]:
    """The processes of an instance, the engine's own first; none when it does not run."""
    return [process.pid for process in _tree(home, instance)]


def stop(home: Path, instance: str, timeout_seconds: float) -> int:
    """End an instance: politely, and by force after the timeout. Returns the bytes of memory that were freed, measured."""
    kept = read_state(home, instance)
    before = rss_bytes(home, instance)
    folder = folder_of(home, instance)
    keeper = _process(kept.keeper_pid, kept.keeper_create_time) if kept else None
    if keeper is not None:
        try:
            write_private(folder / "stop.json", json.dumps({"timeout_seconds": timeout_seconds}))
        except OSError:  # a full disk, say: an engine must end all the same
            _signal(keeper, signal.SIGTERM)
        _wait([keeper], timeout_seconds + 3 + float((_read(folder / "launch.json") or {}).get("last_words", 0)))
    left = marked(home, instance)
    for process in left:
        _signal(process, signal.SIGKILL)
    _wait(left, 3)
    return max(0, before - rss_bytes(home, instance))


def marked(home: Path, instance: str) -> list[psutil.Process]:
    """Every process that carries this instance's ownership mark, the keeper too. Reads every process's environment: milliseconds."""
    mark = (Home(home).id, instance)
    return [process for process in psutil.process_iter() if _mark(process) == mark]


def tail(log: Path, count: int) -> list[str]:
    """The last lines of a log, its predecessor included."""
    lines: list[str] = []
    for path in (log, log.with_suffix(".log.1")):
        if len(lines) < count:
            lines = _lines(path)[-(count - len(lines)) :] + lines
    return lines


def port_holder(port: int) -> str | None:
    """Who listens on a loopback port, as "name (pid 12)"; None when it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return None
        except OSError as error:
            return _listener(port) or f"another program ({error.strerror})"


def _listener(port: int) -> str | None:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and tuple(connection.laddr)[1:] == (port,) and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        pass  # others' sockets may be hidden from us
    return None


def free_port() -> int:
    """A loopback port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tree(home: Path, instance: str) -> list[psutil.Process]:
    kept = read_state(home, instance)
    engine = _process(kept.pid, kept.create_time) if kept else None
    inner = read_inner(home, instance) if engine else None
    if inner:  # what stands for it is none of it
        engine = _process(inner["pid"], inner["create_time"]) if inner["pid"] else None
    try:
        return [engine, *engine.children(recursive=True)] if engine else []
    except psutil.Error:
        return []


def _process(pid: int, create_time: float) -> psutil.Process | None:
    try:
        return psutil.Process(pid) if is_alive(pid, create_time) else None
    except psutil.Error:
        return None


def _mark(process: psutil.Process) -> tuple[str | None, str | None]:
    try:
        environment = process.environ()
    except (psutil.Error, OSError):
        return None, None
    return environment.get("AIMA_HOME_ID"), environment.get("AIMA_INSTANCE")


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        pass  # it ended meanwhile


def _wait(processes: list[psutil.Process], seconds: float) -> None:
    """Wait until all have ended. A zombie has: its parent may be an init that reaps late or never."""
    deadline = time.monotonic() + seconds
    while any(map(_is_running, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
