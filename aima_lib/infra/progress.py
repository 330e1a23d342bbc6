"""How a long call says how far it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Send = Callable[[Mapping[str, Any]], Awaitable[None]]


async def silent(item: Mapping[str, Any]) -> None:
    """Nobody listens."""
