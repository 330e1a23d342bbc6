"""What is seen while a call is under way: progress, tokens as they come, or nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from aima_lib.wording import plain


class Watcher(Protocol):
    """Sees each stream item of a call, and its end."""

    async def send(self, item: Mapping[str, Any]) -> None:
        """One item."""

    def close(self, done: bool) -> None:
        """The call is over; `done` when it succeeded."""


def watcher(stream: Mapping[str, Any] | None, quiet: bool) -> Watcher:
    """Who watches a call whose stream items have this schema. Progress goes to standard error, text only where it is not to be quiet."""
    shape = (stream or {}).get("properties", {})
    if "phase" in shape:
        from aima_mcp.faces.cli.progress import bar_or_lines

        return bar_or_lines()
    return Silence() if quiet or "delta" not in shape else Tokens()


@contextmanager
def seen_by(watcher: Watcher) -> Iterator[None]:
    """A call that is watched: at its end the watcher hears whether it succeeded."""
    done = False
    try:
        yield
        done = True
    finally:
        watcher.close(done)


class Silence:
    """Nobody watches."""

    async def send(self, item: Mapping[str, Any]) -> None:
        """Nothing."""

    def close(self, done: bool) -> None:
        """Nothing."""


class Tokens:
    """Text as it is generated, on standard output."""

    def __init__(self) -> None:
        self.wrote = ""

    async def send(self, item: Mapping[str, Any]) -> None:
        delta = item.get("delta")
        text = delta.get("content") if isinstance(delta, Mapping) else delta
        if isinstance(text, str) and (text := plain(text)):
            sys.stdout.write(text)
            sys.stdout.flush()
            self.wrote += text

    def close(self, done: bool) -> None:  # noqa: ARG002
        """End the line."""
        if self.wrote and not self.wrote.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
