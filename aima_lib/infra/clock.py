"""The time, as AIMA writes it."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> str:
    """RFC 3339 in UTC, to the millisecond: 2026-11-22T16:42:00.123Z."""
    return stamp(datetime.now(UTC))


def stamp(moment: datetime) -> str:
    """`moment` as `now` writes it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse(text: str) -> datetime:
    """The moment an RFC 3339 text names."""
    return datetime.fromisoformat(text)
