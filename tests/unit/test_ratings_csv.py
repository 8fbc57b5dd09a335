import bz2
import gzip
import io
import lzma
import os
import re
import threading
import zipfile
from csv import reader
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mf.errors import ConfigError, DataError
from mf.ratings import collect, csv
from mf.ratings.collect import Collector
from mf.ratings.config import IngestConfig, shown
from mf.ratings.csv import Layout
from mf.ratings.fetch import local_files
from mf.ratings.schema import MOVIE, RATED_AT, RATING, USER, read_ratings
from mf.ratings.values import check, reason

LAYOUT = Layout(",", 4, {USER: 0, MOVIE: 1, RATING: 2, RATED_AT: 3})


def bad_row(where: str, reason: str, row: str) -> tuple[str, str, str]:
    return where, reason, row


class Read:
    """What became of a file: its rows (as a table), its rejects (line, reason, row) and its columns."""

    def __init__(self, folder: Path, content: bytes, **config: object) -> None:
        path = folder / "ratings.csv"
        path.write_bytes(content)
        collector = Collector(
            "ratings.csv",
            float(config.get("max_reject_fraction", 0.5)),  # type: ignore[arg-type]
            IngestConfig.of(**config).ignored,
        )
        self.rejects: list[tuple[str, str, str]] = []
        reject = collector.reject
        collector.reject = lambda *a, **b: (self.rejects.append(bad_row(*a, **b)), reject(*a, **b))[1]  # type: ignore[method-assign]
        self.columns = csv.read(IngestConfig.of(ratings_csv=str(path), **config), collector)
        collector.finish(folder / "out.parquet", folder / "rejects.csv", self.columns)
        self.table, self.provenance = read_ratings(folder / "out.parquet")
        self.rows = [tuple(row.values()) for row in self.table.to_pylist()]


def error_of(folder: Path, content: bytes, **config: object) -> str:
    with pytest.raises(DataError) as caught:
        Read(folder, content, **config)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in folder.iterdir()) == ["ratings.csv"]
    return str(caught.value)


GOOD = [(1, 10, 4.5, datetime(2000, 1, 1, tzinfo=UTC)), (2, 10, 3.0, datetime(2000, 1, 2, tzinfo=UTC))]


@pytest.mark.parametrize(
    "content",
    [
        b"userId,movieId,rating,timestamp\n1,10,4.5,946684800\n2,10,3,946771200\n",
        b"userId,movieId,rating,timestamp\n1,10,4.5,946684800\n2,10,3,946771200",
        b"\xef\xbb\xbfuserId,movieId,rating,timestamp\r\n1,10,4.5,946684800\r\n\r\n2,10,3,946771200\r\n",
        b"\n  \nuser_id;item_id;rating;rated_at\n2;10;3.0;2000-01-02\n1;10;4.5;2000-01-01T00:00:00Z\n",
        b"rating\tnote\tcreated_at\tmovieId\tuserId\n4.5\t\t946684800000\t10\t1\n3\tx\t946771200000\t10\t2\n",
        b'"User","Item","Rating","Timestamp"\n"1","10","4.5","946684800"\n"2","10","3",946771200\n',
        b'user_id|movie_id|rating|timestamp\n1|10|4.5|946684800\n 2 | 10 | 3 |"2000-01-02 01:00:00+01:00"\n',
        gzip.compress(b"userId,movieId,rating,timestamp\n1,10,4.5,946684800\n", mtime=0)
        + gzip.compress(b"2,10,3,946771200\n", mtime=0),
    ],
)
def test_headers_delimiters_line_ends_quotes_and_gzip_are_recognised(tmp_path: Path, content: bytes) -> None:
    read = Read(tmp_path, content)
    assert read.rows == GOOD
    assert read.provenance.rows_rejected == 0
    assert read.table.schema.types == [pa.int64(), pa.int64(), pa.float32(), pa.timestamp("us", "UTC")]


def test_ratings_that_mean_not_rated_are_left_out_and_counted(tmp_path: Path) -> None:
    content = b"userId,movieId,rating\n1,1,-1\n1,2,0\n1,3,4\n2,3,-1.0\n,3,-1\n1,3,0.0\nx,4,-1\n" + b"3,1,5\n" * 3
    read = Read(tmp_path, content, ignore_ratings="-1, 0")
    assert read.rows == [(1, 3, 4.0), (3, 1, 5.0)]
    assert [where for where, _, _ in read.rejects] == ["line 6"]
    counted = read.provenance
    assert (counted.rows_read, counted.rows_rejected, counted.rows_ignored, counted.rows_replaced) == (10, 1, 5, 2)
    assert counted.ignore_ratings == [-1, 0]
    assert "5 ignored (rating -1, 0)" in counted.summary()


def test_a_source_of_ignored_ratings_alone_is_an_error(tmp_path: Path) -> None:
    assert error_of(tmp_path, b"userId,movieId,rating\n1,1,0\n1,2,0\n", ignore_ratings="0") == (
        "ratings.csv: each rating is one of --ignore_ratings 0: nothing is left"
    )


@pytest.mark.parametrize("text", ["x", "1,,2", "nan", "inf", "1e39", "1;2", ","])
def test_ignored_ratings_are_numbers_with_commas(text: str) -> None:
    with pytest.raises(ConfigError, match="ignore_ratings: expected numbers separated by commas"):
        IngestConfig.of(ignore_ratings=text)


@pytest.mark.parametrize("delimiter", [b"::", b"\t"])
def test_a_file_without_a_header_is_read_when_its_columns_are_named(tmp_path: Path, delimiter: bytes) -> None:
    content = b"1::10::4.5::946684800\n2::10::3::946771200\n".replace(b"::", delimiter)
    read = Read(tmp_path, content, columns="userId, movieId,rating,timestamp")
    assert read.rows == GOOD
    assert read.columns == {USER: "userId", MOVIE: "movieId", RATING: "rating", RATED_AT: "timestamp"}


def test_of_two_delimiters_that_fit_the_one_that_leaves_a_rating_is_taken(tmp_path: Path) -> None:
    read = Read(tmp_path, b"1,2,3.5,Action|Comedy|Drama|War\n", columns="userId,movieId,rating,genres")
    assert read.rows == [(1, 2, 3.5)]


def test_named_columns_win_over_recognised_ones(tmp_path: Path) -> None:
    content = b"rating,stars,movieId,who\n1,5,7,ann\n"
    read = Read(tmp_path, content, user_column="who", rating_column="stars")
    assert read.rows == [("ann", 7, 5.0)]
    assert read.columns == {USER: "who", MOVIE: "movieId", RATING: "stars"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"5,7,five,1", 'rating "five" is not a number'),
        (b"5,7,,1", "empty rating"),
        (b"5,7,1_0,1", 'rating "1_0" is not a number'),
        (b"5,7,0x1p3,1", 'rating "0x1p3" is not a number'),
        ("5,7,٣,1".encode(), 'rating "٣" is not a number'),
        (b"5,7,nan,1", 'rating "nan" is not finite'),
        (b"5,7,-Infinity,1", 'rating "-Infinity" is not finite'),
        (b"5,7,1e39,1", 'rating "1e39" is larger than float32 can hold'),
        (b"5,7,3", "expected 4 fields, found 3"),
        (b"5,7,3,1,", "expected 4 fields, found 5"),
        (b",7,3,1", "empty user id"),
        (b"5, ,3,1", "empty movie id"),
        (b"5,7,3,soon", 'timestamp "soon" is neither epoch seconds, epoch milliseconds nor ISO 8601'),
        (b"5,7,3,2001-02-30", 'timestamp "2001-02-30" is neither epoch seconds, epoch milliseconds nor ISO 8601'),
        (b"5,7,3,0000-01-01", 'timestamp "0000-01-01" is neither epoch seconds, epoch milliseconds nor ISO 8601'),
        (b"\xff,7,3,1", "not UTF-8 text"),
        (b"5\0,7,3,1", "a NUL byte"),
        (b"5\r,7,3,1", "a carriage return that does not end the line"),
        (b"5,7,3,1\r", "a carriage return that does not end the line"),
        (b'5",7,3,1', "malformed quotes (a quote within a value that does not begin with one)"),
        (b'5, "7"x,3,1', "malformed quotes (a quote within a value that does not begin with one)"),
        (b'"5"x,7,3,1', "malformed quotes (',' expected after '\"')"),
    ],
)
@pytest.mark.parametrize("careful", [False, True])
def test_a_bad_line_is_rejected_with_its_number_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes, reason: str, careful: bool
) -> None:
    if careful:
        monkeypatch.setattr(csv, "_split_fast", lambda *_: None)
    read = Read(tmp_path, b"userId,movieId,rating,timestamp\n1,7,3,1\n\n" + line + b"\r\n2,8,4,1\n")
    assert read.rejects == [("line 4", reason, line.decode(errors="backslashreplace"))]
    assert [row[:3] for row in read.rows] == [(1, 7, 3.0), (2, 8, 4.0)]


@pytest.mark.parametrize("careful", [False, True])
def test_a_rating_without_its_time_is_kept_and_older_than_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, careful: bool
) -> None:
    if careful:
        monkeypatch.setattr(csv, "_split_fast", lambda *_: None)
    read = Read(tmp_path, b"userId,movieId,rating,timestamp\n5,7,3,-1\n5,7,4, \n2,8,4,1\n6,7,1,\n")
    assert read.rejects == []
    assert [row[:3] for row in read.rows] == [(2, 8, 4.0), (5, 7, 3.0), (6, 7, 1.0)]
    assert [row[3] is None for row in read.rows] == [False, False, True]


@pytest.mark.parametrize("block", [64, 300, 1 << 20])
def test_rejects_stand_in_the_order_of_the_lines_with_their_true_numbers_over_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(csv, "BLOCK", block)
    monkeypatch.setattr(csv, "PIECE", 100)
    lines = [b"userId,movieId,rating"] + [b"%d,%d,3" % (i, i) for i in range(2, 1001)]
    bad = {10: b"x,1", 11: b"1,1,bad", 12: b"\xff,1,1", 500: b",1,1", 700: b'8"', 701: b'"8"8,8,3', 1000: b"1,1,inf"}
    for number, line in bad.items():
        lines[number - 1] = line
    read = Read(tmp_path, b"\n".join(lines))
    assert [where for where, _, _ in read.rejects] == [f"line {number}" for number in bad]
    assert read.provenance.rows_read == 999
    assert [row[0] for row in read.rows] == [i for i in range(2, 1001) if i not in bad]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["1", "-7", "0", "9223372036854775807"], [-7, 0, 1, 9223372036854775807]),
        (["007", "7"], ["007", "7"]),
        (["+7"], ["+7"]),
        (["-0"], ["-0"]),
        (["7.0", "8.00"], [7, 8]),
        (["7.0", "7.5"], ["7.0", "7.5"]),
        (["0x1F"], ["0x1F"]),
        (["9223372036854775808"], ["9223372036854775808"]),
        (["b5f4c0f2-0c5e-4c6e-9d3f-0123456789ab"], ["b5f4c0f2-0c5e-4c6e-9d3f-0123456789ab"]),
        (["日本", "a b"], ["a b", "日本"]),
    ],
)
def test_ids_stay_what_they_were(tmp_path: Path, ids: list[str], expected: list[object]) -> None:
    content = "userId,movieId,rating\n" + "".join(f" {id},1,3\n" for id in ids)
    assert Read(tmp_path, content.encode()).table[USER].to_pylist() == expected


def test_a_quoted_id_may_hold_quotes_and_the_delimiter(tmp_path: Path) -> None:
    read = Read(tmp_path, b'note,userId,movieId,rating\nsay "a", "a""b, c",1,3\n"x, 7""","d,""e",1,3\n')
    assert read.table[USER].to_pylist() == ['a"b, c', 'd,"e']


@pytest.mark.parametrize("careful", [False, True])
def test_blanks_beside_quotes_are_not_part_of_the_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, careful: bool
) -> None:
    if careful:
        monkeypatch.setattr(csv, "_split_fast", lambda *_: None)
    content = b'"userId" , "movieId", rating\n"u1" , "m1", 5\n  "u2",\t"m2"\t, "4"\n"u3" , " m, 3 ",1\n'
    assert Read(tmp_path, content).rows == [("u1", "m1", 5), ("u2", "m2", 4), ("u3", "m, 3", 1)]


REVIEW = b'7,99,1,"bad\n1,1,5\n2,1,5,y\r\n\r3,1,5,z"'


@pytest.mark.parametrize("block", [64, 300, 1 << 20])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_quoted_line_breaks_belong_to_the_value_and_count_as_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, end: bytes
) -> None:
    monkeypatch.setattr(csv, "BLOCK", block)
    monkeypatch.setattr(csv, "PIECE", 50)
    lines = [b'user_id,movie_id,rating,"what\nthey wrote"']
    lines += [b'u%d,5,3,"fine, ""really"""' % user if user % 3 else b'u%d,5,3,5" tall' % user for user in range(20)]
    lines += [REVIEW, b'x,5,none,"a\n\nb"', b'"u\n8",5,3,""', b"9,5,,"]
    read = Read(tmp_path, end.join(lines))
    users = sorted(str(row[0]) for row in read.rows)
    assert users == sorted([*(f"u{user}" for user in range(20)), "7", "u\n8"])
    assert ("7", 99, 1.0) in read.rows
    assert read.rejects == [
        ("line 27", 'rating "none" is not a number', 'x,5,none,"a\n\nb"'),
        ("line 32", "empty rating", "9,5,,"),
    ]


@pytest.mark.parametrize("block", [64, 300, 1 << 20])
@pytest.mark.parametrize(
    "opened",
    [
        b'8,99,1,"never closed',
        b'8,99,1, "never closed',
        b'8,"a""b",1,"never closed""',
        b'8,"a\nb",1,"never closed',
        b'"8,99,1,5',
    ],
)
@pytest.mark.parametrize("rest", [b"9,34,3,fine", b'9,34,3,"fine"', b'9,34,3,6" tall', b""])
def test_a_quote_that_is_not_closed_is_an_error_with_the_line_where_it_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, opened: bytes, rest: bytes
) -> None:
    monkeypatch.setattr(csv, "BLOCK", block)
    lines = [b"user_id,movie_id,rating,review", *(b'%d,5,3,"a\nb"' % user for user in range(50)), opened]
    lines += [rest] * 40
    where = 102 + opened.count(b"\n")
    assert error_of(tmp_path, b"\n".join(lines), max_reject_fraction=1).startswith(
        f"ratings.csv line {where}: a quoted value begins here and does not end properly"
    )


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (
            b'user_id,movie_id,rating,review\n7,1,3,fine\n8,1,3,"he said \\"so, so\\" and\n1,2,5,x\nno"\n',
            "line 3: a quoted",
        ),
        (b'user_id,movie_id,rating,"review\n7,1,3,fine\n', "line 1: a quoted value of the header"),
    ],
)
def test_a_quoted_value_whose_end_is_not_known_is_an_error(tmp_path: Path, content: bytes, place: str) -> None:
    assert error_of(tmp_path, content, max_reject_fraction=1).startswith(f"ratings.csv {place}")


def test_a_quote_escaped_by_a_backslash_on_one_line_is_one_bad_row(tmp_path: Path) -> None:
    content = b'user_id,movie_id,rating,review\n8,1,3,"he said \\"a, b\\" ok"\n9,1,4,"C:\\"\n7,1,5,x\n'
    read = Read(tmp_path, content)
    assert [row[:3] for row in read.rows] == [(7, 1, 5.0), (9, 1, 4.0)]
    assert [row[0] for row in read.rejects] == ["line 2"]


def test_decimal_commas_are_read_between_commas_in_quotes_but_not_thousands(tmp_path: Path) -> None:
    read = Read(tmp_path, b'user_id,movie_id,rating\n1,1,"3,5"\n2,1,"-0,25"\n3,1,"1,000"\n4,1,2\n')
    assert [row[2] for row in read.rows] == [3.5, -0.25, 2.0]
    assert read.rejects == [("line 4", 'rating "1,000" is not a number', '3,1,"1,000"')]


def test_timestamps_of_every_kind_are_read_whatever_stands_beside_them(tmp_path: Path) -> None:
    times = {
        "978300760": datetime(2000, 12, 31, 22, 12, 40, tzinfo=UTC),
        "978300760001": datetime(2000, 12, 31, 22, 12, 40, 1000, tzinfo=UTC),
        "-1": datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC),
        "2020-01-02T03:04:05.123456789Z": datetime(2020, 1, 2, 3, 4, 5, 123456, tzinfo=UTC),
        "2020-01-02 03:04:05+02:00": datetime(2020, 1, 2, 1, 4, 5, tzinfo=UTC),
        "9000-01-01": datetime(9000, 1, 1, tzinfo=UTC),
    }
    rows = [f"{user},1,3,{text}\n" for user, text in enumerate(times)]
    read = Read(tmp_path, ("userId,movieId,rating,created_at\n" + "".join(rows)).encode())
    assert read.table[RATED_AT].to_pylist() == list(times.values())


def test_times_of_eight_digits_are_dates(tmp_path: Path) -> None:
    read = Read(tmp_path, b"userId,movieId,rating,timestamp\n1,1,3,20150102\n1,2,3,\n1,3,3,20150230\n")
    assert read.table[RATED_AT].to_pylist() == [datetime(2015, 1, 2, tzinfo=UTC), None]
    assert read.rejects == [
        ("line 4", 'timestamp "20150230" is not a date of the calendar (YYYYMMDD)', "1,3,3,20150230")
    ]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("20150102", datetime(2015, 1, 2)),
        ("201501022359", datetime(2015, 1, 2, 23, 59)),
        ("20150102235958", datetime(2015, 1, 2, 23, 59, 58)),
        ("20150102235958.0", datetime(2015, 1, 2, 23, 59, 58)),
        ("2015-01-02t23:59:58z", datetime(2015, 1, 2, 23, 59, 58)),
        ("201501022460", None),
        ("20151302000000", None),
    ],
)
def test_digits_of_a_date_and_a_time_of_day_are_no_milliseconds(
    tmp_path: Path, text: str, moment: datetime | None
) -> None:
    read = Read(tmp_path, f"userId,movieId,rating,timestamp\n1,1,3,{text}\n1,2,3,\n".encode())
    assert read.table[RATED_AT].to_pylist() == ([moment.replace(tzinfo=UTC), None] if moment else [None])
    assert len(read.rejects) == (moment is None)


@pytest.mark.parametrize("block", [64, 300, 1 << 20])
@pytest.mark.parametrize("careful", [False, True])
def test_dates_beside_epoch_times_are_refused_wherever_the_file_is_cut_into_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, careful: bool
) -> None:
    monkeypatch.setattr(csv, "BLOCK", block)
    if careful:
        monkeypatch.setattr(csv, "_split_fast", lambda *_: None)
    lines = [b"userId,movieId,rating,timestamp", *(b"%d,1,3,881250949" % i for i in range(200))]
    lines[100:150] = [b"%d,1,3,20150102" % i for i in range(50)]
    assert error_of(tmp_path, b"\n".join(lines)) == (
        "ratings.csv: the column of times has both dates (YYYYMMDD) (line 101: 20150102) and epoch times (line 2: "
        "881250949), expected one of them: correct it, name another column with --timestamp_column, or read the "
        "ratings without times with --timestamp_column none"
    )


def test_a_text_id_far_down_makes_all_ids_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv, "BLOCK", 64)
    content = b"userId,movieId,rating\n" + b"".join(b"%d,1,3\n" % i for i in range(99)) + b"x1,1,3\n"
    ids = Read(tmp_path, content, max_reject_fraction=0).table[USER].to_pylist()
    assert ids == sorted([*map(str, range(99)), "x1"])


ODD = ["NULL", "NA", "None", "+7", "007", "-0", "7.5", "7\u200b", "9223372036854775808", '"7\n8"']


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("place", [0, 70, 150])
@pytest.mark.parametrize("integer", ["%d", "%d.0"])
def test_one_odd_id_among_integers_is_a_bad_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: str, place: int, integer: str
) -> None:
    monkeypatch.setattr(csv, "BLOCK", 300)
    lines = [f"5,{integer % i},3" for i in range(150)]
    lines.insert(place, f"5,{odd},4")
    lines.insert(20, "5,7,none")
    read = Read(tmp_path, "\n".join(["userId,movieId,rating", *lines]).encode(), max_reject_fraction=0.02)
    assert read.rows == [(5, i, 3.0) for i in range(150)]
    assert (read.provenance.rows_read, read.provenance.rows_rejected, read.provenance.text_ids) == (152, 2, {})
    with (tmp_path / "rejects.csv").open(newline="", encoding="utf-8") as file:
        rejects = [tuple(row) for row in reader(file)][1:]
    line = lines.index(f"5,{odd},4") + 2
    why = f"movie id {shown(odd.strip(chr(34)))} is not an integer, as others are"
    assert (f"line {line}", why, f"5,{odd},4") in rejects
    assert len(rejects) == 2
    assert rejects == sorted(rejects, key=lambda row: int(row[0].removeprefix("line ")))


def test_more_odd_ids_than_may_be_bad_make_all_ids_text_and_the_first_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv, "BLOCK", 64)
    content = "userId,movieId,rating\n" + "".join(f"u{i % 3},{i},3\n" for i in range(99)) + "u,007,1\nu,NULL,1\n"
    read = Read(tmp_path, content.encode(), max_reject_fraction=0.01)
    assert read.provenance.text_ids == {USER: 'line 2: "u0"', MOVIE: 'line 101: "007"'}
    assert read.provenance.summary().endswith(
        '; user ids are text (line 2: "u0"); movie ids are text (line 101: "007")'
    )
    assert {"7", "007", "NULL"} <= set(read.table[MOVIE].to_pylist())


@pytest.mark.parametrize("most", [3, 1000])
def test_text_users_do_not_hide_an_odd_movie_far_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(csv, "BLOCK", 64)
    monkeypatch.setattr(collect, "MOST_ODD", most)
    content = "userId,movieId,rating\n" + "".join(f"u{i},{i},3\n" for i in range(300)) + "u,NULL,1\n"
    read = Read(tmp_path, content.encode(), max_reject_fraction=0.01)
    assert read.table[USER].type == pa.string()
    assert sorted(read.table[MOVIE].to_pylist()) == [*range(300)]
    assert read.provenance.rows_rejected == 1
    assert 'line 302,"movie id ""NULL"" is not an integer, as others are"' in (tmp_path / "rejects.csv").read_text()


def test_an_id_written_as_an_integer_and_as_a_float_is_one(tmp_path: Path) -> None:
    read = Read(tmp_path, b"userId,movieId,rating\n7.0,1,2\n3,1.0,1\n7,1,5\n8.0,-1.0,4\n", max_reject_fraction=0)
    assert read.rows == [(3, 1, 1.0), (7, 1, 5.0), (8, -1, 4.0)]
    assert read.provenance.rows_replaced == 1


def test_times_that_cannot_be_read_name_the_way_out(tmp_path: Path) -> None:
    message = error_of(tmp_path, b"userId,movieId,rating,timestamp\n1,1,3,01/02/2020\n")
    assert message.endswith("correct them, or read them without times with --timestamp_column none")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_of_bad_rows_is_refused_before_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool
) -> None:
    monkeypatch.setattr(csv, "BLOCK", 300)
    monkeypatch.setattr(collect, "EARLY", 100)
    content = b"userId,movieId,rating\n" + b"1,2,x\n" * 20_000
    message = error_of(tmp_path, gzip.compress(content, mtime=0) if compressed else content, max_reject_fraction=0.01)
    match = re.search(r"([0-9,]+) of ([0-9,]+) rows are bad .*line 2: rating \"x\" is not a number; line 3", message)
    assert match
    assert int(match[2].replace(",", "")) < 500


def test_bad_rows_at_the_beginning_do_not_refuse_a_file_that_is_good_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv, "BLOCK", 300)
    content = b"userId,movieId,rating\n" + b"1,2,x\n" * 200 + b"1,2,3\n" * 19_800
    assert Read(tmp_path, content, max_reject_fraction=0.01).provenance.rows_rejected == 200


def test_the_summary_shows_the_range_and_the_most_frequent_values(tmp_path: Path) -> None:
    rows = "".join(f"1,{i},{(-1, 10, 7.5, -1)[i % 4]}\n" for i in range(40))
    read = Read(tmp_path, b"userId,movieId,rating\n" + rows.encode())
    assert read.provenance.values == (
        "ratings -1 (50%) to 10 (25%), most often -1 (50%), 10 (25%), 7.5 (25%) "
        "(if -1 means not rated, leave it out with ignore_ratings)"
    )
    assert read.provenance.summary().endswith(f"40 kept; {read.provenance.values}")


@pytest.mark.parametrize(
    ("ratings", "doubtful"),
    [
        ([99, -9.5, -3, 0, 3.25, 9.75], "99"),
        ([-1, 1, 2, 3, 4, 5], "-1"),
        ([0, *range(1, 11)], "0"),
        ([-99, 1, 2, 3], "-99"),
        ([-1, *range(1, 6), 999], "-1 or 999"),
        ([-1, 0, 1], ""),
        ([-10, -5, 0, 5, 10], ""),
        ([0.5 * i for i in range(1, 11)], ""),
        (range(1, 101), ""),
        ([*[1, 2, 3, 5, 8] * 40, 500], ""),
    ],
)
def test_the_summary_asks_about_ratings_that_may_mean_not_rated(
    tmp_path: Path, ratings: list[float], doubtful: str
) -> None:
    rows = "".join(f"{i},1,{ratings[i % len(ratings)]}\n" for i in range(max(60, len(ratings))))
    values = Read(tmp_path, b"userId,movieId,rating\n" + rows.encode()).provenance.values
    assert ("(if " in values) == bool(doubtful)
    assert not doubtful or values.endswith(f"(if {doubtful} means not rated, leave it out with ignore_ratings)")


@pytest.mark.parametrize(
    ("first", "others", "warning"),
    [
        ("2020", "2021", "times lie from 1965 to 1975 (line 2: 2020 is read as epoch time, 1970-01-01 00:33:40 UTC)"),
        ("43831.5", "43900", "from 1965 to 1975 (line 2: 43831.5 is read as epoch time, 1970-01-01 12:10:31"),
        ("", "7", "9 of the 9 times lie from 1965 to 1975 (line 3: 7 is read"),
        ("880000000", "0", "9 of the 10 times lie from 1965 to 1975 (the first is 1970-01-01 00:00:00 UTC)"),
        ("132223104000000000", "132223104000000000", "(line 2: 132223104000000000 is read as epoch time, 1974-03-11"),
        ("2025010203", "2025010204", "times lie in the future (line 2: 2025010203 is read as epoch time, 2034-"),
        ("1970-01-01 00:00:01", "1970-01-01 00:00:02", "(the first is 1970-01-01 00:00:01 UTC)"),
        ("20200101", "20200102", ""),
        ("880000000", "880000001", ""),
        ("", "", ""),
    ],
)  # fmt: skip
def test_times_that_are_none_are_warned_of(tmp_path: Path, first: str, others: str, warning: str) -> None:
    rows = "".join(f"{i},1,{i % 5},{others if i else first}\n" for i in range(10))
    provenance = Read(tmp_path, b"userId,movieId,rating,timestamp\n" + rows.encode()).provenance
    assert warning in provenance.warning
    assert bool(provenance.warning) == bool(warning) == ("\nwarning: " in provenance.summary())
    assert not warning or provenance.warning.endswith("read the ratings without times with --timestamp_column none")


def test_too_many_bad_rows_with_odd_ids_among_them_name_the_first(tmp_path: Path) -> None:
    content = "userId,movieId,rating\nNULL,1,3\n" + "".join(f"{i},1,3\n" for i in range(98)) + "9,9,x\n"
    message = error_of(tmp_path, content.encode(), max_reject_fraction=0.015)
    assert 'line 2: user id "NULL" is not an integer, as others are; line 101: rating "x" is not a number' in message


def test_a_rejected_row_does_not_decide_the_type_of_the_ids(tmp_path: Path) -> None:
    read = Read(tmp_path, b"userId,movieId,rating\n1,1,3\n2,1,3\nuser,1,none\n")
    assert read.table[USER].to_pylist() == [1, 2]


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return content.getvalue()


CLEAN = b"userId,movieId,rating\n1,10,4.5\n2,10,3\n"


@pytest.mark.parametrize(
    "content",
    [
        bz2.compress(CLEAN),
        lzma.compress(CLEAN),
        pa.compress(CLEAN, "zstd", asbytes=True),
        CLEAN.decode().encode("utf-16"),
        gzip.compress(b"\xfe\xff" + CLEAN.decode().encode("utf-16-be"), mtime=0),
        zipped({"ml/ratings.csv": CLEAN}),
        zipped({"ml/README.txt": b"x", "ml/movies.csv": b"movieId,title\n", "ml/ratings.csv": CLEAN}),
        b"sep=;\r\n" + CLEAN.replace(b",", b";").replace(b"4.5", b"4,5"),
        CLEAN.replace(b",", b"\t").replace(b"4.5", b'"4,5"'),
        b"userId,x,movieId,rating,genres|or|none|or|so\n1,x,10,4.5,a\n2,y,10,3,b|c\n",
        CLEAN.replace(b",", b" "),
        b"  userId   movieId rating \n 1  10 4.5\r\n\n2 10   3",
        b'{"userId": 1, "movieId": 10, "rating": 4.5, "x": [1]}\r\n\n{"rating": "3", "movieId": "10", "userId": 2.0}',
        bz2.compress(b'{"userId":"1","movieId":"10","rating":4.5}\n{"userId":"2","movieId":"10","rating":3}\n'),
    ],
)
def test_other_kinds_of_files_are_read(tmp_path: Path, content: bytes) -> None:
    read = Read(tmp_path, content)
    assert (read.rows, read.rejects) == ([(1, 10, 4.5), (2, 10, 3.0)], [])


def parquet_of(**columns: object) -> bytes:
    """A Parquet file in memory; a column is an array or a list."""
    content = io.BytesIO()
    pq.write_table(pa.table(columns), content)
    return content.getvalue()


@pytest.mark.parametrize(
    "users",
    [
        [1, 2],
        pa.array([1, 2], pa.uint8()),
        [1.0, 2.0],
        pa.array([1, 2]).dictionary_encode(),
        pa.array([Decimal(1), Decimal(2)]),
        pa.array(["1", "2"]),
        pa.array(["1", "2"], pa.large_string()).dictionary_encode(),
        pa.array([b"1", b"2"]),
    ],
)
@pytest.mark.parametrize(
    "ratings", [[4.5, 3], pa.array([4.5, 3], pa.float32()), ["4.5", "3"], [Decimal("4.5"), Decimal(3)]]
)
def test_parquet_is_read_and_its_text_ids_stay_text(tmp_path: Path, users: pa.Array, ratings: pa.Array) -> None:
    times = pa.array([datetime(2020, 1, 2), None], pa.timestamp("ns"))
    read = Read(tmp_path, parquet_of(user_id=users, x=[0, 0], movie_id=[10, 10], rating=ratings, timestamp=times))
    is_text = "string" in str(pa.array(users).type) or "binary" in str(pa.array(users).type)
    one, two = ("1", "2") if is_text else (1, 2)
    assert read.rows == [(one, 10, 4.5, datetime(2020, 1, 2, tzinfo=UTC)), (two, 10, 3.0, None)]


def test_bad_rows_of_parquet_and_json_lines_are_listed_with_their_place(tmp_path: Path) -> None:
    columns = {"user_id": ["a", None, "b ", "c"], "movie_id": [1, 1, 1, 1], "rating": [1.0, 2, 3, None]}
    read = Read(tmp_path, parquet_of(**columns), max_reject_fraction=1)
    assert [row[:2] for row in read.rejects] == [
        ("row 2", "empty user id"),
        ("row 3", 'user id "b " has white space at its start or end'),
        ("row 4", "empty rating"),
    ]
    lines = ['{"user": 1, "item": 1, "rating": 1}', "{", "[1]", '{"user": 1, "rating": 2}']
    lines += [
        f'{{"user": {user}, "item": 1, "rating": {rating}}}' for user, rating in (("{}", 2), (2, "true"), (2, '"x"'))
    ]
    read = Read(tmp_path, "\n".join(lines).encode(), max_reject_fraction=1)
    assert [row[:2] for row in read.rejects] == [
        ("line 2", "not a JSON object"),
        ("line 3", "not a JSON object"),
        ("line 4", "empty movie id"),
        ("line 5", "an object, list or boolean in place of an id, a rating or a time"),
        ("line 6", "an object, list or boolean in place of an id, a rating or a time"),
        ("line 7", 'rating "x" is not a number'),
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": [1.5], "movie_id": [1], "rating": [1]}, "column user_id of type double cannot be read as user_id"),
        ({"user_id": [[1]], "movie_id": [1], "rating": [1]}, "column user_id of type list<"),
        (
            {"user_id": [1], "movie_id": [True], "rating": [1]},
            "column movie_id of type bool cannot be read as movie_id",
        ),
        ({"user_id": [1], "movie_id": [1], "rating": [[1]]}, "column rating of type list<"),
        ({"user_id": [1], "film": [1], "rating": [1]}, "ratings.csv: no column recognised as movie_id"),
    ],
)
def test_columns_of_parquet_that_cannot_be_used_are_named(
    tmp_path: Path, columns: dict[str, object], message: str
) -> None:
    assert message in error_of(tmp_path, parquet_of(**columns))


def test_the_files_of_a_folder_or_a_glob_are_one_source(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "b").mkdir(parents=True)
    (folder / "a.csv").write_bytes(CLEAN + b"1,x,5\n")
    (folder / "b" / "part-00001.csv.gz").write_bytes(gzip.compress(b"movieId;rating;userId\n10;1;2\n,,\n"))
    (folder / "b" / "part-00002.parquet").write_bytes(parquet_of(userId=[3], movieId=[10], rating=[2.0]))
    for name in ("_SUCCESS", ".a.csv.crc", "README.txt", "movies.png"):
        (folder / name).write_bytes(b"nothing")
    for address in (folder, f"{folder}/**/*[0-9a].*[!t]"):
        collector = Collector("set", 0.5)
        columns = csv.read(IngestConfig.of(ratings_csv=str(address)), collector)
        provenance = collector.finish(tmp_path / "out.parquet", tmp_path / "rejects.csv", columns)
        rows = [tuple(row.values()) for row in read_ratings(tmp_path / "out.parquet")[0].to_pylist()]
        assert rows == [(1, 10, 4.5), (2, 10, 1.0)] + ([(3, 10, 2.0)] if address == folder else [])
        assert provenance.rows_replaced == 1
        bad = (tmp_path / "rejects.csv").read_text().splitlines()[1:]
        assert [row.split(",")[0] for row in bad] == [
            f"{folder}/a.csv line 4",
            f"{folder}/b/part-00001.csv.gz line 3",
        ]


def test_of_a_folder_with_other_tables_the_ratings_are_read(tmp_path: Path) -> None:
    for name, content in {"ratings.csv": CLEAN, "movies.csv": b"movieId,title\n", "README.txt": b"Hello"}.items():
        (tmp_path / name).write_bytes(content)
    collector = Collector("ml", 0)
    columns = csv.read(IngestConfig.of(ratings_csv=str(tmp_path)), collector)
    assert collector.finish(tmp_path / "out.parquet", tmp_path / "rejects.csv", columns).rows_kept == 2


def test_files_with_different_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(CLEAN)
    (tmp_path / "b.csv").write_bytes(b"userId,movieId,rating,timestamp\n1,1,1,1\n")
    with pytest.raises(DataError, match=r"b\.csv: found the columns userId, .*timestamp, expected .* as in .*a\.csv"):
        csv.read(IngestConfig.of(ratings_csv=str(tmp_path)), Collector("two", 0))


def test_blanks_separate_when_the_columns_are_named(tmp_path: Path) -> None:
    read = Read(tmp_path, b"1 10 4.5\n  2\t10   3 \n3 10\n", columns="userId,movieId,rating")
    assert read.rows == [(1, 10, 4.5), (2, 10, 3.0)]
    assert read.rejects == [("line 3", "expected 3 fields, found 2", "3 10")]


@pytest.mark.parametrize(
    ("address", "meant"),
    [
        ("gs:/bucket/r.csv", "gs://bucket/r.csv"),
        ("GS://bucket/r.csv", "gs://bucket/r.csv"),
        (" gs://bucket/r.csv", "gs://bucket/r.csv"),
        ("gcs://bucket/r.csv", "gs://bucket/r.csv"),
        ("s3:/bucket/r.csv", "s3://bucket/r.csv"),
        ("minio://bucket/r.csv", "s3://bucket/r.csv"),
        ("https://storage.cloud.google.com/bucket/r.csv?token=x", "gs://bucket/r.csv"),
        ("https://console.cloud.google.com/storage/browser/_details/bucket/r.csv;tab=live", "gs://bucket/r.csv"),
    ],
)
def test_a_slip_in_the_address_of_a_bucket_is_answered_with_the_address(address: str, meant: str) -> None:
    with pytest.raises(DataError, match=rf"or s3://bucket/object: give {meant}$"), local_files(address):
        pass


@pytest.mark.parametrize(
    ("line", "columns"),
    [("1 2 3", "name its columns with --columns userId,movieId,rating"), ("1,2,3,4,5", "rating,timestamp,column5")],
)
def test_the_example_of_columns_has_as_many_as_the_file(tmp_path: Path, line: str, columns: str) -> None:
    assert error_of(tmp_path, f"{line}\n".encode() * 9).endswith(columns)


def test_a_web_address_is_refused_with_the_way_out() -> None:
    with pytest.raises(DataError, match=r"^found an address of https://, expected a path, .*: download the file first"):
        csv.read(IngestConfig.of(ratings_csv="https://host/r.csv?token=1"), Collector("r.csv", 0))


@pytest.mark.parametrize(
    ("content", "config", "message"),
    [
        (b"", {}, "ratings.csv: the file is empty, expected ratings"),
        (b"\xef\xbb\xbf\n \r\n", {}, "ratings.csv: the file is empty, expected ratings"),
        (b"userId,movieId,rating\n\n", {}, "ratings.csv: no ratings found, expected at least one row"),
        (
            b"user_id,film,rating\n1,2,3\n",
            {},
            'no column recognised as movie_id, found "user_id, film, rating"; name it',
        ),
        (b"user_id,film,rating\n1,2,3\n", {}, "--movie_column"),
        (b"u,movie_id,rating\n1,2,3\n", {"user_column": "uid"}, 'line 1: no column uid, found "u, movie_id, rating"'),
        (b"userId,userId,movieId,rating\n1,1,2,3\n", {}, '2 columns fit user_id, "userId, userId", expected one'),
        (
            b"userId,movieId,itemId,rating\n",
            {},
            '2 columns fit movie_id, "movieId, itemId", expected one; name it with',
        ),
        (b"userId,movieId,rating\n", {"rating_column": "movieId"}, "one column has two roles"),
        (
            b"\n1,2,3.5\n",
            {},
            'line 2: expected a header, found "1, 2, 3.5"; for a file without one name its columns with',
        ),
        (b"1::2::5::978300760\n", {}, "--columns userId,movieId,rating,timestamp"),
        (b"1,2,3\n", {"columns": "userId,movieId,rating,timestamp"}, "line 1: expected 4 fields (--columns userId,"),
        (b"1,2,3\n", {"columns": "a,b,c"}, '--columns: no column recognised as user_id, found "a, b, c"'),
        ("userId,movieId,rating\n1,2,3\n".encode("utf-16")[:-1], {}, "damaged UTF-16 text"),
        ("userId,movieId,rating\n1,2,3\n".encode("utf-32"), {}, "text in UTF-32, expected a CSV file in UTF-8"),
        (b"userId~movieId~rating\n1~2~3\n", {}, 'found "userId~movieId~rating"; columns are separated by one of , ; |'),
        (b"PAR1", {}, "ratings.csv: the Parquet file is damaged or cut short"),
        (gzip.compress(b"PAR1", mtime=0), {}, "a compressed Parquet file, expected a CSV file: unpack it"),
        (b'{\n"user_id": 1, "movie_id": 2, "rating": 3\n}\n', {}, "line 1: JSON that is not one object per line"),
        (b'[{"user_id": 1, "movie_id": 2, "rating": 3}]\n', {}, "a JSON array, expected a CSV file: write it as JSON"),
        (
            b'{"user_id": 1, "film": 2, "rating": 3}\n',
            {},
            'no column recognised as movie_id, found "user_id, film, rat',
        ),
        (b"\n<!DOCTYPE html>\n<html>", {}, "an HTML page, expected a CSV file: download the file itself"),
        (b"<!-- saved -->\n<html>", {}, "an HTML page, expected a CSV file: download the file itself"),
        (b"<Error><Code>AccessDenied</Code></Error>", {}, "an XML document, expected a CSV file"),
        (
            b"# made by me\n1,2,3\n",
            {},
            'line 1: a comment, "# made by me", expected a header: delete the comment lines',
        ),
        (b"#userId,movieId,rating\n1,2,3\n", {}, "delete the comment lines, and the sign before a header"),
        (b"COPY public.ratings (user_id) FROM stdin;\n1\t2\t3\n", {}, "a database dump, expected a CSV file: load it"),
        (b"-- PostgreSQL database dump\n", {}, "a database dump, expected a CSV file: load it"),
        (b"PGDMP\x01", {}, "a database dump, expected a CSV file: load it"),
        (
            gzip.compress(gzip.compress(b"userId,movieId,rating\n", mtime=0), mtime=0),
            {},
            "a compressed file, within another one or of",
        ),
        (b"\x1f\x9d\x90abc", {}, "a compressed file, within another one or of a kind that is not read"),
        (
            zipped({"ratings.csv.gz": gzip.compress(b"userId,movieId,rating\n", mtime=0)}),
            {},
            "a compressed file, within",
        ),
        (gzip.compress(b"RDX3\nX\n", mtime=0), {}, "a file of a statistics program, expected a CSV file"),
        (b"\x89PNG\r\n\x1a\n", {}, "an image or a program, expected a CSV file"),
        ("userId,movieId,rating,t\n1,2,3,\xe9\n".encode("latin-1"), {}, "or save the file as UTF-8 (iconv -f LATIN1"),
        (b'{"userId": 1, "movieId": 2, "rating": NaN}\n', {}, 'line 1: rating "nan" is not finite'),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", {}, "a git-lfs pointer, not the file itself"),
        (zipped({"xl/workbook.xml": b"", "[Content_Types].xml": b""}), {}, "a spreadsheet or document (xlsx, ods)"),
        (zipped({"a.csv": b"", "b.csv": b""}), {}, "a zip archive of a.csv, b.csv; expected one file of ratings"),
        (zipped({"a.csv": b"userId,movieId,rating\n1,2,3\n"})[:-30], {}, "the zip file is damaged or cut short"),
        (bz2.compress(b"userId,movieId,rating\n1,2,3\n")[:-5], {}, "the bzip2 file is damaged or cut short"),
        (lzma.compress(b"userId,movieId,rating\n1,2,3\n")[:-5], {}, "the xz file is damaged or cut short"),
        (b"userId,movieId,rating\r1,2,3\r", {}, "line 1: a carriage return that does not end the line"),
        (b"userId,movieId,rating\r1,2,3\r", {}, r"with line feeds (tr '\r' '\n')"),
        (
            b"userId,movieId,rating\n1,2,x\n",
            {},
            '1 of 1 rows are bad (100.00%, at most 50.00% may be): line 2: rating "x"',
        ),
        (gzip.compress(b"userId,movieId,rating\n1,2,3\n", mtime=0)[:-9], {}, "the gzip file is damaged or cut short"),
        (
            gzip.compress(b"userId,movieId,rating\n1,2,3\n" * 99, mtime=0)[:30],
            {},
            "the gzip file is damaged or cut short",
        ),
        (b"\x1f\x8bnothing of the kind", {}, "the gzip file is damaged or cut short"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_that_says_why(
    tmp_path: Path, content: bytes, config: dict[str, object], message: str
) -> None:
    assert message in error_of(tmp_path, content, **config)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-8-sig"])
def test_every_encoding_of_unicode_is_read(tmp_path: Path, encoding: str) -> None:
    assert Read(tmp_path, "userId,movieId,rating\n1,2,3\n4,5,6\n".encode(encoding)).rows == [(1, 2, 3.0), (4, 5, 6.0)]


def test_a_pipe_is_read_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv, "BLOCK", 64)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    rows = "".join(f"{user},7,{user % 5}\n" for user in range(100))
    writing = threading.Thread(target=pipe.write_text, args=[f"userId,movieId,rating\n{rows}"], daemon=True)
    writing.start()
    sink = Collector("pipe", 0)
    columns = csv.read(IngestConfig.of(ratings_csv=str(pipe)), sink)
    assert sink.finish(tmp_path / "out.parquet", tmp_path / "rejects.csv", columns).rows_kept == 100


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none.csv", "r.csv: no such file"),
        (tmp_path, "a folder, expected files of ratings"),
        (tmp_path / "*.csv", "no file matches, expected files of ratings"),
    ):
        with pytest.raises(DataError, match=message):
            csv.read(IngestConfig.of(ratings_csv=str(path)), Collector("r.csv", 0))


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv, "BLOCK", 64)
    message = error_of(tmp_path, b"userId,movieId,rating\n1,2,3\n" + b"x" * 1000)
    assert message == "ratings.csv: a line is longer than 64 bytes, expected one rating per line"


def rows_of(split: tuple[pa.Table, np.ndarray, dict[int, str]]) -> object:
    """Everything that the collector would be given."""
    texts, lines, bad = split
    ratings, usable, _, _ = check(texts, is_file=True)
    rejected = texts.filter(pa.array(~usable)).to_pylist()
    reasons = bad | dict(zip(lines[~usable].tolist(), map(reason, rejected), strict=True))
    return ratings.schema, ratings.to_pydict(), lines[usable].tolist(), reasons


FIELD = st.one_of(
    st.integers(-(2**65), 2**65).map(str),
    st.floats().map(str),
    st.sampled_from(["", " ", " 7 ", "007", "+5", ".5", "5.", "1e39", "1e-50", "nan", "Inf", "NULL", "NA", "٣", "é"]),
    st.sampled_from(["2020-01-02", "9000-01-01", "2020-01-02T03:04:05.123456789Z", "2020-02-30", "978300760", "now"]),
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\n\r"), max_size=4),
    st.sampled_from(['"7"', '""', '"a b"', '"3.5"', '"1,2"', '"a""b"', '"5"x']),
)
LINES = st.lists(st.lists(FIELD, min_size=3, max_size=5).map(",".join), min_size=1, max_size=6)


@given(LINES.map(lambda lines: "\n".join(lines).encode()))
@settings(max_examples=150, deadline=None)
@example(b"\xef\xbb\xbf1,2,3,4")
@example(b"1,2,3,4\r\n2,3,4,5\r\n")
@example(b"1,2,3,4\n\n2,3,4,5\n")
@example(b"1,2,3,4\r2,3,4,5\n\n")
@example(b'"1",2," 3","4"\r\n"2","",3,4')
@example(b'"1","2","3","4\r"\n')
@example(b'"\xef\xbb\xbf1",2,3,4\n')
@example(b'"1,2",3,4\n"1",2,3,4"\n""\n')
def test_the_fast_and_the_careful_parser_agree(block: bytes) -> None:
    fast = csv._split_fast(block, LAYOUT)
    if fast is not None:
        lines = np.arange(len(fast))
        assert rows_of((fast, lines, {})) == rows_of(csv._split_careful(block, LAYOUT))


@given(st.lists(st.tuples(st.integers(), st.text("ab7 ", min_size=1), st.floats(width=32, allow_nan=False))))
@settings(max_examples=30, deadline=None)
def test_the_fast_parser_takes_every_clean_block_of_any_delimiter(rows: list[tuple[int, str, float]]) -> None:
    for delimiter in csv.DELIMITERS:
        layout = Layout(delimiter, 4, {USER: 0, MOVIE: 1, RATING: 2})
        for quote in ("", '"') if delimiter != "::" else ("",):
            lines = [delimiter.join((str(u), f"{quote}{m}{quote}", repr(r), "rest")) + "\n" for u, m, r in rows]
            block = "".join(lines).encode()
            fast = csv._split_fast(block, layout)
            assert (fast is None) == (not rows)
            if fast is not None:
                assert rows_of((fast, np.arange(len(rows)), {})) == rows_of(csv._split_careful(block, layout))
