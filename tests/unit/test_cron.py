"""The runs of cron expressions, against answers worked out by hand from a calendar."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from mf.errors import ConfigError
from pipelines.cron import Cron, time_zone

BERLIN = ZoneInfo("Europe/Berlin")
TUESDAY = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def runs(text: str, count: int = 3) -> list[str]:
    return [f"{time:%a %m-%d %H:%M}" for time in Cron(text).next_runs(ZoneInfo("UTC"), TUESDAY, count)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 3 * * *", ["Wed 11-25 03:00", "Thu 11-26 03:00", "Fri 11-27 03:00"]),
        ("0 12 * * *", ["Wed 11-25 12:00", "Thu 11-26 12:00", "Fri 11-27 12:00"]),
        ("*/20 * * * *", ["Tue 11-24 12:20", "Tue 11-24 12:40", "Tue 11-24 13:00"]),
        ("5,50 13 * * *", ["Tue 11-24 13:05", "Tue 11-24 13:50", "Wed 11-25 13:05"]),
        ("0 0-10/5 * * *", ["Wed 11-25 00:00", "Wed 11-25 05:00", "Wed 11-25 10:00"]),
        ("30 4 1 * *", ["Tue 12-01 04:30", "Fri 01-01 04:30", "Mon 02-01 04:30"]),
        ("0 0 * * 1", ["Mon 11-30 00:00", "Mon 12-07 00:00", "Mon 12-14 00:00"]),
        ("0 0 * * MON-wed", ["Wed 11-25 00:00", "Mon 11-30 00:00", "Tue 12-01 00:00"]),
        ("0 0 * * 0", ["Sun 11-29 00:00", "Sun 12-06 00:00", "Sun 12-13 00:00"]),
        ("0 0 * * 7", ["Sun 11-29 00:00", "Sun 12-06 00:00", "Sun 12-13 00:00"]),
        ("0 0 * * sat,5-7", ["Fri 11-27 00:00", "Sat 11-28 00:00", "Sun 11-29 00:00"]),
        ("0 0 1 jan,Jul *", ["Fri 01-01 00:00", "Thu 07-01 00:00", "Sat 01-01 00:00"]),
        # With a day of the month and a day of the week, either one matches.
        ("0 0 25 * fri", ["Wed 11-25 00:00", "Fri 11-27 00:00", "Fri 12-04 00:00"]),
        ("0 0 29 2 *", ["Tue 02-29 00:00"]),
    ],
)
def test_next_runs_match_the_calendar(text: str, expected: list[str]) -> None:
    assert runs(text, len(expected)) == expected


def test_runs_are_in_the_time_zone_of_the_schedule() -> None:
    (first,) = Cron("0 3 * * *").next_runs(BERLIN, TUESDAY, 1)
    assert first.isoformat() == "2026-11-25T03:00:00+01:00"


def utc(text: str, after: str, count: int) -> list[str]:
    times = Cron(text).next_runs(BERLIN, datetime.fromisoformat(after), count)
    return [f"{time.astimezone(UTC):%d %H:%M}" for time in times]


def test_the_utc_time_of_a_run_changes_with_the_clock() -> None:
    assert utc("0 12 * * *", "2026-03-28T00:00+00:00", 2) == ["28 11:00", "29 10:00"]


def test_a_time_that_the_clock_skips_has_no_run_on_that_day() -> None:
    assert utc("30 2 * * *", "2026-03-28T00:00+00:00", 3) == ["28 01:30", "30 00:30", "31 00:30"]


def test_midnight_can_be_the_time_that_the_clock_skips() -> None:
    (first, second) = Cron("0 */12 24 4 *").next_runs(ZoneInfo("Africa/Cairo"), TUESDAY.replace(year=2025), 2)
    assert (first.isoformat(), second.isoformat()) == ("2026-04-24T12:00:00+03:00", "2027-04-24T00:00:00+02:00")


def test_a_time_that_occurs_twice_has_one_run() -> None:
    assert utc("30 2 * * *", "2026-10-24T12:00+00:00", 2) == ["25 00:30", "26 01:30"]
    assert utc("30 2 * * *", "2026-10-25T01:10+00:00", 1) == ["26 01:30"]  # asked for within the second hour
    assert utc("*/30 2 * * *", "2026-10-24T12:00+00:00", 3) == ["25 00:00", "25 00:30", "26 01:00"]


def test_an_hourly_schedule_runs_every_hour_when_the_clock_changes() -> None:
    assert utc("0 * * * *", "2026-10-24T23:30+00:00", 4) == ["25 00:00", "25 01:00", "25 02:00", "25 03:00"]
    assert utc("0 * * * *", "2026-03-28T23:30+00:00", 3) == ["29 00:00", "29 01:00", "29 02:00"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cron: found '', expected five fields: minute, hour, day of the month, month, day of the week, for exam"),
        ("0 3 * *", "cron: found '0 3 * *', expected five fields"),
        ("@daily", "cron: found '@daily', expected five fields"),
        ("TZ=UTC 0 3 * * *", "cron: found 'TZ=UTC 0 3 * * *', expected five fields"),
        (
            "60 3 * * *",
            "cron: minute '60': expected 0 to 59, as in *, 5, 1-5, */2, 1-5/2 or a list of these with commas",
        ),
        ("0 24 * * *", "cron: hour '24': expected 0 to 23"),
        ("0 3 0 * *", "cron: day of the month '0': expected 1 to 31"),
        ("0 3 * 13 *", "cron: month '13': expected 1 to 12 or jan to dec"),
        ("0 3 * * 8", "cron: day of the week '8': expected 0 to 7 or sun to sat"),
        ("0 3 * * mo", "cron: day of the week 'mo': expected"),
        ("mon 3 * * *", "cron: minute 'mon': expected"),
        ("5-1 3 * * *", "cron: minute '5-1': expected"),
        ("*/0 3 * * *", "cron: minute '*/0': expected"),
        ("5/2 3 * * *", "cron: minute '5/2': expected"),
        ("1,,2 3 * * *", "cron: minute '': expected"),
        ("-1 3 * * *", "cron: minute '-1': expected"),
        ("1.5 3 * * *", "cron: minute '1.5': expected"),
        ("² 3 * * *", "cron: minute '²': expected"),
        ("* * ? * *", "cron: day of the month '?': expected"),
        ("0 0 L * *", "cron: day of the month 'L': expected"),
        ("0 0 * * 5L", "cron: day of the week '5L': expected"),
        ("0 0 * * mon#1", "cron: day of the week 'mon#1': expected"),
    ],
)
def test_an_invalid_expression_is_refused_with_the_wrong_field(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        Cron(text)
    assert str(error.value).startswith(said)


def test_an_expression_that_matches_no_date_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^cron: '0 0 31 2 \*' is a day that never comes$"):
        runs("0 0 31 2 *")


def test_fields_may_be_separated_by_several_spaces_or_tabs() -> None:
    assert Cron(" 0   3 *\t* * ").text == "0 3 * * *"


@pytest.mark.parametrize("name", ["Berlin", "Europe", "../etc/passwd", "/etc/passwd", "", "Europe/Berlin\n"])
def test_an_unknown_time_zone_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^time zone: found .*, expected an IANA name, for example Europe/"):
        time_zone(name)
