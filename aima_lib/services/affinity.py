"""Which endpoint has read the beginning of a prompt before: its cache spares it to read that again."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

BLOCK, MOST_BLOCKS = 512, 64
KEPT = 8192


def marks(request: Mapping[str, Any]) -> list[int]:
    """A mark for each longer beginning of what is asked: a conversation by its messages, other text in blocks."""
    found: list[int] = []
    talk = request.get("messages") or request.get("input") or request.get("prompt") or ()
    parts = [talk[i : i + BLOCK] for i in range(0, len(talk), BLOCK)] if isinstance(talk, str) else talk
    if isinstance(parts, Sequence):
        so_far = hash(json.dumps(request.get("tools"))) if request.get("tools") else 0
        for part in parts[:MOST_BLOCKS]:
            so_far = hash((so_far, part if isinstance(part, str) else json.dumps(part)))
            found.append(so_far)
    return found


class Affinity:
    """The newest marks and where each was read. Forgets the oldest."""

    def __init__(self) -> None:
        self._where: OrderedDict[int, str] = OrderedDict()

    def best(self, marks: Sequence[int]) -> str | None:
        """Who read the longest of these beginnings."""
        for mark in reversed(marks):
            if (found := self._where.get(mark)) is not None:
                return found
        return None

    def learn(self, marks: Sequence[int], where: str) -> None:
        """These are read there now."""
        for mark in marks:
            self._where[mark] = where
            self._where.move_to_end(mark)
        while len(self._where) > KEPT:
            self._where.popitem(last=False)
