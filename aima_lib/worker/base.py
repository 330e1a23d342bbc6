"""What the worker and what it runs agree on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Spec = dict[str, Any]
Alive = Callable[[], None]  # raises ConnectionError once nobody waits for the answer any more
MOST_PIXELS = 64 << 20


class Wrong(Exception):
    """The request cannot be answered by this model: what it says is said to the caller, so it quotes nothing of the request."""


@dataclass
class Sound:
    """Speech: 16-bit samples of one channel."""

    samples: bytes
    sample_rate: int
    voice: str


@dataclass
class Picture:
    """An encoded image or video."""

    data: bytes
    media_type: str
    facts: dict[str, Any] = field(default_factory=dict)
