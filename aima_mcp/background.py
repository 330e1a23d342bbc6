"""The host in the background: find it, start it, end it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from aima_lib.errors import AimaError, DeadlineExceeded, FailedPrecondition, Unavailable
from aima_lib.infra.home import Home, Host, is_alive

if TYPE_CHECKING:
    import subprocess

START_SECONDS, STOP_SECONDS, POLL_SECONDS = 60.0, 60.0, 0.05
LOG_LINES = 15
Found = TypeVar("Found")
# Held to the end of this process, because they are meant to outlive it: Python warns of a child that is dropped while it runs.
_started: list[subprocess.Popen[bytes]] = []


def living(home: Home) -> Host | None:
    """The home's host, once it listens, or None. A host that has just begun gets a moment.

    Raises:
        FailedPrecondition: a program embeds the home and does not listen.
    """
    host = home.host()
    if host is None or host.url is not None:
        return host
    found = _until(lambda: (now := home.host()) is None or now.url is not None, 5.0)
    if not found:
        raise FailedPrecondition(
            f"{home.path} is hosted by process {host.pid}, which does not listen",
            hint="close the program that embeds it, or run `aima start` before it next time",
            details={"pid": host.pid},
        )
    return home.host()


def start(home: Home, address: str | None = None, port: int | None = None, behind_proxy: bool = False) -> Host:
    """Start a host that outlives this process, and wait until it answers.

    Raises:
        Unavailable: it ended, or did not answer in time; the end of its log is in the message.
    """
    import shutil
    import subprocess

    home.make()
    options = [word for option, value in (("--host", address), ("--port", port)) if value is not None for word in (option, str(value))]
    options = (options or _free_port(home)) + (["--behind-proxy"] if behind_proxy else [])
    path = home.path / "logs" / "host.log"
    began = path.stat().st_size if path.exists() else 0
    try:
        log = path.open("ab")
    except OSError as error:
        raise home.unusable(error) from error
    with log:
        child = subprocess.Popen(
            [sys.executable, "-m", "aima_mcp.main", "serve", *options],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=home.path, env=_environment(home), start_new_session=True,
        )  # fmt: skip
    _started.append(child)
    found = _until(lambda: _answering(home) or (child.poll() is not None and _ended(home)), START_SECONDS)
    if isinstance(found, Host):
        return found
    state = f"ended with exit code {child.returncode}" if child.poll() is not None else f"did not answer within {START_SECONDS:g} s"
    full = "" if shutil.disk_usage(home.path).free else f": no space is left in {home.path}"
    message = f"the host (process {child.pid}) {state}{full}\n{_tail(path, began)}".strip()
    raise Unavailable(message, hint=f"its log is {path}", details={"pid": child.pid})


def stop(home: Home, host: Host, stop_engines: bool) -> None:
    """Ask the host to end and wait until that process is gone.

    Raises:
        DeadlineExceeded: it is still there.
    """
    from aima_mcp.loopback import ask

    try:
        ask(home, host, "POST", "/shutdown", {"stop_engines": stop_engines}, seconds=STOP_SECONDS)
    except Unavailable:
        pass  # it may have gone before it could answer; what counts is whether it is gone
    if not _until(lambda: not is_alive(host.pid, host.create_time), STOP_SECONDS):
        raise DeadlineExceeded(
            f"the host (process {host.pid}) is still there after {STOP_SECONDS:g} s",
            hint=f"see {home.path / 'logs' / 'host.log'}; end process {host.pid} yourself if it hangs",
        )


def _answering(home: Home) -> Host | None:
    from aima_mcp.loopback import ask

    host = home.host()
    if host is None or host.url is None:
        return None
    try:
        ask(home, host, "GET", "/health", seconds=1.0)
    except AimaError:
        return None
    return host


def _ended(home: Home) -> bool:
    """Whether nobody hosts the home: of two that start at once, one ends and the other is the host."""
    return home.host() is None


def _free_port(home: Home) -> list[str]:
    """Nothing, or `--port 0` when the configured one is another home's: a host nobody addressed by port need not fail over it."""
    import socket

    from aima_lib import config

    server = config.load(home.path)["server"]
    with socket.socket(socket.AF_INET6 if ":" in server["host"] else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server["host"], server["port"]))
        except OSError:
            return ["--port", "0"]
    return []


def _environment(home: Home) -> dict[str, str]:
    """The child runs elsewhere than we do, so it is told where our code lies."""
    here = str(Path(__file__).parents[1])
    known = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = os.pathsep.join(dict.fromkeys([here, *known]))
    around = {name: value for name, value in os.environ.items() if name not in ("AIMA_URL", "AIMA_KEY")}  # a host shows nobody a key
    return {**around, "AIMA_HOME": str(home.path), "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}


def _tail(path: Path, began: int) -> str:
    with path.open("rb") as log:
        log.seek(began)
        return "\n".join(log.read().decode(errors="replace").splitlines()[-LOG_LINES:])


def _until(found: Callable[[], Found], seconds: float) -> Found | None:
    """What `found` returns once it is true, or None after so many seconds."""
    end = time.monotonic() + seconds
    while not (result := found()):
        if time.monotonic() > end:
            return None
        time.sleep(POLL_SECONDS)
    return result
