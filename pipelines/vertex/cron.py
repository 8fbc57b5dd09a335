"""When a cron expression of five fields runs, in a time zone. No library for it is in the environment."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from mf.errors import ConfigError

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
SEARCHED_DAYS = 366 * 8  # the 29th of February may be eight years away


@dataclass(frozen=True)
class Field:
    """One of the five: the values that it may have, and the names that some of them have."""

    name: str
    first: int
    last: int
    names: tuple[str, ...] = ()

    def values(self, text: str) -> frozenset[int]:
        """What ``text`` stands for: ``*``, ``5``, ``1-5``, ``*/15``, ``1-31/2``, ``mon``, and lists of these.

        Raises:
            ConfigError: it cannot be read, or has values that this field cannot have.
        """
        return frozenset(value for part in text.split(",") for value in self._part(part))

    def _part(self, text: str) -> range:
        match = re.fullmatch(r"(?:\*|(\w+)(?:-(\w+))?)(?:/(\d+))?", text)
        if not match:
            raise self._refusal(text)
        start, end, step = match.groups()
        if start and step and not end:
            raise self._refusal(text)
        first = self._value(start) if start else self.first
        last = self._value(end) if end else (first if start else self.last)
        if first > last or (step and not int(step)):
            raise self._refusal(text)
        return range(first, last + 1, int(step or 1))

    def _value(self, text: str) -> int:
        if text.lower() in self.names:
            return self.names.index(text.lower()) + self.first
        if not text.isascii() or not text.isdigit() or not self.first <= int(text) <= self.last:
            raise self._refusal(text)
        return int(text)

    def _refusal(self, text: str) -> ConfigError:
        names = f" or {self.names[0]} to {self.names[-1]}" if self.names else ""
        return ConfigError(
            f"cron: {self.name} {text!r}: expected {self.first} to {self.last}{names}, "
            "as in *, 5, 1-5, */2, 1-5/2 or a list of these with commas"
        )


FIELDS = (
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day of the month", 1, 31),
    Field("month", 1, 12, MONTHS),
    Field("day of the week", 0, 7, DAYS),  # 0 and 7 are Sunday
)


class Cron:
    """A cron expression, ``0 3 * * mon-fri``.

    Attributes:
        text: the expression, its fields apart by one space.

    Raises:
        ConfigError: it is none.
    """

    def __init__(self, text: str) -> None:
        fields = text.split()
        if len(fields) != len(FIELDS):
            names = ", ".join(field.name for field in FIELDS)
            raise ConfigError(f'cron: found {text!r}, expected five fields: {names}, for example "0 3 * * *"')
        self.text = " ".join(fields)
        values = [field.values(given) for field, given in zip(FIELDS, fields, strict=True)]
        self.minutes, self.hours, self.days, self.months, weekdays = values
        self.weekdays = {day % 7 for day in weekdays}
        self.any_hour, self.any_day, self.any_weekday = (fields[i].startswith("*") for i in (1, 2, 4))

    def runs(self, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
        """The times of the runs later than ``after``, in ``zone``, for the eight years to come.

        A time that the clock skips in spring has no run. One that it shows twice in autumn has one, unless the
        expression means every hour, or every so many.
        """
        first = after.astimezone(zone).date()
        for offset in range(SEARCHED_DAYS):
            day = first + timedelta(days=offset)
            if self._is_on(day):
                yield from (time for time in self._times(day, zone) if time > after)

    def next_runs(self, zone: ZoneInfo, after: datetime, count: int = 3) -> list[datetime]:
        """The first ``count`` of ``runs``.

        Raises:
            ConfigError: there is none.
        """
        found = [time for time, _ in zip(self.runs(zone, after), range(count), strict=False)]
        if not found:
            raise ConfigError(f"cron: {self.text!r} is a day that never comes")
        return found

    def _is_on(self, day: date) -> bool:
        in_month, in_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        # Cron's own rule: of two days that are given, either will do.
        either = not self.any_day and not self.any_weekday
        return day.month in self.months and ((in_month or in_week) if either else (in_month and in_week))

    def _times(self, day: date, zone: ZoneInfo) -> list[datetime]:
        times = set()
        for hour in self.hours:
            for minute in self.minutes:
                for fold in (0, 1) if self.any_hour else (0,):
                    local = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone, fold=fold)
                    time = local.astimezone(UTC)
                    if time.astimezone(zone).replace(tzinfo=None, fold=0) == local.replace(tzinfo=None, fold=0):
                        times.add(time)
        return [time.astimezone(zone) for time in sorted(times)]


def time_zone(name: str) -> ZoneInfo:
    """The zone of the IANA's name, ``Europe/Berlin``.

    Raises:
        ConfigError: this machine knows none of that name.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ConfigError(
            f"time zone: found {name!r}, expected a name of the IANA's, for example Europe/Berlin or UTC"
        ) from None
