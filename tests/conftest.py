"""What every test may ask for. Nothing here stands in for AIMA: homes are real folders, hosts are real hosts."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parent.parent
# At the end of the path: an installed AIMA comes before the checkout's, and the tests find one another either way.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from aima_lib import Aima  # noqa: E402
from aima_lib.gateway import Gateway  # noqa: E402
from aima_lib.infra.home import Home  # noqa: E402
from aima_lib.infra.store import Store  # noqa: E402
from aima_lib.runtime import host  # noqa: E402
from tests.docker.daemon import Dockerd  # noqa: E402
from tests.hub import Hub  # noqa: E402
from tests.hub import furnish as fill  # noqa: E402
from tests.playthings import wheel_members, write_toys, write_voice  # noqa: E402
from tests.served import Served, serving  # noqa: E402
from tests.tiny import write_tiny_gguf  # noqa: E402
from tests.world import ROOTS, HostProcess, World, build_wheel, furnish, install  # noqa: E402

# A suite started in the background of a shell ignores Ctrl-C, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

WHOLE = ("tests/contract/", "tests/docker/")

# Engines of tests die soon after their host, and nothing reaches beyond this machine.
CONFIG = '[models.aliases]\nsmall-model = "tiny"\n[engines]\ngrace_seconds = 2\nespeak_ng = "{voice}"\n[docker]\nsocket = "{socket}"\n'


class Modules(LoadScopeScheduling):  # type: ignore[misc]
    """How the suite is divided (pytest -n): a module stays whole, and all of the contract, which counts in one world what it has exercised,
    and all that shares a Docker daemon."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((folder for folder in WHOLE if file.startswith(folder)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Modules:
    config.option.loadscopereorder = False  # the modules with the fewest tests are not the quickest
    return Modules(config, log)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home of its own, with its folders made and nobody hosting it."""
    fresh = Home(tmp_path / "home")
    fresh.make()
    (fresh.path / "config.toml").write_text(ROOTS, encoding="utf-8")
    return fresh


@pytest.fixture
async def store(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Store]:
    """An open store of its own."""
    opened = Store(tmp_path / "aima.db")
    yield opened
    opened.close()


@pytest.fixture
async def hosted(home: Home, anyio_backend: str) -> AsyncIterator[Gateway]:
    """A home hosted by this process."""
    async with host(home) as gateway:
        yield gateway


@pytest.fixture
async def served(request: pytest.FixtureRequest, home: Home, tmp_path: Path, anyio_backend: str) -> AsyncIterator[Served]:
    """A home hosted and served by this process, with the units of the test's module: its WORLD and HANDLERS."""
    async with serving(home, tmp_path, request.module.WORLD, request.module.HANDLERS) as opened:
        yield opened


@pytest.fixture(scope="session")
def fixtures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that hosts of tests run in: `tiny.gguf`, `broken.gguf`, which ends in its middle, and the toys."""
    folder = tmp_path_factory.mktemp("fixtures")
    whole = write_tiny_gguf(folder / "tiny.gguf").read_bytes()
    (folder / "broken.gguf").write_bytes(whole[: len(whole) // 2])
    write_toys(folder)
    write_voice(folder / "espeak-ng")
    return folder


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A model hub and package index of our own, over HTTP."""
    with Hub(tmp_path_factory.mktemp("hub")) as running:
        fill(running)
        running.add_wheel("faster-whisper", "1.2.1", wheel_members())
        yield running


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of a clean environment that has the wheel installed."""
    return install(wheel, tmp_path_factory.mktemp("installed") / "venv")


@pytest.fixture(scope="session")
def world_docker() -> Iterator[Dockerd]:
    """The Docker daemon that hosts of tests look for. Nobody has started it: a test that needs it does (`tests/contract/conftest.py`)."""
    daemon = Dockerd()
    yield daemon
    daemon.close()


@pytest.fixture(scope="session")
def config(hub: Hub, fixtures: Path, world_docker: Dockerd) -> str:
    """config.toml of a test's host."""
    return CONFIG.format(voice=fixtures / "espeak-ng", socket=world_docker.socket) + hub.config


@pytest.fixture(scope="session")
def world(python: Path, config: str, fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One host of the installed wheel, with `tiny` imported and served, for all the tests that leave it as they found it."""
    process = HostProcess(python, tmp_path_factory.mktemp("world") / "home", fixtures, config).start()
    try:
        with Aima(process.home.path) as aima, process.client() as http:
            furnish(aima)
            yield World(process, aima, http, fixtures, {})
    finally:
        process.stop()
