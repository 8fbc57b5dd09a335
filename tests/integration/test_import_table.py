import re
import uuid
from datetime import UTC, datetime
from urllib.parse import unquote_plus

import numpy as np
import pytest
from faults import Fault
from pydantic import SecretStr

from mf.errors import ConfigError, DataError, SupabaseError
from mf.ingest import ingest
from mf.ratings.collect import Collector
from mf.ratings.config import IngestConfig
from mf.ratings.schema import read_ratings
from mf.supabase import client
from mf.supabase.client import connect
from mf.supabase.credentials import Credentials
from mf.supabase.tables import page, pages, rest
from mf.supabase.tables.description import source_name

USERS = 600
INTEGERS = "select user_id, movie_id, rating::float8 from by_integer order by 1, 2"
AWKWARD = [
    "a,b", "a.b", '"', '""', "\\", '\\"', "x\\y", "(x)", "and(a.eq.b)", " leading", "trailing ", "tab\there", "a\nb",
    "it's", "null", "NULL", "true", "*", "%", "%2C", "&a=b", "a+b", "#", "?", "ünï", "日本", "😀", "{a}", "[1)",
    "gte.5", ":", "a:b", "->>", "2024-01-01T00:00:00+02:00", "0", "-1", "Z", "z", "É", "/", "--", "$1", "é",
]  # fmt: skip

SETUP = """
create table by_integer (user_id bigint, movie_id bigint, rating numeric(2,1), primary key (user_id, movie_id));
insert into by_integer select u, m, 0.5 + (u * 7 + m) % 10 / 2.0
  from generate_series(1, 600) u, generate_series(1, 20) m;

create table by_uuid (user_id uuid, movie_id uuid, rating real, primary key (user_id, movie_id));
insert into by_uuid select md5(u::text)::uuid, md5('movie' || m)::uuid, 3
  from generate_series(1, 90) u, generate_series(1, 13) m;

create table by_text ("userId" text, "movie, (Id)" text, rating float8, primary key ("userId", "movie, (Id)"));

create table by_row (id bigint generated always as identity primary key, "user" bigint, item_id bigint, rating smallint,
  created_at timestamptz);
insert into by_row ("user", item_id, rating, created_at)
  select i % 7, i, 4, timestamptz '2024-01-01 00:00+00' + i * interval '1 day' from generate_series(1, 1234) i;

create table by_three (user_id int, movie_id uuid, rated_at timestamptz, rating real,
  primary key (rated_at, movie_id, user_id));
insert into by_three select i % 3, md5((i % 5)::text)::uuid,
  timestamptz '2024-01-01 00:00+00' + i % 7 * interval '1.000001 s', 3 from generate_series(0, 104) i;

create table no_key (user_id int, movie_id int, label text, rating real);
insert into no_key select i, 1, 'label ' || i, 3 from generate_series(1, 10) i;

create table doubled (user_id int not null, movie_id int, label text not null, rating real);
insert into doubled select i, i + j, 'label ' || i, 3
  from generate_series(1, 10) i, generate_series(0, 1) j where j = 0 or i = 5;

create view twofold as select by_row.*, side from by_row, generate_series(1, 2) side;
create view onefold as select * from by_row;

create table null_key (user_id int, movie_id int, rating real, unique (user_id, movie_id));
insert into null_key values (1, 1, 3), (1, null, 3);

create table times (user_id int primary key, movie_id int, rating real, zoned timestamptz, plain timestamp, day date,
  seconds bigint, milliseconds bigint, words text);
insert into times values
  (1, 1, 3, '2024-02-29 14:30:00.123456+02', '2024-02-29 12:30', '2024-02-29', 1709209800, 1709209800250, '2024-02-29'),
  (2, 1, 3, 'infinity', 'infinity', 'infinity', 9e18, -9e18, 'yesterday'),
  (3, 1, 3, null, null, null, null, null, null);

create table repeated (id int primary key, "user" text, item int, rating real, seconds bigint);
insert into repeated values (1, 'a', 1, 1, 100), (2, 'A', 1, 2, 100), (3, 'a', 1, 3, null), (4, 'a', 1, 4, 100),
  (5, 'a', 1, 'NaN', 900), (6, 'é', 1, 6, null), (7, 'é', 1, 7, null), (8, 'a', 2, 8, 1700000000000),
  (9, 'a', 2, 9, 1600000000), (10, 'A', 2, 10, 5);

create table empty_table (user_id int primary key, movie_id int, rating real);
create table float_ids (user_id float8 primary key, movie_id int, rating real);
create table text_ratings (user_id int primary key, movie_id int, rating text);
create table no_rating (user_id int primary key, movie_id int, "Notes" text);

grant select on all tables in schema public to service_role;

create table not_granted (user_id int primary key, movie_id int, rating real);
create table "Not Readable" (user_id int primary key, movie_id int, rating real);
insert into not_granted values (1, 1, 3);
insert into "Not Readable" values (1, 1, 3);
grant insert on "Not Readable" to service_role;

create table guarded (user_id int primary key, movie_id int, rating real);
insert into guarded values (1, 1, 3);
alter table guarded enable row level security;
create role owner_without_policy nologin;
create view silenced as select * from guarded;
grant select on guarded to owner_without_policy;
grant create on schema public to owner_without_policy;
alter view silenced owner to owner_without_policy;
grant select on silenced to service_role;
"""


@pytest.fixture(scope="module")
def database(fresh_stack):
    """Supabase's own limit of 1,000 rows an answer, and no grant that is not given."""
    database = fresh_stack(legacy_grants=False)
    database.migrate(SETUP)
    with database.connect() as connection, connection.cursor() as cursor:
        pairs = [(user, movie, 3) for user in AWKWARD for movie in AWKWARD[::9]]
        cursor.executemany("insert into by_text values (%s, %s, %s)", pairs)
    return database


@pytest.fixture(autouse=True)
def no_faults(database):
    database.gateway.faults.clear()
    database.gateway.requests.clear()


def ratings_of(folder):
    """The ratings, as rows, and where they came from."""
    table, provenance = read_ratings(folder / "ratings.parquet")
    return table.to_pylist(), provenance


@pytest.fixture
def read_api(database, tmp_path, monkeypatch):
    """Imports a table through the API in ranges of two pages."""
    monkeypatch.setattr(pages, "PAGES", 2)

    def read(table, *, source=database, key=None, page_size=1000, workers=3, **options):
        credentials = Credentials(source.url, SecretStr(key or source.secret_key))
        config = IngestConfig.of(import_table=table, **options)
        sink = Collector(source_name(table), config.max_reject_fraction)
        with connect(credentials) as client:
            columns = rest.read(client, credentials, config, sink, page_size=page_size, workers=workers)
        sink.finish(tmp_path / "ratings.parquet", tmp_path / "rejects.csv", columns)
        return ratings_of(tmp_path)

    return read


@pytest.fixture(params=["API", "direct"])
def read(request, database, read_api, tmp_path, monkeypatch):
    """Imports a table either way."""

    def read_directly(table, **options):
        monkeypatch.setenv("SUPABASE_DB_URL", database.db_url)
        ingest(IngestConfig.of(import_table=table, **options), tmp_path / "ratings.parquet", tmp_path / "rejects.csv")
        return ratings_of(tmp_path)

    return read_api if request.param == "API" else read_directly


def rows_of(database, query):
    with database.connect() as connection:
        return [dict(zip(("user_id", "movie_id", "rating"), row, strict=True)) for row in connection.execute(query)]


def test_a_table_of_many_pages_is_read_whole_with_integer_ids(database, read):
    rows, provenance = read("by_integer")
    assert rows == rows_of(database, INTEGERS)
    assert (provenance.rows_read, provenance.rows_replaced) == (USERS * 20, 0)
    assert provenance.columns == {"user_id": "user_id", "movie_id": "movie_id", "rating": "rating"}


def test_pages_without_odd_numbers_are_read_by_arrow_alone(database, read_api, monkeypatch):
    monkeypatch.setattr(page, "from_json", {b"[]": []}.__getitem__)
    assert read_api("by_integer")[0] == rows_of(database, INTEGERS)


def test_uuid_ids_stay_the_strings_they_are(database, read):
    rows, _ = read("by_uuid")
    assert rows == rows_of(database, "select user_id::text, movie_id::text, rating from by_uuid order by 1, 2")


@pytest.mark.parametrize("page_size", [1, 2, 1000])
def test_text_keys_with_any_character_end_pages_well(database, read_api, page_size):
    options = {"movie_column": "movie, (Id)", "page_size": page_size, "max_reject_fraction": 1}
    rows, provenance = read_api("by_text", **options)
    good = {id for id in AWKWARD if id == id.strip()}
    assert {(row["user_id"], row["movie_id"]) for row in rows} == {(u, m) for u in good for m in good & {*AWKWARD[::9]}}
    assert provenance.rows_replaced == 0


def test_a_key_that_is_none_of_the_rating_columns_is_followed(read):
    rows, provenance = read("public.by_row")
    assert len(rows) == 1234
    assert rows[0] == {"user_id": 0, "movie_id": 7, "rating": 4.0, "rated_at": datetime(2024, 1, 8, tzinfo=UTC)}
    assert provenance.columns == {
        "user_id": "user", "movie_id": "item_id", "rating": "rating", "rated_at": "created_at",
    }  # fmt: skip


def test_a_key_of_three_columns_with_times_is_followed_in_any_order_asked_for(read_api):
    for key in ("", "rated_at,user_id,movie_id", "movie_id,rated_at,user_id"):
        _, provenance = read_api("by_three", key_columns=key, page_size=4)
        assert provenance.rows_read == 105


def test_a_table_without_a_primary_key_is_read_along_the_columns_named(read_api):
    with pytest.raises(DataError, match=r"table public\.no_key has no primary key.*--key_columns"):
        read_api("no_key")
    rows, _ = read_api("no_key", key_columns="label", page_size=3)
    assert [row["user_id"] for row in rows] == list(range(1, 11))


@pytest.mark.parametrize("key", ["user_id", "label"])
@pytest.mark.parametrize("page_size", [2, 3, 4, 5, 6])
def test_a_key_that_is_not_unique_is_noticed_wherever_the_page_ends(read_api, key, page_size):
    with pytest.raises(DataError, match=rf"{key}=(5|label 5) came twice.*\({key}\) is not unique"):
        read_api("doubled", key_columns=key, page_size=page_size)


def test_a_key_that_many_rows_share_ends_in_an_error_even_where_pages_hold_one_row(read_api):
    with pytest.raises(DataError, match=r"the key movie_id=1 came twice.*\(movie_id\) is not unique"):
        read_api("no_key", key_columns="movie_id", page_size=1)


def test_a_view_is_read_along_its_tables_key_unless_it_multiplies_the_rows(read_api):
    assert read_api("onefold")[1].rows_read == 1234
    with pytest.raises(DataError, match=r"the key id=1 came twice.*\(id\) is not unique"):
        read_api("twofold")
    assert read_api("twofold", key_columns="id,side")[1].rows_read == 2 * 1234


def test_a_null_in_the_key_is_refused(read_api):
    with pytest.raises(DataError, match="key column movie_id is null in a row"):
        read_api("null_key", key_columns="user_id,movie_id")


@pytest.fixture(scope="module")
def small_answers(fresh_stack):
    database = fresh_stack(legacy_grants=False, max_rows=100)
    database.migrate(SETUP.partition("create table by_uuid")[0] + "grant select on by_integer to service_role")
    return database


def test_as_many_rows_are_asked_for_as_the_server_gives(read_api, small_answers):
    small_answers.gateway.requests.clear()
    assert read_api("by_integer", source=small_answers)[1].rows_kept == USERS * 20
    asked = [int(re.search(r"limit=(\d+)", request.path)[1]) for request in small_answers.gateway.requests[1:]]
    assert set(asked[asked.index(1000) + 1 :]) == {100, 1}


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize(
    ("table", "rows", "page_size"), [("by_uuid", 1170, 19), ("by_text", len(AWKWARD) * 5, 7), ("by_three", 105, 7)]
)
def test_ranges_of_any_key_neither_miss_nor_repeat_a_row(database, read_api, table, rows, page_size, workers):
    options = {"movie_column": "movie, (Id)", "max_reject_fraction": 1} if table == "by_text" else {}
    read, provenance = read_api(table, page_size=page_size, workers=workers, **options)
    assert (provenance.rows_read, provenance.rows_replaced) == (rows, 0 if table != "by_three" else 105 - len(read))
    paths = [request.path for request in database.gateway.requests if request.status == 200]
    assert len(set(paths)) == len(paths)
    assert (sum("offset=" in path for path in paths) > 5) == (workers > 1)


@pytest.mark.parametrize("name", ["database", "small_answers"])
def test_rows_that_stand_throughout_come_exactly_once_while_others_come_and_go(request, read_api, name):
    source = request.getfixturevalue(name)
    source.migrate("create table busy (like by_integer including all); grant select on busy to service_role")
    with source.connect() as connection:
        connection.execute("insert into busy select user_id * 10, movie_id, rating from by_integer")
        chance, written = np.random.default_rng(2), []

        def write(request):
            """Between two pages: takes rows of odd movies, the one at the page's end among them, and adds others."""
            at = re.search(r'"user_id"\.gte\."(\d+)"', unquote_plus(request.path))
            users = [int(at[1]) if at else 0, *(chance.integers(USERS, size=5) * 10).tolist()]
            gone = connection.execute("delete from busy where movie_id %% 2 = 1 and user_id = any(%s)", [users])
            new = zip(
                chance.integers(-50, USERS * 11, 20).tolist(),
                (2 * chance.integers(50, 10**6, 20) + 1).tolist(),
                strict=True,
            )
            connection.cursor().executemany("insert into busy values (%s, %s, 1) on conflict do nothing", list(new))
            written.append(gone.rowcount)

        source.gateway.faults.append(write)
        rows, provenance = read_api("busy", source=source)
        source.gateway.faults.clear()
        stood = "select user_id, movie_id, rating::float8 from busy where movie_id % 2 = 0 order by 1, 2"
        assert [row for row in rows if row["movie_id"] % 2 == 0] == rows_of(source, stood)
    assert provenance.rows_replaced == 0
    assert len(written) > (12 if name == "database" else 60)
    assert sum(written) > 100


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=503),
        Fault(status=408),
        Fault(status=429, body=b'{"message":"API rate limit exceeded"}', content_type="application/json"),
        Fault(status=500, body=b"{}", content_type="application/json"),
        Fault(status=524),
        Fault(drop="before"),
        Fault(drop="after"),
        Fault(status=200, body=b"<html>sign in</html>"),
        Fault(status=200, body=b'[{"user_id":1,"movie_id":1},{"user_', content_type="application/json"),
        Fault(status=200, body=b"", content_type="application/json"),
    ],
    ids=["503", "408", "429", "500", "524", "dropped before", "dropped after", "html", "cut json", "empty"],
)
def test_faults_in_a_fifth_of_the_requests_change_nothing_that_is_read(database, read_api, monkeypatch, fault):
    monkeypatch.setattr(client, "_wait", lambda _: 0)
    chance, happened = np.random.default_rng(5), []

    def sometimes(request):
        if chance.random() < 0.2:
            happened.append(request.path)
            return fault
        return None

    database.gateway.faults.append(sometimes)
    rows, _ = read_api("by_integer", page_size=500)
    assert rows == rows_of(database, INTEGERS)
    assert len(happened) >= 3


def test_a_range_that_broke_goes_on_from_its_last_page(database, read_api, monkeypatch):
    monkeypatch.setattr(client, "_wait", lambda _: 0)
    database.gateway.faults.append(lambda request: Fault(status=502) if chance.random() < 0.3 else None)
    chance = np.random.default_rng(3)
    assert read_api("by_integer", page_size=300)[1].rows_kept == USERS * 20
    served = [request.path for request in database.gateway.requests if request.status == 200]
    assert len(served) == len(set(served)) > 40


def test_the_pause_that_the_server_asks_for_is_kept(database, read_api, monkeypatch):
    waited, waits = client._wait, []
    monkeypatch.setattr(client, "_wait", lambda state: waits.append(waited(state)) or 0)
    faults = [Fault(status=429, headers=(("Retry-After", "7"),)), Fault(status=503, headers=(("Retry-After", "x"),))]
    database.gateway.faults.append(lambda _: faults.pop(0) if faults else None)
    read_api("by_integer", workers=1)
    assert 7 <= waits[0] < 8
    assert waits[1] < 1


def test_a_fault_that_lasts_ends_in_one_line(database, read_api, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "_wait", lambda _: 0)
    read_api("by_integer")
    written = (tmp_path / "ratings.parquet").read_bytes()
    database.gateway.faults.append(
        lambda request: Fault(status=522) if '"user_id".gte."4' in unquote_plus(request.path) else None
    )
    with pytest.raises(
        SupabaseError, match=r"^cannot read table public.by_integer: the server still responds 522.*later$"
    ):
        read_api("by_integer")
    assert (tmp_path / "ratings.parquet").read_bytes() == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ratings.parquet", "rejects.csv"]


def test_of_a_pair_that_occurs_twice_the_latest_usable_rating_is_kept_and_of_equals_the_last_by_key(read):
    rows, provenance = read("repeated", timestamp_column="seconds", max_reject_fraction=1)
    kept = {(row["user_id"], row["movie_id"]): row["rating"] for row in rows}
    assert kept == {("a", 1): 4, ("A", 1): 2, ("é", 1): 7, ("a", 2): 8, ("A", 2): 10}
    assert (provenance.rows_read, provenance.rows_rejected, provenance.rows_replaced) == (10, 1, 4)
    rows, _ = read("repeated", timestamp_column="none", max_reject_fraction=1)
    assert {(row["user_id"], row["movie_id"]): row["rating"] for row in rows} == kept | {("a", 2): 9}


@pytest.mark.parametrize(
    ("options", "days"),
    [
        ({"rated_since": "2024-03-01"}, (60, 1234)),
        ({"rated_before": "2024-03-01T02:00:00+02:00"}, (1, 60)),
        ({"rated_since": "2024-03-01", "rated_before": "2024-03-02T00:00:00.000001"}, (60, 62)),
    ],
)
def test_only_rows_of_the_time_asked_for_are_read(read, options, days):
    rows, provenance = read("by_row", **options)
    assert sorted(row["movie_id"] for row in rows) == list(range(days[0], days[1] + (days[1] == 1234)))
    assert provenance.rows_read == len(rows)


@pytest.mark.parametrize("column", ["zoned", "plain", "day"])
def test_a_span_of_time_begins_with_its_first_moment_ends_before_its_last_and_holds_no_unknown_one(read, column):
    moment = {"zoned": "2024-02-29T12:30:00.123456", "plain": "2024-02-29T12:30:00", "day": "2024-02-29"}[column]
    chosen = {"timestamp_column": column, "max_reject_fraction": 1}
    later = moment[:-1] + str(int(moment[-1]) + 1) if column == "zoned" else "2024-02-29T12:30:01"
    assert [row["user_id"] for row in read("times", rated_since=moment, rated_before=later, **chosen)[0]] == [1]
    with pytest.raises(SupabaseError, match="shows no rows in this span of time"):
        read("times", rated_since="2024-02-28T23:59", rated_before=moment, **chosen)


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ("by_integer", {"rated_since": "2024-01-01"}, "has no column of times for --rated_since.*--timestamp_column"),
        ("times", {"rated_before": "2024-01-01", "timestamp_column": "seconds"}, "column seconds is of type bigint"),
        (
            "times",
            {"rated_before": "2024-01-01", "timestamp_column": "words"},
            "column words is of type text, expected",
        ),
    ],
)
def test_a_span_of_time_needs_a_column_of_times(read, table, options, message):
    with pytest.raises(DataError, match=message):
        read(table, **options)


@pytest.mark.parametrize(
    ("table", "options", "error", "message"),
    [
        (
            "by_intger",
            {},
            SupabaseError,
            r"by_intger.*does not exist \(42P01\): check --import_table.*by_integer",
        ),
        ("auth.users", {}, ConfigError, r"--import_table auth\.users: expected a table of the schema public"),
        (
            "no_rating",
            {},
            DataError,
            r"no column recognised as rating, found .*movie_id, Notes.*--rating_column",
        ),
        ("by_integer", {"user_column": "who"}, DataError, r"no column who, found .*user_id, movie_id, rating"),
        ("by_integer", {"key_columns": "id"}, DataError, r"no column 'id' for --key_columns, found user_id, movie_id"),
        ("float_ids", {}, DataError, r"column user_id is of type double precision, expected integer or string"),
        ("text_ratings", {}, DataError, r"column rating is of type text, expected integer or number"),
        (
            "empty_table",
            {},
            SupabaseError,
            r"no rows: either it is empty.*or row level security hides.*(service_role|postgres)",
        ),
        (
            "silenced",
            {},
            SupabaseError,
            r"no rows: either it is empty.*or row level security hides.*(service_role|postgres)",
        ),
    ],
)
def test_a_table_that_cannot_serve_is_one_line_that_says_what_to_do(read, tmp_path, table, options, error, message):
    with pytest.raises(error, match=message) as caught:
        read(table, **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("table", ["not_granted", "Not Readable"])
def test_a_missing_grant_names_the_statement_that_mends_it(database, read_api, table):
    with pytest.raises(SupabaseError, match=r"permission denied for table .* \(42501\)") as caught:
        read_api(table)
    statement = re.search("`(grant select on .* to service_role;)`", str(caught.value))[1]
    with database.connect() as connection:
        connection.execute(statement)
    assert read_api(table)[0] == [{"user_id": 1, "movie_id": 1, "rating": 3.0}]


def test_a_public_or_a_users_key_is_refused_before_anything_is_asked(database, read_api):
    for key in (database.publishable_key, database.anon_key, database.user_token(str(uuid.uuid4()))):
        with pytest.raises(SupabaseError, match=r"row level security may hide rows.*secret key") as caught:
            read_api("by_integer", key=key)
        assert key not in str(caught.value)
    assert not database.gateway.requests


def test_a_key_of_another_project_is_one_line_without_the_key(read_api):
    key = "sb_secret_of_another_project"
    with pytest.raises(SupabaseError, match=r"Invalid API key.*check SUPABASE_KEY") as caught:
        read_api("by_integer", key=key)
    assert key not in str(caught.value)
