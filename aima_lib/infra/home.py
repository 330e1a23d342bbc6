"""One home, one authority: the folder that holds everything, and the lock that says who hosts it."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from aima_lib.errors import FailedPrecondition

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


@dataclass(frozen=True, slots=True)
class Host:
    """The process that hosts a home, as its record says and the process table confirms."""

    pid: int
    create_time: float
    url: str | None
    version: str


class Home:
    """A folder: config.toml, aima.db, models/, logs/, instances/, key, host.lock, host.json."""

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = Path(path or os.environ.get("AIMA_HOME") or Path.home() / ".aima").expanduser().absolute()
        self._lock: IO[bytes] | None = None

    def make(self) -> None:
        """Create the folders, for the owner's eyes only."""
        for folder in (self.path, *(self.path / name for name in ("models", "logs", "instances"))):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def id(self) -> str:
        """A short name of this home, for marks on processes."""
        return hashlib.sha256(str(self.path).encode()).hexdigest()[:12]

    def key(self) -> str:
        """The owner's key: what other processes show at the door. Made once, kept in a 0600 file."""
        path = self.path / "key"
        if not path.exists():
            write_private(path, "aima-" + secrets.token_urlsafe(24))
        return path.read_text(encoding="utf-8").strip()

    def is_key(self, candidate: str) -> bool:
        """Whether `candidate` is the owner's key, compared in constant time."""
        return hmac.compare_digest(candidate.encode(), self.key().encode())

    def host(self) -> Host | None:
        """The living host of this home, or None."""
        try:
            record = json.loads((self.path / "host.json").read_text(encoding="utf-8"))
            host = Host(record["pid"], record["create_time"], record["url"], record["version"])
        except (OSError, ValueError, KeyError):
            return None
        return host if is_alive(host.pid, host.create_time) else None

    def acquire(self, version: str) -> None:
        """Become the host.

        Raises:
            FailedPrecondition: another process hosts this home; its pid is named.
        """
        lock = (self.path / "host.lock").open("a+b")
        try:
            if sys.platform == "win32":
                msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            holder = self.host()
            pid = holder.pid if holder else None
            raise FailedPrecondition(
                f"{self.path} is hosted by process {pid or 'that is just starting'}",
                hint=f"use it through {holder.url}" if holder and holder.url else "wait for it, end it, or set AIMA_HOME to another folder",
                details={"pid": pid},
            ) from error
        self._lock = lock
        self.announce(None, version)

    def announce(self, url: str | None, version: str) -> None:
        """Say who hosts, and where it listens (None: nowhere, it is embedded)."""
        record = {"pid": os.getpid(), "create_time": create_time(os.getpid()), "url": url, "version": version}
        write_private(self.path / "host.json", json.dumps(record))

    def release(self) -> None:
        """Stop being the host."""
        if self._lock is not None:
            (self.path / "host.json").unlink(missing_ok=True)
            self._lock.close()
            self._lock = None


def create_time(pid: int) -> float | None:
    """When the process started, as the system tells it; None when there is no such process."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def is_alive(pid: int, started: float) -> bool:
    """Whether that very process lives: a pid alone may be somebody else's by now."""
    found = create_time(pid)
    return found is not None and abs(found - started) < 1.5


def write_private(path: Path, text: str) -> None:
    """Replace a file whole, readable by its owner only."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def describe_process(pid: int) -> dict[str, Any]:
    """Name and command of a process, for errors that name who holds something."""
    import psutil

    try:
        process = psutil.Process(pid)
        return {"pid": pid, "name": process.name()}
    except psutil.Error:
        return {"pid": pid, "name": None}
