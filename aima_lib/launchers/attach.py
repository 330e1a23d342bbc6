"""A process that stands for a container: `python attach.py FOLDER`, under a keeper as every engine.

It starts the container that container.json describes, hands on its output, says why it ended where that is known, and ends it when it is
told to end. A daemon that goes away is waited for as long as the container may live without it.

container.json: {socket, home_id, name, generation, seconds, spec}.
Writes inner.json once it runs: {container_id, pid, create_time}, and why.json: {why}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aima_lib.errors import AimaError, NotFound
from aima_lib.infra.daemon import Daemon
from aima_lib.infra.daemon_errors import Away
from aima_lib.infra.home import create_time, is_alive

KIND = "engine"  # as in launchers/docker.py, which would import what this process has no use for
WAIT_SECONDS, AWAY_SECONDS = 30.0, 0.5
POLITE = 2.0


class Attached:
    """One container, from its start to its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.order: dict[str, Any] = json.loads((folder / "container.json").read_text(encoding="utf-8"))
        self.over, self.told = threading.Event(), False
        self.id, self.status = "", 1
        self.inner: dict[str, Any] | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hear)

    def run(self) -> int:
        """Until it has ended; its status."""
        try:
            self.daemon = Daemon(self.order["socket"], self.order["home_id"], self.order["seconds"])
            self.id = self.daemon.create(self.order["spec"], KIND, self.order["name"], self.order["generation"])
            if not self.told:
                self.daemon.start(self.id)
                self._note_inner()
        except AimaError as error:
            self._say(str(error))
            self._remove()
            return 1
        threads = [threading.Thread(target=work, daemon=True) for work in (self._talk, self._await)]
        for thread in threads:
            thread.start()
        self.over.wait()
        if self.told:
            self._end()
            self._remove()
        threads[0].join(POLITE)  # its last words
        return self.status  # one that ended by itself is removed by the host, which hears of it the sooner

    def _hear(self, number: int, frame: object) -> None:  # noqa: ARG002
        self.told = True
        self.over.set()

    # Threads

    def _talk(self) -> None:
        """Its output, as it comes."""
        since: float | None = None
        while True:
            try:
                for piece in self.daemon.output(self.id, follow=True, since=since):
                    sys.stdout.buffer.write(piece)
                    sys.stdout.buffer.flush()
            except (AimaError, OSError):
                pass  # the daemon went away, or it is gone; who waits for it sees which
            if self.over.wait(AWAY_SECONDS):
                return
            since = time.time()

    def _await(self) -> None:
        """Its end, and why."""
        while not self.told:
            try:
                status = self.daemon.wait(self.id, WAIT_SECONDS)
                if status is None:
                    continue
                self.status = min(status, 255)
                self._explain(status)
            except NotFound:
                self._say("its container was removed by somebody else")
            except Away:
                if self._lives():
                    self.over.wait(AWAY_SECONDS)
                    continue
                self._say("Docker stopped, and the container with it")
            except AimaError as error:
                self._say(str(error))
            break
        self.over.set()

    def _lives(self) -> bool:
        """Whether its first process lives; a daemon may go and leave it so. One that cannot be seen from here is taken to."""
        return not self.inner or not self.inner["pid"] or is_alive(self.inner["pid"], self.inner["create_time"])

    # Its end

    def _explain(self, status: int) -> None:
        """What Docker knows of its end, beyond what it said itself."""
        state = self.daemon.inspect(self.id)["State"]
        if state.get("OOMKilled"):
            limit = self.order["spec"].get("memory_bytes")
            of = f"it reached its limit of {limit / 2**30:.3g} GiB" if limit else "this machine had none left"
            self._say(f"out of memory: {of}, and the kernel ended it")
        elif state.get("Error"):
            self._say(str(state["Error"])[:500])
        elif status in (137, 143) and not self.told:
            # One that is being removed is killed first, so which it was is not known yet.
            self._say(
                f"it was ended by {'SIGKILL' if status == 137 else 'SIGTERM'}: somebody ended or removed its container, or Docker ended"
            )

    def _end(self) -> None:
        """Politely, within what the stop allows."""
        try:
            patience = float(json.loads((self.folder / "stop.json").read_text(encoding="utf-8"))["timeout_seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            patience = POLITE
        try:
            if patience >= 1:
                self.daemon.stop(self.id, patience)
        except AimaError:
            pass  # it is removed in a moment

    def _remove(self) -> None:
        try:
            if self.id:
                self.daemon.remove(self.id)
        except AimaError as error:
            print(f"E its container is left: {error}", flush=True)  # noqa: T201 - a host of this home removes it

    # Notes

    def _note_inner(self) -> None:
        """Which process it is, where the daemon shares this machine's table of processes: the control group shows that."""
        pid = int(self.daemon.inspect(self.id)["State"].get("Pid") or 0)
        try:
            group = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8")
        except OSError:
            group = ""
        started = create_time(pid) if pid and self.id in group else None
        self.inner = {"container_id": self.id, "pid": pid if started else None, "create_time": started}
        self._write("inner.json", self.inner)

    def _say(self, why: str) -> None:
        print(f"E {why}", flush=True)  # noqa: T201 - into the log
        self._write("why.json", {"why": why})

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        fresh = self.folder / f"{name}.new"
        try:
            fresh.write_text(json.dumps(content), encoding="utf-8")
            os.replace(fresh, self.folder / name)
        except OSError:
            pass  # a full disk: its fate does not hang on a note


if __name__ == "__main__":
    sys.exit(Attached(Path(sys.argv[1])).run())
