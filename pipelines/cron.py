"""Cron expressions with five fields, and their next runs in a time zone."""

import re
from datetime import UTC, datetime
from itertools import islice
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from mf.errors import ConfigError

# Name and allowed values per field.
FIELDS = (
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    ("day of the month", "1 to 31"),
    ("month", "1 to 12 or jan to dec"),
    ("day of the week", "0 to 7 or sun to sat"),  # 0 and 7 are Sunday
)
_VALUE = r"(\d+|[a-z]{3})"
# cronsim also reads L, # and 5/2; Google's description of cron has none of them.
TERM = re.compile(rf"(\*|{_VALUE}-{_VALUE})(/\d+)?|{_VALUE}", re.ASCII | re.IGNORECASE)


class Cron:
    """A cron expression such as ``0 3 * * mon-fri``.

    Attributes:
        text: the expression, its fields separated by one space.

    Raises:
        ConfigError: the expression is invalid.
    """

    def __init__(self, text: str) -> None:
        fields = text.split()
        if len(fields) != len(FIELDS):
            names = ", ".join(name for name, _ in FIELDS)
            raise ConfigError(f'cron: found {text!r}, expected five fields: {names}, for example "0 3 * * *"')
        for position, field in enumerate(fields):
            for term in field.split(","):
                _check_term(position, term)
        self.text = " ".join(fields)
        self._every_hour = fields[1].startswith("*")

    def next_runs(self, zone: ZoneInfo, after: datetime, count: int = 3) -> list[datetime]:
        """The first ``count`` runs later than ``after``, in ``zone``.

        A time that the clock skips in spring has no run. A time that occurs twice in autumn has one run, unless the
        hour is ``*`` or ``*/n``.

        Raises:
            ConfigError: the expression matches no date.
        """
        try:
            schedule = CronSim(self.text, after.astimezone(zone))
        except CronSimError:
            raise self._never() from None
        # A skipped time changes on the way to UTC and back, and then is not one of the expression's.
        times = (time.astimezone(UTC).astimezone(zone) for time in schedule)
        later = (
            time
            for time in times
            if time.astimezone(UTC) > after
            and time.hour in schedule.hours
            and time.minute in schedule.minutes
            and (self._every_hour or not time.fold)
        )
        if not (runs := [*islice(later, count)]):
            raise self._never()
        return runs

    def _never(self) -> ConfigError:
        return ConfigError(f"cron: {self.text!r} is a day that never comes")


def _check_term(position: int, term: str) -> None:
    """Refuses one term of a field's comma-separated list that cron does not have."""
    name, values = FIELDS[position]
    fields = ["*"] * len(FIELDS)
    fields[position] = term
    try:
        if not TERM.fullmatch(term):
            raise CronSimError
        CronSim(" ".join(fields), datetime.now(UTC))
    except CronSimError:
        raise ConfigError(
            f"cron: {name} {term!r}: expected {values}, as in *, 5, 1-5, */2, 1-5/2 or a list of these with commas"
        ) from None


def time_zone(name: str) -> ZoneInfo:
    """The time zone with an IANA name such as ``Europe/Berlin``.

    Raises:
        ConfigError: this machine has no such zone.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ConfigError(
            f"time zone: found {name!r}, expected an IANA name, for example Europe/Berlin or UTC"
        ) from None
