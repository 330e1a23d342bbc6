"""W3C trace context: whose trace the work at hand belongs to, carried from whoever asked to whatever is asked in turn.

What was given is handed on unchanged, but for the parent where spans are made (`telemetry`): then it is the span at hand. What is not of
the standard's form is not handed on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Protocol

PARENT, STATE, BAGGAGE = "traceparent", "tracestate", "baggage"
LONGEST = {STATE: 512, BAGGAGE: 8192}
_PARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_KEY = r"[a-z0-9][a-z0-9_*/-]{0,255}(?:@[a-z][a-z0-9_*/-]{0,13})?"
_MEMBER = re.compile(rf"{_KEY}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")
_ITEM = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*=[ \t]*[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*(?:[ \t]*;[\x20-\x2b\x2d-\x7e]*)?")
_current: ContextVar[Mapping[str, str]] = ContextVar("trace", default=MappingProxyType({}))


class Span(Protocol):
    """A piece of work that is under way. What it says is ids, names and figures, and nobody's words."""

    def set(self, **attributes: str | int | float | None) -> None:
        """Say more of it; `gen_ai__usage` is gen_ai.usage, and None says nothing."""
        ...


class Tracer(Protocol):
    """What makes spans."""

    def span(self, name: str, *, asks: bool = False, **attributes: str | int | float | None) -> AbstractContextManager[Span]:
        """A span around a block, child of the trace at hand; what is sent on within names it as parent. `asks`: it waits for another."""
        ...


class _Silent:
    def set(self, **attributes: str | int | float | None) -> None:
        pass


SILENT = _Silent()
_tracer: ContextVar[Tracer | None] = ContextVar("tracer", default=None)


def read(given: Mapping[str, Any]) -> Mapping[str, str]:
    """What of the headers, or the `_meta`, of a request is trace context. Without a sound traceparent there is no tracestate."""
    found: dict[str, str] = {}
    parent, state, baggage = (given.get(key) for key in (PARENT, STATE, BAGGAGE))
    if isinstance(parent, str) and _PARENT.fullmatch(parent):
        found[PARENT] = parent
        if _is_list(state, _MEMBER, LONGEST[STATE]):
            found[STATE] = str(state)
    if _is_list(baggage, _ITEM, LONGEST[BAGGAGE]):
        found[BAGGAGE] = str(baggage)
    return found


@contextmanager
def carried(context: Mapping[str, str]) -> Iterator[None]:
    """What is done within belongs to this trace."""
    before = _current.set(context)
    try:
        yield
    finally:
        _current.reset(before)


def enter(context: Mapping[str, str]) -> None:
    """What this task does from here on belongs to this trace."""
    _current.set(context)


@contextmanager
def traced(tracer: Tracer | None) -> Iterator[None]:
    """Spans of the block are made by this one."""
    before = _tracer.set(tracer)
    try:
        yield
    finally:
        _tracer.reset(before)


def span(name: str, *, asks: bool = False, **attributes: str | int | float | None) -> AbstractContextManager[Span]:
    """See Tracer.span; nothing where nobody makes spans."""
    tracer = _tracer.get()
    return nullcontext(SILENT) if tracer is None else tracer.span(name, asks=asks, **attributes)


def is_made() -> bool:
    """Whether anybody makes spans."""
    return _tracer.get() is not None


def headers() -> dict[str, str]:
    """What a request that is sent on takes along."""
    return dict(_current.get())


def trace_id() -> str | None:
    """The id of the trace, 32 hexadecimal digits, or None."""
    match = _PARENT.fullmatch(_current.get().get(PARENT, ""))
    return match[1] if match else None


def words() -> str:
    """What a line of the log says of the trace, where there is one."""
    id = trace_id()
    return f" (trace {id})" if id else ""


def _is_list(text: Any, member: re.Pattern[str], longest: int) -> bool:
    if not isinstance(text, str) or len(text) > longest:
        return False
    return all(member.fullmatch(part.strip(" \t")) for part in text.split(","))
