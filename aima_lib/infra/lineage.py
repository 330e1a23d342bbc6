"""What belongs together and what caused what: carried from a call to its run, to the calls within, and to every event on the way.

A correlation id is that of the outermost thing all belongs to: the W3C trace where the caller named one, else the call, or the event
that nobody asked for. A causation id is that of the nearest: a call (`call-…`), a run, or an event (`event-` and its number).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any

from aima_lib.infra import trace

_numbers = itertools.count()
_current: ContextVar[Lineage | None] = ContextVar("lineage", default=None)


class Notice:
    """An event on its way into the log; its number is known once the log has taken it."""

    __slots__ = ("correlation_id", "seq")

    def __init__(self) -> None:
        self.seq: int | None = None
        self.correlation_id: str | None = None

    @property
    def id(self) -> str | None:
        """What other events name as their cause."""
        return event_id(self.seq) if self.seq else None


@dataclass(frozen=True, slots=True)
class Lineage:
    """What is done now belongs to `correlation` and comes of `causation`: ids, or an event whose number is not known yet."""

    correlation: str | Notice
    causation: str | Notice

    @property
    def ids(self) -> tuple[str | None, str | None]:
        """Both as they are known now."""
        whole, cause = self.correlation, self.causation
        return (whole if isinstance(whole, str) else whole.correlation_id), (cause if isinstance(cause, str) else cause.id)


class within:
    """What is done in the block comes of the call or run `id`: it belongs to `whole`, else to what surrounds it, or to the trace."""

    __slots__ = ("_lineage", "_token")

    def __init__(self, id: str, whole: str | None = None) -> None:
        around = _current.get()
        self._lineage = Lineage(whole or (around.correlation if around else trace.trace_id() or id), id)

    def __enter__(self) -> None:
        self._token: Token[Lineage | None] = _current.set(self._lineage)

    def __exit__(self, *reason: object) -> None:
        _current.reset(self._token)


class after(within):
    """What is done in the block comes of an event: one of the log, or one just published. With None, of nothing that is known."""

    __slots__ = ()

    def __init__(self, event: Mapping[str, Any] | Notice | None) -> None:
        if event is None:
            self._lineage = _current.get()  # type: ignore[assignment]
        elif isinstance(event, Notice):
            self._lineage = Lineage(event, event)
        else:
            id = event_id(event["seq"])
            self._lineage = Lineage(event["correlation_id"] or id, id)


def current() -> Lineage | None:
    """Where the work at hand comes from; None where nobody asked for it."""
    return _current.get()


def ids() -> tuple[str | None, str | None]:
    """The correlation and the causation id of the work at hand."""
    found = _current.get()
    return found.ids if found else (None, None)


def call_id() -> str:
    """An id for a call; ids made later sort later, which keeps their index small to write."""
    return f"call-{time.time_ns() // 1_000_000:x}-{next(_numbers) & 0xFFFFFF:06x}"


def event_id(seq: int) -> str:
    """The id of the event with this number."""
    return f"event-{seq}"
