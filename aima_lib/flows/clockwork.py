"""When a schedule is due: cron in a time zone, and what becomes of moments that passed while no host ran."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

LATE = timedelta(seconds=60)  # a moment that passed so short a time ago is not missed
MOST = 1000  # so many missed moments are made up for at most, the newest
Schedule = Mapping[str, Any]


def misfit(schedule: Schedule) -> tuple[str, str] | None:
    """The key of a schedule that is wrong, and why; None when both are right."""
    try:
        zone = _zone(schedule)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return "timezone", f"no time zone is called {schedule['timezone'][:64]!r}"
    try:
        next(CronSim(schedule["cron"], datetime.now(zone)))
    except (CronSimError, StopIteration) as error:
        return "cron", f"this is no cron expression: {error or 'no moment fits it'}"
    return None


def upcoming(schedule: Schedule, after: datetime) -> datetime:
    """The first moment after `after`."""
    return next(CronSim(schedule["cron"], after.astimezone(_zone(schedule)))).astimezone(UTC)


def due(schedule: Schedule, after: datetime, now: datetime) -> Sequence[datetime]:
    """The moments after `after` up to now for which a run begins now, oldest first: of those missed what the schedule says."""
    passed = list(islice(takewhile(lambda moment: moment > after, _back(schedule, now)), MOST))[::-1]
    missed = [moment for moment in passed if now - moment > LATE]
    fresh = passed[len(missed) :]
    match schedule.get("missed", "skip"):
        case "all":
            return passed
        case "once" if missed and not fresh:
            return missed[-1:]
        case _:
            return fresh


def _back(schedule: Schedule, now: datetime) -> Iterator[datetime]:
    """The moments up to now, newest first."""
    start = now.astimezone(_zone(schedule)).replace(microsecond=0) + timedelta(seconds=1)
    return (moment.astimezone(UTC) for moment in CronSim(schedule["cron"], start, reverse=True))


def _zone(schedule: Schedule) -> ZoneInfo:
    return ZoneInfo(schedule.get("timezone", "UTC"))
