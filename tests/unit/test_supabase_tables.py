import csv
import json
from datetime import UTC, datetime
from itertools import pairwise

import httpx
import numpy as np
import pytest
from postgrest.exceptions import APIError

from mf.errors import ConfigError, DataError, SupabaseError
from mf.ratings.collect import Collector
from mf.ratings.schema import read_ratings
from mf.supabase.client import _check_response, _is_transient, _PausedError, explain
from mf.supabase.tables.description import Table, source_name, table_name
from mf.supabase.tables.page import read_page
from mf.supabase.tables.pages import _ascend, bound, check_keys
from mf.supabase.tables.rest import _check

COLUMNS = {"user_id": "userId", "movie_id": "movieId", "rating": "stars"}


def table_of(**types):
    return Table("ratings", "service_role", {name: {"type": kind} for name, kind in types.items()}, [], frozenset())


def page_of(rows, table):
    """The page as PostgREST writes it."""
    return read_page(", \n ".join(map(json.dumps, rows)).join("[]").encode(), table, table.columns)


def collect(rows, table, columns, key, collector):
    batch = _check(page_of(rows, table), table, columns, key, ())
    for row in batch.bad:
        collector.reject(*row)
    collector.add(batch.ratings)


def test_the_filter_of_a_three_column_key_compares_the_columns_in_turn_and_bounds_the_first():
    assert bound(["a", "b", "c"], "gte", (1, "x", 3)) == (
        'and("a".gte."1",or(and("a".gt."1"),and("a".eq."1","b".gt."x"),and("a".eq."1","b".eq."x","c".gte."3")))'
    )


def test_quotes_and_backslashes_of_names_and_values_are_escaped_in_a_filter():
    assert bound(['my "id"'], "gt", ('a\\b",c',)) == (
        r'and("my \"id\"".gte."a\\b\",c",or(and("my \"id\"".gt."a\\b\",c")))'
    )


def test_rows_that_cannot_be_used_are_rejected_with_their_key_and_reason_and_the_others_are_kept(tmp_path):
    good = {"id": 1, "userId": 7, "movieId": "m", "stars": 4.5}
    bad = [
        ({"stars": None}, "empty rating"),
        ({"stars": "NaN"}, 'rating "NaN" is not finite'),
        ({"stars": "-Infinity"}, 'rating "-Infinity" is not finite'),
        ({"stars": 1e39}, 'rating "1e+39" is larger than float32 can hold'),
        ({"userId": None}, "empty user id"),
        ({"movieId": ""}, "empty movie id"),
    ]
    rows = [good, *({**good, "id": 2 + i, **change} for i, (change, _) in enumerate(bad))]
    collector = Collector("table public.ratings", 1.0)
    table = table_of(id="integer", userId="integer", movieId="string", stars="number")
    collect(rows, table, COLUMNS, ["id"], collector)
    collector.finish(tmp_path / "ratings.parquet", tmp_path / "rejects.csv", COLUMNS)
    assert read_ratings(tmp_path / "ratings.parquet")[0].to_pylist() == [{"user_id": 7, "movie_id": "m", "rating": 4.5}]
    with (tmp_path / "rejects.csv").open(newline="") as file:
        rejected = [row[:2] for row in list(csv.reader(file))[1:]]
    assert rejected == [[f"row id={2 + i}", reason] for i, (_, reason) in enumerate(bad)]


@pytest.mark.parametrize("number", [2, 0.1, None, "NaN", 10**400, 2**60 + 1])
@pytest.mark.parametrize("separator", [", \n ", ","])
def test_a_page_is_read_alike_whether_arrow_takes_it_or_not(number, separator):
    table = table_of(a="integer", b="string", c="number", d="boolean")
    texts = ["é😀", '"', "}, \n {", None]
    rows = [{"a": i - 2**63, "b": text, "c": number, "d": i % 2 == 0} for i, text in enumerate(texts)]
    page = read_page(separator.join(map(json.dumps, rows)).join("[]").encode(), table, ["a", "b", "c", "d"])
    expected = number if number is None else float(str(number).lower())
    assert page.columns.drop_columns("c").to_pylist() == [{k: row[k] for k in "abd"} for row in rows]
    np.testing.assert_array_equal(page.columns["c"].to_pylist(), [expected] * len(rows))
    assert page.rows() == rows
    assert page.without(first=True).without(last=True).rows() == rows[1:-1]
    assert page.without(first=True, last=True).key("ab", -1) == (rows[2]["a"], rows[2]["b"])


def test_an_empty_page_has_no_rows():
    assert len(read_page(b"[]", table_of(a="integer"), ["a"])) == 0


@pytest.mark.parametrize("body", [b"", b"<html>", b'[{"a": 1}, \n {"a"', b'[{"a": 1}, \n {"a"}]', b"[{]}]"])
def test_a_page_that_is_not_json_is_a_value_error(body):
    with pytest.raises(ValueError):
        read_page(body, table_of(a="integer"), ["a"])


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": 1}',
        b"[1]",
        b'[{"b": 1}]',
        b'[{"a": 1.5}]',
        b'[{"a": "x"}]',
        b'[{"a": [1]}]',
        b'[{"a": 1180591620717411303424}]',
        b"null",
    ],
)
def test_a_response_without_the_described_columns_is_an_error(body):
    with pytest.raises(SupabaseError, match=r"cannot read table public\.ratings: the response is not a list of rows"):
        read_page(body, table_of(a="integer"), ["a"])


def test_rows_ascend_as_tuples_do():
    rng = np.random.default_rng(0)
    for _ in range(300):
        rows = rng.integers(0, 3, (rng.integers(1, 5), 3))
        rows = rows[np.lexsort(rows.T[::-1])] if rng.random() < 0.7 else rows
        assert _ascend(list(rows.T)) == all(a < b for a, b in pairwise(map(tuple, rows.tolist())))


def test_an_unreadable_time_is_rejected_with_what_was_found(tmp_path):
    rows = [{"userId": 1, "movieId": i, "stars": 3, "at": at} for i, at in enumerate(["2024-02-29", "infinity"])]
    collector = Collector("table public.ratings", 1.0)
    table = table_of(userId="integer", movieId="integer", stars="integer", at="string")
    collect(rows, table, COLUMNS | {"rated_at": "at"}, ["userId", "movieId"], collector)
    collector.finish(tmp_path / "ratings.parquet", tmp_path / "rejects.csv", COLUMNS)
    kept = read_ratings(tmp_path / "ratings.parquet")[0].to_pylist()
    assert [row["rated_at"] for row in kept] == [datetime(2024, 2, 29, tzinfo=UTC)]
    rejects = (tmp_path / "rejects.csv").read_text()
    assert '"row userId=1, movieId=1","timestamp ""infinity"" is neither epoch seconds' in rejects


@pytest.mark.parametrize(
    ("before", "keys"),
    [([(1, 1)], [(1, 1), (2, 1)]), ([(1, 1)], [(1, 2), (1, 2)]), ([(2, 1)], [(1, 9)]), ([], [(1, 2), (1, 1)])],
)
def test_integer_keys_that_do_not_ascend_are_refused(before, keys):
    with pytest.raises(DataError, match=r"key user=\d, movie=\d came twice or out of order.*--key_columns"):
        check_keys(table_of(user="integer", movie="integer"), ["user", "movie"], before, keys)


def test_text_keys_may_come_in_the_order_of_any_collation_but_never_twice():
    table = table_of(user="string")
    check_keys(table, ["user"], [("b",)], [("a",), ("B",)])
    with pytest.raises(DataError, match="key user=b came twice"):
        check_keys(table, ["user"], [("b",)], [("a",), ("b",)])
    with pytest.raises(DataError, match="key user=a came twice"):
        check_keys(table, ["user"], [], [("a",), ("b",), ("a",)])


def test_the_primary_key_serves_unless_columns_are_named():
    table = Table("ratings", "service_role", {"id": {}, "user": {}, "movie": {}}, ["id"], frozenset())
    assert table.key("") == ["id"]
    assert table.key("movie, user") == ["movie", "user"]
    with pytest.raises(DataError, match="no column 'title' for --key_columns, found id, user, movie"):
        table.key("title")


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("ratings", "ratings"), ("Ratings", "Ratings"), ("public.ratings", "ratings"), ('public."Ratings"', "Ratings"),
        ('"public"."Ratings"', "Ratings"), ('"a.b"', "a.b"), ('public."a ""b"""', 'a "b"'), ("a b", "a b"),
    ],
)  # fmt: skip
def test_a_table_may_be_named_as_in_sql(name, table):
    assert table_name(name) == table
    assert source_name(name) == f"table public.{table}"


@pytest.mark.parametrize(
    "name", ["other.ratings", '"Public".ratings', "a.b.c", '"ratings', 'public."', "public.", ".x", ""]
)
def test_a_name_of_another_schema_or_none_is_refused(name):
    with pytest.raises(ConfigError, match=r"^--import_table .*: expected a "):
        table_name(name)


def api_error(code, message):
    return APIError({"code": code, "message": message, "hint": None, "details": None})


@pytest.mark.parametrize(
    ("error", "is_retried", "said"),
    [
        (api_error("PGRST303", "JWT issued at future"), True, "the clocks of the servers differ"),
        (api_error("PGRST301", "JWT issued at future"), True, "the clocks of the servers differ"),
        (api_error("PGRST303", "JWT not yet valid"), True, "the clocks of the servers differ"),
        (api_error("PGRST002", "Could not query the database"), True, "look at the project's state in the dashboard"),
        (api_error("PGRST303", "JWT expired"), False, "the key has expired: copy the project's secret key again"),
        (api_error("PGRST301", "JWSError JWSInvalidSignature"), False, "it is not a key of this project"),
        (api_error("PGRST303", "JWT not in audience"), False, "the API does not accept what the key says"),
        (api_error("PGRST302", "Anonymous access is disabled"), False, "the API was given no key that it accepts"),
        (api_error("301", "Moved Permanently"), False, "is this the URL of a Supabase project?"),
        (api_error("402", "Payment Required"), False, "over the quota of its plan"),
        (api_error("25006", "cannot execute INSERT in a read-only transaction"), False, "the project's disk is full"),
        (api_error("PGRST125", "Invalid path specified in request URL"), False, "is this the URL of a Supabase"),
        (api_error("PGRST106", "The schema must be one of the following: api"), False, "add the schema public"),
        (_PausedError(), False, "cannot read: the project is paused: restore it in the dashboard"),
    ],
)
def test_each_refusal_of_the_api_has_its_own_sentence(error, is_retried, said):
    assert _is_transient(error) is is_retried
    assert said in explain(error, "read")


def test_the_status_of_a_paused_project_is_recognised():
    request = httpx.Request("GET", "https://abc.supabase.co/rest/v1/")
    with pytest.raises(_PausedError):
        _check_response(httpx.Response(540, json={"message": "Project paused"}, request=request))
