"""When a scheduled job is due: five fields as in crontab(5), read in a time zone.

Where clocks change, the rules are those of Debian's cron: a time that a day skips is made up for when the
gap ends, a time that a day has twice counts once; hours written as ``*`` or ``*/n`` follow the clock on the
wall both times. A host's cron knows no zones, so its line fires whenever a time of the zone may have come,
and :func:`previous` tells whether one has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from typing import Any

from .errors import GroundcrewError

try:
    from zoneinfo import ZoneInfo
except (
    ImportError
):  # Python 3.8 of older systems; the modules that schedule anything do not run there.
    ZoneInfo = None  # type: ignore[assignment,misc]

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
# crontab(5): name, lowest, highest, and the words that stand for numbers.
_FIELDS: list[tuple[str, int, int, dict[str, int]]] = [
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("day of week", 0, 7, {name: number for number, name in enumerate(_DAYS)}),
]
# Longer than the longest way from one 29 February to the next.
_HORIZON_DAYS = 9 * 366
_MINUTE = timedelta(minutes=1)


def fault(schedule: Any) -> str:
    """What cron would not accept about five fields as in crontab(5); "" when it would."""
    if not isinstance(schedule, str) or len(schedule.split()) != len(_FIELDS):
        return f'schedule is {schedule!r}; it has to be five fields as in crontab(5), such as "30 2 * * *".'
    for text, field in zip(schedule.split(), _FIELDS):
        name, lowest, highest, _words = field
        for part in text.split(","):
            if _numbers(part, field) is None:
                return (
                    f"schedule is {schedule!r}; '{part}' is no {name}: {lowest} to {highest}, *, "
                    "ranges and lists of them, and steps such as */5."
                )
    return ""


def zone_fault(name: Any) -> str:
    """Why a time zone cannot be used; "" when it can. Names are those of the IANA data base."""
    try:
        _zone(name)
    except GroundcrewError as error:
        return str(error)
    return ""


def due_times(schedule: str, zone: str, first: date, last: date) -> Iterator[datetime]:
    """Every due time of the zone's days from first to last, both included, in UTC and in order."""
    local = _zone(zone)
    minutes, hours, days, months, weekdays = (
        _values(text, field) for text, field in zip(schedule.split(), _FIELDS)
    )
    texts = schedule.split()
    either = not texts[2].startswith("*") and not texts[4].startswith("*")
    twice = texts[1].startswith("*")
    day = first
    while day <= last:
        weekday = day.isoweekday() % 7
        in_week = weekday in weekdays or (weekday == 0 and 7 in weekdays)
        fits = (day.day in days or in_week) if either else (day.day in days and in_week)
        if day.month in months and fits:
            found = set()
            for hour in hours:
                for minute in minutes:
                    moment = datetime.combine(day, time(hour, minute), local)
                    for fold in (0, 1) if twice else (0,):
                        found.add(moment.replace(fold=fold).astimezone(timezone.utc))
            # Skipped hours are made up for within the day, so days stay in order.
            yield from sorted(found)
        day += timedelta(days=1)


def previous(schedule: str, zone: str, now: datetime) -> datetime | None:
    """The last due time at or before now (with its zone), in UTC; None when there never was one."""
    today = now.astimezone(_zone(zone)).date()
    for back in range(_HORIZON_DAYS):
        day = today - timedelta(days=back)
        past = [moment for moment in due_times(schedule, zone, day, day) if moment <= now]
        if past:
            return past[-1]
    return None


def following(schedule: str, zone: str, now: datetime) -> datetime | None:
    """The first due time after now (with its zone), in UTC; None when there will be none."""
    today = now.astimezone(_zone(zone)).date()
    for ahead in range(_HORIZON_DAYS):
        day = today + timedelta(days=ahead)
        for moment in due_times(schedule, zone, day, day):
            if moment > now:
                return moment
    return None


def longest_gap(schedule: str, zone: str, day: date) -> timedelta:
    """The longest time between two due times in the 400 days from ``day`` on."""
    moments = list(due_times(schedule, zone, day, day + timedelta(days=400)))
    gaps = [later - earlier for earlier, later in zip(moments, moments[1:])]
    return max(gaps, default=timedelta(days=_HORIZON_DAYS))


def cron_fields(schedule: str, zone: str, day: date) -> str:
    """The five fields for the line of a host whose clock is UTC.

    Those of the schedule itself for UTC; else the minutes at which a time of the zone may come, each hour.
    """
    if zone == "UTC":
        return " ".join(schedule.split())
    local = _zone(zone)
    minutes = _values(schedule.split()[0], _FIELDS[0])
    shifts = set()
    for ahead in range(0, 400, 7):
        moment = datetime.combine(day + timedelta(days=ahead), time(12), local)
        shift = moment.utcoffset() or timedelta()
        shifts.add(int(shift.total_seconds() // 60) % 60)
    wanted = sorted({(minute - shift) % 60 for minute in minutes for shift in shifts})
    return f"{','.join(map(str, wanted))} * * * *"


def local_date(moment: datetime, zone: str) -> datetime:
    """A moment as the zone's clock shows it."""
    return moment.astimezone(_zone(zone))


def run_id(moment: datetime) -> str:
    """What a run is called: the moment at which it was due, in UTC, such as 20260131T040506Z."""
    return moment.astimezone(timezone.utc).strftime("%Y%m%dT%H%M%SZ")


def moment_of(run: Any) -> datetime | None:
    """The inverse of :func:`run_id`, whatever suffix it has; None for anything else."""
    try:
        return datetime.strptime(str(run)[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
    except ValueError:
        return None


def filled(text: str, due: datetime, zone: str) -> str:
    """Text with {date} and {hour} as the zone's clock shows them when a run is due."""
    local = local_date(due, zone)
    return text.replace("{date}", local.strftime("%Y-%m-%d")).replace(
        "{hour}", local.strftime("%H")
    )


def _zone(name: Any) -> tzinfo:
    if name == "UTC":
        return timezone.utc
    try:
        # Only names: a path would be read as a file.
        if not isinstance(name, str) or not re.fullmatch(
            r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*", name
        ):
            raise ValueError(name)
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError) as error:
        raise GroundcrewError(
            f"time zone {name!r} is not known here; write a name such as UTC or Europe/Berlin "
            "(package tzdata has them)"
        ) from error


def _numbers(part: str, field: tuple[str, int, int, dict[str, int]]) -> set[int] | None:
    """The values of one entry of a list, None when cron would not accept it."""
    _name, lowest, highest, words = field
    match = re.fullmatch(r"(?:(\*)|(\w+)(?:-(\w+))?)(?:/([0-9]+))?", part)
    if not match:
        return None
    bounds = [str(words.get(bound.lower(), bound)) for bound in match.groups()[1:3] if bound]
    # A step needs a range: cron reads 5/10 as 5.
    step = int(match[4] or 1)
    if step == 0 or (match[4] and len(bounds) == 1):
        return None
    if match[1]:
        return set(range(lowest, highest + 1, step))
    if not all(bound.isdecimal() and lowest <= int(bound) <= highest for bound in bounds):
        return None
    first, last = int(bounds[0]), int(bounds[-1])
    return set(range(first, last + 1, step)) if first <= last else None


def _values(text: str, field: tuple[str, int, int, dict[str, int]]) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        found |= _numbers(part, field) or set()
    return found
