"""One rule for values: the same table gives the same ratings from a file, over the API and over the direct connection.

The file is PostgreSQL's own CSV of the table. Two differences are wanted: a file's ids are trimmed, where a table's id
with white space at an end is a bad row.
"""

import csv
import re
from datetime import UTC, datetime

import pytest

from mf.errors import DataError
from mf.ingest import ingest
from mf.ratings.config import IngestConfig
from mf.ratings.schema import read_ratings

WHITE_SPACE = "white space at its start or end"
UUID = "b5f4c0f2-0c5e-4c6e-9d3f-0123456789ab"
KEPT = ["u", "U", "é", "日本", "a b", "7", "007", "+7", "-0", "7.0", "1e3", "null", "NULL", "NaN", 'a"b', "a,b", UUID]
KEPT += ["9223372036854775808"]
USERS = dict.fromkeys(KEPT) | dict.fromkeys([None, "", " ", "\t", "\u00a0"], "empty user id")
USERS |= dict.fromkeys([" a", "a  ", "\ta", "\u00a0a", "a\u3000"], WHITE_SPACE)
RATINGS = {"3": 3, "0.5": 0.5, "-1": -1, "0": 0, "0.1": 0.10000000149011612, "1e30": 1.0000000150474662e30, "1e-50": 0}
RATINGS |= {"NaN": 'rating "NaN" is not finite', "Infinity": 'rating "Infinity" is not finite'}
RATINGS |= {
    "-Infinity": 'rating "-Infinity" is not finite',
    None: "empty rating",
    "1e39": "larger than float32 can hold",
}
RATINGS |= {"-1e39": "larger than float32 can hold"}
DAY = datetime(2020, 1, 2, tzinfo=UTC)
NOON = datetime(2020, 1, 2, 12, 30, tzinfo=UTC)
UNREADABLE = 'timestamp "{}" is neither epoch seconds, epoch milliseconds nor ISO 8601'
TIMES = {
    "1577836800": datetime(2020, 1, 1, tzinfo=UTC), "-1": datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC),
    "0": datetime(1970, 1, 1, tzinfo=UTC), "978300760001": datetime(2000, 12, 31, 22, 12, 40, 1000, tzinfo=UTC),
    "1577968200.5": NOON.replace(microsecond=500_000), "1.5779682e9": NOON, "2020-01-02": DAY,
    "2020-01-02 12:30": NOON, "2020-01-02T12:30:00.000Z": NOON, "2020-01-02 14:30:00+02:00": NOON, "2020-W01-4": DAY,
    "2020-01-02 12:30:00 UTC": NOON, "2020-01-02 12:30:00.000000 UTC": NOON, "2020-01-02 14:30:00 +0200": NOON,
    "2020-01-02T12:30:00 Z": NOON, "2020-01-02 12:30 GMT": NOON, "2020/01/02 12:30:00": NOON, "20200102T1230": NOON,
    "1577968200.0": NOON, "1577968200000000": NOON, "1577968200000000000": NOON, "1577968200000000.0": NOON,
    "1.5779682E+09": NOON, "1.5779682e12": NOON, "9.7e8": datetime(2000, 9, 26, 20, 26, 40, tzinfo=UTC),
    "20200102T123000Z": NOON, " 2020-01-02 ": DAY, "9000-01-01": datetime(9000, 1, 1, tzinfo=UTC),
    "2020-01-02T12:30:00.123456789Z": NOON.replace(microsecond=123_456), None: None, "": None, " ": None,
}  # fmt: skip
TIMES |= {
    text: UNREADABLE.format(text)
    for text in ["2020-02-30", "0000-01-01", "now", "12:30", "infinity", "-infinity", "1e300", "9" * 19, "NaN", "-"]
}
# By the type of a column of times: its cells and what they mean.
TYPED_TIMES = {
    "timestamptz": {"2020-01-02 14:30+02": NOON, "infinity": UNREADABLE, "-infinity": UNREADABLE, None: None},
    "timestamp": {"2020-01-02 12:30": NOON, "infinity": UNREADABLE, "-infinity": UNREADABLE},
    "date": {"2020-01-02": DAY, "infinity": UNREADABLE, "-infinity": UNREADABLE},
    "bigint": {
        "1577968200": NOON,
        "1577968200000000": NOON,
        "1577968200000000000": NOON,
        "1577968200000": NOON,
        "9000000000000000000": UNREADABLE,
        None: None,
    },
    "numeric": {
        "1577968200": NOON,
        "1577968200000000": NOON,
        "1577968200000.0": NOON,
        "NaN": UNREADABLE,
        "Infinity": UNREADABLE,
    },
    "float8": {
        "1577968200": NOON,
        "1577968200000000": NOON,
        "1577968200000": NOON,
        "NaN": UNREADABLE,
        "-Infinity": UNREADABLE,
    },
}
NO_DAY = "is not a date of the calendar (YYYYMMDD)"
DATES = {"20200102": DAY, "19000101": datetime(1900, 1, 1, tzinfo=UTC), "20991231": datetime(2099, 12, 31, tzinfo=UTC)}
DATES |= {"20200230": NO_DAY, "20201301": NO_DAY, "20200100": NO_DAY, None: None}
SOURCES = ["file", "API", "direct"]


@pytest.fixture(scope="module")
def database(fresh_stack):
    return fresh_stack(legacy_grants=False)


@pytest.fixture
def table(database):
    """Makes a table of rows that each replace one cell of a good row; row n has the movie n."""

    def table(role, cells, user="text", rating="numeric", time="text"):
        good = {"user_id": "u", "rating": "3", "rated_at": None}
        rows = [(n, *(good | {role: cell}).values()) for n, cell in enumerate(cells, 1)]
        database.migrate(
            f"drop table if exists t; create table t (movie_id int primary key, user_id {user}, rating {rating}, "
            f"rated_at {time}); grant select on t to service_role"
        )
        with database.connect() as connection, connection.cursor() as cursor:
            cursor.executemany("insert into t values (%s, %s, %s, %s)", rows)

    return table


@pytest.fixture
def read(database, tmp_path, monkeypatch):
    """Reads the table by one of ``SOURCES``; gives what became of each row, and the content hash."""

    def read(source, **more):
        config = {"import_table": "t", "max_reject_fraction": 1}
        monkeypatch.delenv("SUPABASE_DB_URL", raising=False)
        monkeypatch.setenv("SUPABASE_URL", database.url)
        monkeypatch.setenv("SUPABASE_KEY", database.secret_key)
        if source == "direct":
            monkeypatch.setenv("SUPABASE_DB_URL", database.db_url)
        if source == "file":
            config = {"ratings_csv": str(tmp_path / "t.csv"), "max_reject_fraction": 1}
            query = "copy (select * from t order by movie_id) to stdout (format csv, header)"
            with database.connect() as connection, connection.cursor().copy(query) as copy:
                (tmp_path / "t.csv").write_bytes(b"".join(copy))
        provenance = ingest(IngestConfig.of(**config, **more), tmp_path / "r.parquet", tmp_path / "bad.csv")
        outcome = {row.pop("movie_id"): row for row in read_ratings(tmp_path / "r.parquet")[0].to_pylist()}
        with (tmp_path / "bad.csv").open(newline="") as file:
            for where, reason, _ in list(csv.reader(file))[1:]:
                number = int(re.fullmatch(r"line (\d+)|row movie_id=(\d+)", where)[(source != "file" and 2) or 1])
                outcome[number - (source == "file")] = reason
        return outcome, provenance.content_hash

    return read


def check(outcome, role, cells, expected):
    """Whether each cell became the value that is expected, or a bad row with the reason that is expected."""
    assert sorted(outcome) == list(range(1, len(cells) + 1))
    for number, cell in enumerate(cells, 1):
        became, wanted = outcome[number], expected[cell]
        if isinstance(wanted, str) and role != "user_id":
            assert wanted.format(cell) in became, cell
        elif isinstance(wanted, str) and isinstance(became, str):
            assert wanted in became, cell
        else:
            assert became[role] == wanted, cell


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", ["text", "char(40)"])
def test_ids(table, read, source, kind):
    table("user_id", USERS, user=kind)
    expected = {}
    for cell, reason in USERS.items():
        is_padded = kind != "text" and reason == WHITE_SPACE and cell == cell.lstrip() and cell.endswith(" ")
        is_trimmed = reason == WHITE_SPACE and (source == "file" or is_padded)
        expected[cell] = cell.strip() if is_trimmed else reason or cell
    outcome, _ = read(source)
    assert {n for n, row in outcome.items() if isinstance(row, str)} == {
        n for n, cell in enumerate(USERS, 1) if expected[cell] in (WHITE_SPACE, "empty user id")
    }
    check(outcome, "user_id", USERS, expected)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", ["numeric", "numeric(60, 20)", "float8"])
def test_ratings(table, read, source, kind):
    cells = dict(RATINGS)
    if kind == "numeric":
        cells |= dict.fromkeys(["1e400", "-1e4000"], "larger than float32 can hold")
    if "(" in kind:
        cells = {cell: value for cell, value in cells.items() if "Infinity" not in str(cell)}
    table("rating", cells, rating=kind)
    check(read(source)[0], "rating", cells, cells)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", ["text", "varchar(40)", "char(40)"])
def test_times_as_text(table, read, source, kind):
    table("rated_at", TIMES, time=kind)
    check(read(source)[0], "rated_at", TIMES, TIMES)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", TYPED_TIMES)
def test_times_of_a_type(table, read, source, kind):
    table("rated_at", TYPED_TIMES[kind], time=kind)
    check(read(source)[0], "rated_at", TYPED_TIMES[kind], TYPED_TIMES[kind])


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", ["text", "int", "bigint", "numeric", "float8"])
def test_numbers_of_eight_digits_are_dates(table, read, source, kind):
    table("rated_at", DATES, time=kind)
    check(read(source)[0], "rated_at", DATES, DATES)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", ["text", "bigint", "float8"])
@pytest.mark.parametrize("other", ["1577836800", "18991231", "0"])
def test_dates_beside_epoch_times_are_refused_with_both_places(table, read, tmp_path, source, kind, other):
    table("rated_at", [None, "20200102", "20200103", other], time=kind)
    first, second = ("line 3", "line 5") if source == "file" else ("row movie_id=2", "row movie_id=4")
    with pytest.raises(DataError) as caught:
        read(source)
    assert re.search(
        rf"^\S.*: the column of times has both dates \(YYYYMMDD\) \({first}: 20200102(\.0)?\) and epoch times "
        rf"\({second}: {other}(\.0)?\), expected one of them: .*--timestamp_column none$",
        str(caught.value),
    )
    assert not (tmp_path / "r.parquet").exists()


@pytest.mark.parametrize("kind", ["text", "int", "numeric", "float8"])
def test_years_in_place_of_times_are_warned_of_whatever_the_source(table, read, tmp_path, kind):
    table("rated_at", ["2020", "2021", None], time=kind)
    for source in SOURCES:
        read(source)
        first = "line 2" if source == "file" else "row movie_id=1"
        assert re.match(
            rf"2 of the 2 times lie from 1965 to 1975 \({first}: 2020(\.0)? is read as epoch time, 1970-01-01 00:33:40",
            read_ratings(tmp_path / "r.parquet")[1].warning,
        )


def test_ids_of_every_type_have_one_text_form(table, read, database):
    cells = {
        "inet": "10.0.0.1", "cidr": "10.0.0.0/8", "date": "2020-01-02", "timestamp": "2020-01-02 12:30",
        "timestamptz": "2020-01-02 12:30+02", "time": "12:30", "interval": "1 day", "bytea": r"\xff00", "bit(3)": "101",
        '"char"': "x", "name": "n", "char(7)": "c", "varchar(7)": "v", "macaddr": "08:00:2b:01:02:03", "oid": "7",
        "mood": "happy", "padded": "p", "int4range": "[1,3)", "money": "$7.00",
    }  # fmt: skip
    database.migrate("create type mood as enum ('happy'); create domain padded as char(5)")
    for kind, cell in cells.items():
        table("user_id", [cell], user=kind)
        over_api, direct = read("API"), read("direct")
        assert over_api == direct, kind


def test_ratings_that_are_ignored_are_so_from_every_source(table, read):
    cells = ["3", "-1", "0", "-1.0", "5", "-10"]
    table("rating", cells)
    hashes = set()
    for source in SOURCES:
        outcome, content = read(source, ignore_ratings="-1,0")
        assert {number: row["rating"] for number, row in outcome.items()} == {1: 3, 5: 5, 6: -10}, source
        hashes.add(content)
    assert len(hashes) == 1


def test_the_content_hash_is_that_of_the_rows_whatever_the_source(table, read, database):
    """Also where the table is stored in another order and has a unique index over user and movie."""
    database.migrate(
        "drop table if exists t; create table t (user_id uuid, movie_id int primary key, rating real, "
        "rated_at timestamptz, unique (user_id, movie_id)); grant select on t to service_role;"
        "insert into t select md5((i % 7)::text)::uuid, i, i % 10 / 3.0, timestamptz '2020-01-02 00:00:00.000001+00' "
        "  + i * interval '1 s' from generate_series(1, 500) i order by md5(i::text)"
    )
    assert len({read(source)[1] for source in SOURCES}) == 1
