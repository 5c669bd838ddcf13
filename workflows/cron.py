"""Cron expressions: what they say, and the next time after an instant in a time zone.

The fields mean what they mean to cron, which Celery's `crontab` differs from in three ways: 7 is Sunday too, a day of
the month and a day of the week that are both restricted are alternatives, and clock changes count (see `next_time`).
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import tzlocal
from celery.schedules import crontab_parser

from agentlink.units import shown
from workflows.errors import ZoneUnknown

WORDS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
# Each field: what a person calls it, its lowest and highest number, names for its numbers.
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 7, _WEEKDAYS),
)
# The 29th of February that is a certain day of the week may be so far away, across a year like 2100.
_HORIZON_YEARS = 41
# No clock is put forward by more; but where a whole day was skipped, that day's times are the next one's as well.
_PUT_FORWARD_MAX = timedelta(hours=3)


@dataclass(frozen=True)
class Cron:
    """What a cron expression says: the numbers of each field; Sunday is 0."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    #: Whether a day has to be right by one of `days` and `weekdays`, not by both.
    either: bool

    def dates(self, first: date) -> Iterator[date]:
        """The days it means, from `first` on."""
        for month in range(first.year * 12 + first.month - 1, (first.year + _HORIZON_YEARS) * 12):
            year, number = divmod(month, 12)
            if number + 1 not in self.months:
                continue
            for day in range(1, calendar.monthrange(year, number + 1)[1] + 1):
                found = date(year, number + 1, day)
                by_day, by_weekday = day in self.days, found.isoweekday() % 7 in self.weekdays
                if found >= first and (by_day or by_weekday if self.either else by_day and by_weekday):
                    yield found

    def clock_times(self, first: datetime) -> Iterator[datetime]:
        """The times on the clock that it means, from `first` on, whatever the zone."""
        times = [time(hour, minute) for hour in sorted(self.hours) for minute in sorted(self.minutes)]
        for day in self.dates(first.date()):
            for at in times:
                if (found := datetime.combine(day, at)) >= first:
                    yield found

    def instants(self, clock_time: datetime, zone: ZoneInfo) -> set[float]:
        """When the clock shows that in a zone, as far as it counts: in seconds since 1970."""
        # Where the hour does not matter, both passes of the hour that comes twice count: they are hours like others.
        folds = (0, 1) if len(self.hours) == 24 else (0,)
        return {clock_time.replace(fold=fold, tzinfo=zone).timestamp() for fold in folds}


@lru_cache(maxsize=1024)
def parse(expression: str) -> Cron:
    """What an expression of five fields, or a word like `@daily`, says.

    Raises:
        ValueError: what is wrong, where, and what would be right.
    """
    fields = WORDS.get(expression.strip().lower(), expression).split()
    if len(fields) != len(_FIELDS):
        raise ValueError(
            f"want five fields (minute, hour, day of the month, month, day of the week) like '0 7 * * MON', or one of "
            f"{', '.join(WORDS)}, got {shown(expression)}"
        )
    minutes, hours, days, months, weekdays = (_numbers(*facts) for facts in zip(fields, _FIELDS, strict=True))
    either = not any(field.startswith("*") for field in (fields[2], fields[4]))
    cron = Cron(minutes, hours, days, months, frozenset(number % 7 for number in weekdays), either)
    if next(cron.dates(date(2000, 1, 1)), None) is None:
        raise ValueError(f"{shown(expression)} never comes: no month in it has that day; want one that the month has")
    return cron


def next_time(cron: Cron, zone: ZoneInfo, after_s: float) -> int:
    """The first time after `after_s`; both are seconds since 1970.

    A time that the clock skips in spring comes as much later as the clock is put forward: 02:30 at 03:30. One that
    comes twice in autumn counts the first time only, unless the expression is for every hour.
    """
    clock = datetime.fromtimestamp(after_s, zone).replace(tzinfo=None, fold=0)
    found: list[float] = []
    latest = datetime.max
    for clock_time in cron.clock_times(clock - _PUT_FORWARD_MAX):
        if clock_time > latest:
            break
        later = [instant for instant in cron.instants(clock_time, zone) if instant > after_s]
        if later and not found:
            # What the clock skips comes later than times that follow it on the clock.
            latest = clock_time + _PUT_FORWARD_MAX
        found += later
    return int(min(found))


def zone_of(name: str) -> ZoneInfo:
    """The time zone of this name.

    Raises:
        ZoneUnknown: there is none.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ZoneUnknown(name) from None


def machine_zone() -> str:
    """The name of this machine's time zone; UTC where it has none that others would know."""
    try:
        return zone_of(tzlocal.get_localzone_name() or "UTC").key
    except ValueError:  # tzlocal's own for a machine whose settings contradict each other is one too
        return "UTC"


def _numbers(field: str, facts: tuple[str, int, int, tuple[str, ...]]) -> frozenset[int]:
    title, lowest, highest, names = facts
    # Celery's parser reads the beginning of a part only, and takes names of days for minutes.
    one = "|".join(("[0-9]{1,4}", *names))
    part_pattern = re.compile(rf"(\*|(?P<from>{one})(-(?P<to>{one}))?)(/(?P<step>[0-9]{{1,4}}))?", re.IGNORECASE)
    numbers: set[int] = set()
    for part in field.split(","):
        match = part_pattern.fullmatch(part)
        # A step after a single number means nothing to some and something to others.
        unclear = match is None or (match["step"] and match["from"] and not match["to"])
        # Sunday's second number is one only where it is meant, or it would be counted by steps.
        last = highest if title != "day of the week" or (match and "7" in (match["from"], match["to"])) else 6
        try:
            numbers |= crontab_parser(last - lowest + 1, lowest).parse("unclear" if unclear else part)
        except (ValueError, crontab_parser.ParseException):
            named = f" or {names[0].upper()}-{names[-1].upper()}" if names else ""
            raise ValueError(
                f"{title}: want numbers from {lowest} to {highest}{named}, like *, 1,2, 1-5, */2 or 1-5/2, "
                f"got {shown(part)}"
            ) from None
    return frozenset(numbers)
