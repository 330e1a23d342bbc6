"""A world as users have it: the built wheel in a clean environment, a host process of it, and a home with a model that is served."""

from __future__ import annotations

import contextlib
import os
import signal
import site
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import apsw
import httpx

from aima_lib import Aima
from aima_lib.errors import ApprovalRequired
from aima_lib.infra.home import Home

ROOT = Path(__file__).parent.parent
START_SECONDS = 60.0
# Limits are those of a machine that does nothing else (AIMA_PATIENCE=1 asserts them); the suite asserts that what they measure is not far off.
PATIENCE = float(os.environ.get("AIMA_PATIENCE", "10"))
# Tests keep their files in folders of the run, which no default lets a host read.
ROOTS = f'[files]\nroots = {{tests = "{tempfile.gettempdir()}"}}\n'
Found = TypeVar("Found")


def until(found: Callable[[], Found], seconds: float = 20.0, what: str = "it") -> Found:
    """What `found` returns as soon as it is true."""
    end = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < end, f"{what} has not happened within {seconds} s"
        time.sleep(0.01)
    return result


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is done inside takes no longer, on a machine that does nothing else."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < seconds * PATIENCE, f"it took {took:.2f} s, and {seconds} s would do"


def build_wheel(folder: Path) -> Path:
    """The wheel, as a release builds it."""
    builder = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--skip-dependency-check", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(builder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = folder.glob("aima-*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """A clean environment with the wheel and nothing of the checkout; its dependencies are this environment's. Returns its python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    [packages] = folder.glob("lib/python*/site-packages")
    # A .pth line adds a folder but reads no .pth files inside it: an editable install of the checkout stays out.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--force-reinstall",
        str(wheel),
    ]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return python


def environment(home: Path) -> dict[str, str]:
    """What a process of AIMA finds around it."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "AIMA_HOME", "HF_TOKEN")}
    return {**kept, "AIMA_HOME": str(home), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}


class HostProcess:
    """A real host: `aima serve` on a free port, in a folder of its own, with more options if some are given."""

    def __init__(self, python: Path, home: Path, cwd: Path, config: str = "", options: Sequence[str] = ()) -> None:
        self.python, self.cwd, self._options = python, cwd, options
        self.home = Home(home)
        self.home.make()
        if config or not (home / "config.toml").exists():
            (home / "config.toml").write_text(config + ROOTS, encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.home.path / "logs" / "serve.log"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        found = self.home.host()
        assert found is not None, self.log.read_text(encoding="utf-8")
        assert found.url is not None
        return found.url

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.home.key()}"}

    def spawn(self) -> None:
        """Start it, and do not wait."""
        with self.log.open("ab") as log:
            command = [str(self.python), "-m", "aima_mcp.main", "serve", "--port", "0", *self._options]
            self._process = subprocess.Popen(command, cwd=self.cwd, env=environment(self.home.path), stdout=log, stderr=log)

    def start(self) -> HostProcess:
        """Start it and wait until it answers."""
        self.spawn()
        until(self.answers, START_SECONDS, "the host's first answer")
        return self

    def answers(self) -> bool:
        """Whether it listens."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the host ended with {self._process.returncode}:\n{self.log.read_text(encoding='utf-8')[-3000:]}")
        found = self.home.host()
        if found is None or found.url is None or found.pid != self._process.pid:
            return False
        try:
            return httpx.get(f"{found.url}/health", trust_env=False, timeout=5).is_success
        except httpx.HTTPError:
            return False

    def client(self) -> httpx.Client:
        """An HTTP client with the owner's key."""
        return httpx.Client(base_url=self.url, headers=self.headers, trust_env=False, timeout=120)

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """End it and its engines."""
        assert self._process is not None
        if self._process.poll() is None:
            with self.client() as client:
                client.post("/shutdown", json={"stop_engines": True})
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()
                raise

    def counted(self) -> dict[str, int]:
        """Calls by unit (resources too) and events by type, as /metrics counts them."""
        with self.client() as client:
            return counts(client.get("/metrics").raise_for_status().text)


def counts(text: str) -> dict[str, int]:
    """Unit or event → how often, of a /metrics page. Only calls that were answered as they should be count."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        for family, label in (("aima_calls_total{", 'unit="'), ("aima_events_total{", 'type="')):
            if line.startswith(family) and 'code="internal"' not in line:
                name = line.partition(label)[2].partition('"')[0]
                found[name] = found.get(name, 0) + int(float(line.rpartition(" ")[2]))
    return found


@dataclass
class World:
    """What the contract suite shares: one host of the installed wheel, with `tiny` imported and served."""

    host: HostProcess
    aima: Aima
    http: httpx.Client
    folder: Path
    ledger: dict[str, int]

    @property
    def home(self) -> Home:
        return self.host.home

    def call(self, name: str, /, **arguments: Any) -> Mapping[str, Any]:
        """Call a unit by the library, with the second step where it takes one."""
        return agree(self.aima, name, arguments)

    def note(self, counted: Mapping[str, int]) -> None:
        """Remember what another host of the same wheel has exercised."""
        for name, count in counted.items():
            self.ledger[name] = self.ledger.get(name, 0) + count


def agree(aima: Aima, name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """The output of a call by the owner, who agrees to what its plan says."""
    try:
        return aima.call(name, arguments)
    except ApprovalRequired as refusal:
        return aima.apply(refusal.details["plan"])


def agreed_to(http: httpx.Client, unit: str, body: dict[str, Any]) -> Any:
    """What a command answers that takes a second step."""
    plan = http.post(f"/units/{unit}", json=body, headers={"Aima-Plan": "true"}).json()
    return http.post(f"/units/{unit}", json=body, headers={"Aima-Token": plan["token"]}).raise_for_status().json()


def furnish(aima: Aima) -> None:
    """The baseline: a model `tiny`, and a service `tiny` that runs it."""
    aima.call("model.import", {"path": "tiny.gguf", "name": "tiny"})
    aima.call("service.create", {"model_id": "tiny", "name": "tiny", "engine": "llamacpp"})
    until(lambda: aima.call("service.get", {"service_id": "tiny"})["service"]["status"] == "running", 60, "the service")


def contents(home: Home) -> dict[str, Any]:
    """What a refused call must not have changed: every document by kind and id, models and runs whole."""
    db = apsw.Connection(str(home.path / "aima.db"), flags=apsw.SQLITE_OPEN_READONLY)  # the home may be this process's: a second SQLite
    rows = db.execute("SELECT kind, id, body FROM documents").fetchall()  # would let go of the first one's locks
    db.close()
    return {f"{kind}/{id}": body if kind in ("model", "run") else "" for kind, id, body in rows}
