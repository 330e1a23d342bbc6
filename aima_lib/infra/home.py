"""One home, one authority: the folder that holds everything, and the lock that says who hosts it."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from aima_lib.errors import FailedPrecondition

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

KEY_SECONDS = 1.0
# Where start times are dates, the boot time they are reckoned from may be corrected by a second.
CLOCK_SLACK = 0.005 if sys.platform == "linux" else 1.5


@dataclass(frozen=True, slots=True)
class Host:
    """The process that hosts a home, as its record says and the process table confirms."""

    pid: int
    create_time: float
    url: str | None
    version: str


class Home:
    """A folder: config.toml, aima.db, models/, logs/, instances/, key, keys.secret, host.lock, host.json.

    `given` says whether somebody named it; the environment's AIMA_URL and AIMA_KEY are for who names none.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = Path(path or os.environ.get("AIMA_HOME") or Path.home() / ".aima").expanduser().absolute()
        self.given = path is not None
        self._lock: IO[bytes] | None = None
        self._key, self._key_until = b"", 0.0

    def make(self) -> None:
        """Create the folders, for the owner's eyes only.

        Raises:
            FailedPrecondition: there cannot be a home at this path.
        """
        try:
            for folder in (self.path, *(self.path / name for name in ("models", "logs", "instances"))):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self.unusable(error) from error

    @property
    def id(self) -> str:
        """A short name of this home, for marks on processes."""
        import hashlib

        return hashlib.sha256(str(self.path).encode()).hexdigest()[:12]

    def key(self) -> str:
        """The owner's key: what other processes show at the door. Made once, kept in a 0600 file."""
        path = self.path / "key"
        if not path.exists():
            from aima_lib.infra.keys import mint  # once in a home's life, and slow to import

            self._make(path, mint())
        return path.read_text(encoding="utf-8").strip()

    def is_key(self, candidate: str) -> bool:
        """Whether `candidate` is the owner's key, compared in constant time. The file is read once a second, not for each request."""
        from hmac import compare_digest

        if time.monotonic() > self._key_until:
            self._key, self._key_until = self.key().encode(), time.monotonic() + KEY_SECONDS
        return compare_digest(candidate.encode(), self._key)

    @property
    def secret_path(self) -> Path:
        """The file that holds the secret behind the store's keys."""
        return self.path / "keys.secret"

    def has_secret(self) -> bool:
        """Whether the secret is there already."""
        return self.secret_path.exists()

    def secret(self) -> bytes:
        """What keys are hashed with, and secrets encrypted. Made once, in a 0600 file outside the store, whose copy alone tells nothing.

        Raises:
            FailedPrecondition: the file is there and holds something else.
        """
        if not self.has_secret():
            import secrets

            self._make(self.secret_path, secrets.token_hex(32))
        try:
            return bytes.fromhex(self.secret_path.read_text(encoding="utf-8").strip())
        except (OSError, ValueError) as error:
            raise FailedPrecondition(
                f"{self.secret_path} is damaged or cannot be read",
                hint="bring it back from a backup; or move it away: keys must then be made anew, and secrets put again",
            ) from error

    def remote(self) -> tuple[str | None, str | None]:
        """AIMA_URL and AIMA_KEY of the environment, for who named no home: the host to go to, and the key to show there."""
        if self.given:
            return None, None
        return os.environ.get("AIMA_URL") or None, os.environ.get("AIMA_KEY") or None

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
        try:
            lock = (self.path / "host.lock").open("a+b")
        except OSError as error:
            raise self.unusable(error) from error
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
        try:
            self._sweep()
            self.announce(None, version)
        except OSError as error:
            self.release()
            raise self.unusable(error) from error

    def _sweep(self) -> None:
        """Clear the half-written files of processes that were killed in the midst of `write_private`."""
        for part in self.path.glob("*.part"):
            writer = part.name.split(".")[-2]
            if writer.isdigit() and create_time(int(writer)) is None:
                part.unlink(missing_ok=True)

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

    def _make(self, path: Path, text: str) -> None:
        try:
            write_private(path, text)
        except OSError as error:
            raise self.unusable(error) from error

    def unusable(self, error: OSError) -> FailedPrecondition:
        """The refusal of a home in which that happened."""
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        mend = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend it"
        return FailedPrecondition(f"{self.path} cannot be a home: {what}", hint=f"{mend}, or set AIMA_HOME to a folder of your own")


def create_time(pid: int) -> float | None:
    """When the process started, by a clock that nobody sets; None when there is no such process.

    Linux reckons from the boot. psutil turns that into a date, which moves when the clock is set: a board that learns the time after
    its boot would no longer know its own processes.
    """
    return _since_boot(pid) if sys.platform == "linux" else _dated(pid)


def _since_boot(pid: int) -> float | None:
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in ("Z", "X") else int(fields[18]) / os.sysconf("SC_CLK_TCK")


def _dated(pid: int) -> float | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def is_alive(pid: int, started: float) -> bool:
    """Whether that very process lives: a pid alone may be somebody else's by now."""
    found = create_time(pid)
    return found is not None and abs(found - started) < CLOCK_SLACK


def write_private(path: Path, text: str) -> None:
    """Replace a file whole, readable by its owner only."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
