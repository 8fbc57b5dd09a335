"""Rules for values that need no source; for the whole contract see tests/integration/test_import_values.py."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from mf.ratings.values import DATES, EPOCHS, check

MOMENT = datetime(2024, 2, 29, 12, 30, 0, 250_000, UTC)


def times(values):
    """The times of ``values``, and which rows are usable."""
    raw = {"user_id": [1] * len(values), "movie_id": [1] * len(values), "rating": [3.0] * len(values)}
    table, good, _, _ = check(pa.table(raw | {"rated_at": values}), is_file=False)
    return table["rated_at"].to_pylist(), good.tolist()


@pytest.mark.parametrize(
    "values",
    [
        ["2024-02-29T12:30:00.25+00:00", "2024-02-29T18:00:00.250000+05:30"],
        ["2024-02-29T12:30:00.250", "2024-02-29 12:30:00.25"],
        ["2024-02-29T12:30:00.250", "20240229T123000.250", "2024-02-29T12:30:00.25Z"],
        [1709209800.25, 1709209800250.0],
        [1709209800250],
        [1709209800250_000, 1709209800250_000_000, 1709209800250],
        [1709209800250_000.0, 1709209800.25],
        ["1709209800250000", "1709209800250000000", "1.70920980025e9", "1709209800.250"],
        ["2024-02-29 12:30:00.25 UTC", "2024-02-29 12:30:00.25 UTC"],
        [
            "2024-02-29 12:30:00.25 UTC",
            "2024/02/29 12:30:00.250",
            "20240229T123000.25Z",
            "2024-02-29 13:30:00.25 +01:00",
        ],
        [MOMENT],
    ],
)
def test_a_time_is_iso_8601_in_any_zone_or_epoch_seconds_or_milliseconds(values):
    assert times(values) == ([MOMENT] * len(values), [True] * len(values))


def test_a_row_with_an_unknown_time_is_usable():
    for unknown in (pa.array([None, ""]), pa.array([None], pa.int64()), pa.array([None], pa.timestamp("us", "UTC"))):
        assert times(unknown) == ([None] * len(unknown), [True] * len(unknown))


@pytest.mark.parametrize(
    "value",
    ["infinity", "now", "0044-03-15T00:00:00 BC", "12:30", 1e300, float("nan"), float("inf"), -(2**63), 2**63 - 1],
)
def test_a_row_with_an_unreadable_time_is_bad(value):
    assert times([value]) == ([], [False])
    far = pa.array([-(2**62), -1, 2**62]).cast(pa.timestamp("us", "UTC"))
    assert times(far) == ([datetime(1969, 12, 31, 23, 59, 59, 999999, UTC)], [False, True, False])


def test_the_first_usable_row_of_each_form_of_times_is_reported() -> None:
    ratings = ["x", "3", "3", "3", "3"]
    texts = ["20200102", "20200103", "2020-01-02", "7", "20200102"]
    raw = {"user_id": ["u"] * 5, "movie_id": ["m"] * 5, "rating": ratings, "rated_at": texts}
    assert check(pa.table(raw), is_file=True).time_forms == {DATES: (1, "20200103"), EPOCHS: (3, "7")}


@pytest.mark.parametrize("kind", [pa.string(), pa.int64()])
def test_a_bad_id_is_not_among_the_ids_of_its_batch(kind: pa.DataType) -> None:
    """The collector numbers all ids that it is given."""
    ids = pa.array([1, None, 2]).cast(kind)
    ratings = check(pa.table({"user_id": ids, "movie_id": ids, "rating": [1.0, 2.0, 3.0]}), is_file=False).ratings
    assert [str(id) for id in ratings["user_id"].to_pylist()] == ["1", "2"]
    assert not pa.types.is_dictionary(ratings["user_id"].type)
