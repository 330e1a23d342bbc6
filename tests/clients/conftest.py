"""A host for clients that others wrote: a tiny model is there, and nothing serves it yet."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import write_tiny_gguf
from tests.world import ROOT, HostProcess


@pytest.fixture
def host(tmp_path: Path) -> Iterator[HostProcess]:
    process = HostProcess(Path(sys.executable), tmp_path / "home", ROOT).start()
    with process.client() as client:
        path = str(write_tiny_gguf(tmp_path / "tiny.gguf"))
        client.post("/units/model/import", json={"path": path, "name": "tiny"}).raise_for_status()
    yield process
    process.stop()
