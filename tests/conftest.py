"""What every test may ask for. Nothing here stands in for AIMA: homes are real folders, hosts are real hosts."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# At the end of the path: an installed AIMA comes before the checkout's, and the tests find one another either way.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from aima_lib.infra.home import Home  # noqa: E402
from aima_lib.infra.store import Store  # noqa: E402


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home of its own, with its folders made and nobody hosting it."""
    fresh = Home(tmp_path / "home")
    fresh.make()
    return fresh


@pytest.fixture
async def store(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Store]:
    """An open store of its own."""
    opened = Store(tmp_path / "aima.db")
    yield opened
    opened.close()
