"""A host inside the test, with real engines under real keepers."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from aima_lib import runtime
from aima_lib.gateway import Gateway
from aima_lib.infra.home import Home
from tests.workshop import agreed
from tests.world import ROOTS

HERE = Path(__file__).parent
ROWS: list[tuple[str, ...]] = []  # of the matrix: engine, task, model, seconds to ready, memory, result
HEADS = ("engine", "task", "model", "ready s", "RSS MB", "result")
Found = TypeVar("Found")
CONFIG = """
[engines]
grace_seconds = 1
start_timeout_seconds = 30
probe_seconds = 0.2
probe_timeout_seconds = 1
llama_server = "{server}"
"""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The matrix, when its tests have run."""
    if not ROWS:
        return
    widths = [max(len(row[place]) for row in (HEADS, *ROWS)) for place in range(len(HEADS))]
    terminalreporter.section("engines")
    for row in (HEADS, *ROWS):
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class Hosted:
    """A gateway, and short ways to call it."""

    def __init__(self, gateway: Gateway, fixtures: Path) -> None:
        self.gateway, self.fixtures = gateway, fixtures

    async def call(self, unit: str, /, **arguments: Any) -> Mapping[str, Any]:
        """Its output; the owner agrees to what its plan says."""
        return await agreed(self.gateway, unit, arguments)

    async def tiny(self, name: str = "tiny") -> str:
        """The tiny model, imported under a name."""
        await self.call("model.import", path=str(self.fixtures / "tiny.gguf"), name=name, mode="copy")
        return name

    async def until(self, found: Callable[[], Found], seconds: float = 30.0) -> Found:
        """What `found` returns as soon as it is true; the loops go on meanwhile."""
        with anyio.fail_after(seconds):
            while not (result := found()):
                await anyio.sleep(0.01)
        return result

    def events(self, *types: str) -> list[dict[str, Any]]:
        return self.gateway.services.events.page(0, 10_000, types)


@pytest.fixture
def llama_server(tmp_path: Path) -> Path:
    """A llama-server on disk."""
    script = tmp_path / "bin" / "llama-server"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "llama_server.py"} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return script


@pytest.fixture
async def hosted(home: Home, fixtures: Path, llama_server: Path, anyio_backend: str) -> AsyncIterator[Hosted]:
    """A hosted home; its engines are ended with it."""
    (home.path / "config.toml").write_text(CONFIG.format(server=llama_server) + ROOTS, encoding="utf-8")
    async with runtime.host(home) as gateway:
        try:
            yield Hosted(gateway, fixtures)
        finally:
            for service in (await gateway.call("service.list"))["services"]:
                await agreed(gateway, "service.delete", {"service_id": service["id"]})
            for engine in ("llamacpp", "llama-server"):
                await gateway.call("engine.stop", {"name": engine, "force": True})
