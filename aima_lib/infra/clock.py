"""The time, as AIMA writes it."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from aima_lib.errors import InvalidArgument

_second = 0, ""


def now() -> str:
    """RFC 3339 in UTC, to the millisecond: 2026-11-22T16:42:00.123Z."""
    global _second
    whole, thousandths = divmod(time.time_ns() // 1_000_000, 1000)
    known, text = _second
    if known != whole:  # written once a second: many want to know
        text = datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        _second = whole, text
    return f"{text}.{thousandths:03}Z"


def stamp(moment: datetime) -> str:
    """`moment` as `now` writes it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse(text: str) -> datetime:
    """The moment an RFC 3339 text names."""
    return datetime.fromisoformat(text)


def moment(text: str, field: str = "since") -> str:
    """An RFC 3339 time that somebody gave, as `now` writes it, so that the two compare; without a zone it is UTC.

    Raises:
        InvalidArgument: it is none; `field` is named.
    """
    try:
        found = parse(text)
        return stamp(found if found.tzinfo else found.replace(tzinfo=UTC))
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(f"{field}: {text!r} is no RFC 3339 time", hint="write it like 2026-11-22T16:42:00Z") from error
