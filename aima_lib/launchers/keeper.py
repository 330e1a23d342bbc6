"""The keeper of one engine process: `python keeper.py FOLDER`.

It starts the engine that launch.json in the folder describes, keeps its log, and outlives a crash of AIMA: the engine goes on while
its home has a live host, or gets one back within the grace; otherwise the keeper ends the whole tree and itself. Small on purpose
(the standard library and psutil), and of one thread: Linux kills a child with a death signal when the *thread* that forked it ends.

launch.json: {argv, log, home, grace_seconds, discreet, last_words}. Writes state.json once the engine runs and exit.json when all is over.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import psutil

TICK, HOST_CHECK = 0.1, 0.3
LOG_BYTES = 4 << 20
CHUNKS = 64  # so that an engine that never stops talking is still watched
LAST_WORDS = 0.3  # how long a tree may take to end politely once the grace is over
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
CLOCK_SLACK = 0.005 if sys.platform == "linux" else 1.5  # as in aima_lib.infra.home


class Log:
    """The engine's output, each line with its time, in one file and its predecessor."""

    def __init__(self, path: Path, discreet: Sequence[str] = ()) -> None:
        self._path, self._half = path, b""
        self._discreet = re.compile("|".join(discreet).encode()) if discreet else None
        self._file = self._open()

    def take(self, data: bytes) -> None:
        """Append output; an unfinished line waits for its rest."""
        *lines, self._half = (self._half + data).split(b"\n")
        if len(self._half) > 1 << 16:
            lines, self._half = [*lines, self._half], b""
        moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()
        try:
            self._file.write(b"".join(moment + b" " + self._kept(line) + b"\n" for line in lines))
            if self._file.tell() > LOG_BYTES:
                self._file.close()
                os.replace(self._path, self._path.with_suffix(".log.1"))
                self._file = self._open()
        except OSError:
            pass  # a full disk must not stop the engine: these lines are lost

    def _kept(self, line: bytes) -> bytes:
        """The line up to where it repeats a request: what people ask their models is nobody's to read in a log."""
        found = self._discreet.search(line) if self._discreet else None
        return line[: found.start()] + b"(not logged: it repeats a request)" if found else line

    def close(self) -> None:
        if self._half:
            self.take(b"\n")
        self._file.close()

    def _open(self) -> IO[bytes]:
        return open(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0)


class Host:
    """Whether the home has a live host: the process that host.json names by pid and start time."""

    def __init__(self, home: Path) -> None:
        self._path, self._seen, self._checked = home / "host.json", time.monotonic(), 0.0

    def absent_seconds(self) -> float:
        """How long there has been none."""
        moment = time.monotonic()
        if moment - self._checked >= HOST_CHECK:
            self._checked = moment
            if self._is_alive():
                self._seen = moment
        return moment - self._seen

    def _is_alive(self) -> bool:
        try:
            named = json.loads(self._path.read_text(encoding="utf-8"))
            process = psutil.Process(int(named["pid"]))
            same = abs(create_time(process) - float(named["create_time"])) < CLOCK_SLACK
            return same and process.status() != psutil.STATUS_ZOMBIE
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            return False


class Keeper:
    """One engine, from its start to its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec: dict[str, Any] = json.loads((folder / "launch.json").read_text(encoding="utf-8"))
        self.log, self.host = Log(Path(self.spec["log"]), self.spec.get("discreet", ())), Host(Path(self.spec["home"]))
        self.stopped = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hear)

    def keep(self) -> None:
        """Start the engine; return when nothing of it is left."""
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            self.child = self._start()
        except OSError as error:
            self.log.take(f"E cannot start {self.spec['argv'][0]}: {error}\n".encode())
            self._end(None, "not started")
            return
        self._say("state.json", self._state())
        reason, patience = self._watch()
        self._end_tree(patience + float(self.spec.get("last_words", 0)))
        self._pump(0)
        self._end(self.child.returncode, reason)

    def _start(self) -> subprocess.Popen[bytes]:
        pipe, end = os.pipe()
        self.output = pipe
        me = os.getpid()
        try:
            return subprocess.Popen(  # one thread, so preexec_fn is safe
                self.spec["argv"], stdin=subprocess.DEVNULL, stdout=end, stderr=end, cwd=self.folder, preexec_fn=lambda: _die_with(me)
            )
        finally:
            os.close(end)

    def _watch(self) -> tuple[str, float]:
        """Wait for a reason to end: which, and how many seconds the tree gets."""
        while True:
            self._pump(TICK)
            if self.child.poll() is not None:
                return "exited", LAST_WORDS
            if (patience := self._asked_to_stop()) is not None:
                return "stopped", patience
            if self.host.absent_seconds() > self.spec["grace_seconds"]:
                return "no host", LAST_WORDS

    def _asked_to_stop(self) -> float | None:
        try:
            return float(json.loads((self.folder / "stop.json").read_text(encoding="utf-8"))["timeout_seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            return LAST_WORDS if self.stopped else None

    def _end_tree(self, patience: float) -> None:
        """Ask every process below to end, then kill what is left, until none is: orphans come to the keeper, the subreaper."""
        deadline = time.monotonic() + patience
        asked: set[int] = set()
        while alive := self._tree():
            late = time.monotonic() >= deadline
            for process in alive:
                if late or process.pid not in asked:
                    asked.add(process.pid)
                    _signal(process, signal.SIGKILL if late else signal.SIGTERM)
            self._pump(TICK / 2)
            self.child.poll()

    def _tree(self) -> list[psutil.Process]:
        below = psutil.Process().children(recursive=True)
        for process in below:
            if process.pid != self.child.pid:  # an orphan that ended must be reaped by us, or it stays as a zombie
                try:
                    os.waitpid(process.pid, os.WNOHANG)
                except ChildProcessError:
                    pass
        self.child.poll()
        return [process for process in below if _is_running(process)]

    def _pump(self, wait: float) -> None:
        """Wait at most so long for output, and move what there is to the log."""
        if self.output < 0:
            time.sleep(wait)
            return
        for _ in range(CHUNKS):
            if not select.select([self.output], [], [], wait)[0]:
                return
            data, wait = os.read(self.output, 1 << 16), 0
            if not data:
                os.close(self.output)
                self.output = -1
                return
            self.log.take(data)

    def _state(self) -> dict[str, Any]:
        me = psutil.Process()
        return {
            "keeper_pid": me.pid,
            "keeper_create_time": create_time(me),
            "pid": self.child.pid,
            "create_time": create_time(psutil.Process(self.child.pid)),
        }

    def _end(self, returncode: int | None, reason: str) -> None:
        self.log.close()
        self._say("exit.json", {"returncode": returncode, "reason": reason})

    def _say(self, name: str, content: dict[str, Any]) -> None:
        fresh = self.folder / f"{name}.new"
        try:
            fresh.write_text(json.dumps(content), encoding="utf-8")
            os.replace(fresh, self.folder / name)
        except OSError:
            pass  # the folder is gone or the disk is full: the engine's fate does not hang on a note

    def _hear(self, number: int, frame: object) -> None:  # noqa: ARG002
        self.stopped = True


def create_time(process: psutil.Process) -> float:
    """As aima_lib.infra.home's, which says why: the keeper imports nothing of AIMA."""
    if sys.platform != "linux":
        return float(process.create_time())
    fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _die_with(keeper: int) -> None:
    """In the engine's process, before it becomes the engine: die when the keeper dies, even if it already has."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        LIBC.prctl(option, value, 0, 0, 0)


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        pass  # it ended meanwhile


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def main() -> None:
    if os.fork():  # the host must not have to reap a keeper that may outlive it
        os._exit(0)
    os.umask(0o077)
    Keeper(Path(sys.argv[1])).keep()


LIBC = ctypes.CDLL(None)

if __name__ == "__main__":
    main()
