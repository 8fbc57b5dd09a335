"""What only the direct connection has: one snapshot, streamed; roles, limits and connections that break."""

import re
import traceback
from pathlib import Path

import pytest

import mf
from mf.errors import DataError, SupabaseError
from mf.ingest import ingest
from mf.ratings.config import IngestConfig
from mf.ratings.schema import read_ratings
from mf.supabase.tables import direct

PASSWORD = "hunter2secret"
SETUP = f"""
create table ratings (user_id bigint, movie_id bigint, rating real, primary key (user_id, movie_id));
insert into ratings select u, m, 3 from generate_series(1, 50) u, generate_series(1, 20) m;

create view many as select i / 100 as user_id, i % 100 as movie_id, 3::real as rating
  from generate_series(1, 1200000) i;
create view slow as select 1 as user_id, i as movie_id, 3 as rating from generate_series(1, 3) i, pg_sleep(0.2);

create table twice (movie_id int, user_id int, rating numeric(2,1));
insert into twice select m, u, 1 + u % 5 from generate_series(1, 400) u, generate_series(1, 3) m;
insert into twice select 2, u, 0.5 from generate_series(1, 400, 2) u;
create unique index on twice (user_id, movie_id, rating);
create unique index on twice (user_id, movie_id) where rating > 4;

create table parent (user_id int, movie_id int, rating real, primary key (user_id, movie_id));
create table child () inherits (parent);
insert into parent values (1, 1, 1);
insert into child values (1, 1, 2);

create domain stars as numeric check (value is null or value <> 7);
create type kind as enum ('film', 'series');
create table kinds (user_id kind, movie_id smallint, rating stars, seen timestamp(0), primary key (user_id, movie_id));
insert into kinds values ('film', 1, 4.5, '2024-01-01 00:00'), ('film', 2, 'NaN', null), ('series', 1, 1e200, null),
  ('series', 2, 3, 'infinity'), ('series', 3, '-Infinity', null), ('film', 3, '1e1000', null);

create table hidden (user_id int primary key, movie_id int, rating real);
insert into hidden values (1, 1, 3);
alter table hidden enable row level security;
create policy part on hidden for select using (user_id > 1);
create table "Not Granted" (user_id int primary key, movie_id int, rating real);
insert into "Not Granted" values (1, 1, 3);

create table part_granted (user_id int primary key, movie_id int, rating real);

create role import_reader login password '{PASSWORD}';
alter role import_reader set statement_timeout = '100ms';
grant usage on schema public to import_reader;
grant select on slow, hidden to import_reader;
grant select (user_id, movie_id) on part_granted to import_reader;
"""


@pytest.fixture(scope="module")
def database(fresh_stack):
    database = fresh_stack(legacy_grants=False)
    database.migrate(SETUP)
    return database


@pytest.fixture
def read(database, tmp_path, monkeypatch):
    """Imports a table as a user does; gives the ratings, as rows, and where they came from."""

    def read(table, url=database.db_url, **options):
        config = IngestConfig.of(import_table=table, **options)
        monkeypatch.setenv("SUPABASE_DB_URL", url)
        provenance = ingest(config, tmp_path / "ratings.parquet", tmp_path / "rejects.csv")
        return read_ratings(tmp_path / "ratings.parquet")[0].to_pylist(), provenance

    return read


def as_reader(database):
    return re.sub("//[^@]*@", f"//import_reader:{PASSWORD}@", database.db_url)


def test_with_an_address_in_the_environment_the_database_is_read_and_no_key_is_needed(database, tmp_path, monkeypatch):
    monkeypatch.delenv("SUPABASE_KEY", raising=False)
    monkeypatch.setenv("SUPABASE_DB_URL", database.db_url)
    config = IngestConfig.of(import_table="ratings")
    assert ingest(config, tmp_path / "r", tmp_path / "b").rows_kept == 1000
    assert not database.gateway.requests


def test_what_is_written_during_the_import_is_not_seen(database, read, monkeypatch):
    describe = direct._describe

    def describe_and_write(*arguments):
        source = describe(*arguments)
        with database.connect() as connection:
            connection.execute("insert into ratings values (99, 99, 3)")
            connection.execute("delete from ratings where user_id = 1")
        return source

    monkeypatch.setattr(direct, "_describe", describe_and_write)
    rows, _ = read("ratings")
    assert len(rows) == 1000
    assert {row["user_id"] for row in rows} == set(range(1, 51))
    database.migrate(
        "delete from ratings where user_id = 99; insert into ratings select 1, m, 3 from generate_series(1, 20) m"
    )


def test_only_a_unique_index_over_user_and_movie_alone_spares_the_search_for_pairs_that_occur_twice(read):
    rows, provenance = read("twice")
    assert (provenance.rows_read, provenance.rows_replaced, len(rows)) == (1400, 200, 1200)
    # Without times and key the last one counts, as they are stored.
    assert all(
        row["rating"] == (0.5 if row["movie_id"] == 2 and row["user_id"] % 2 else 1 + row["user_id"] % 5)
        for row in rows
    )
    assert read("parent")[0] == [{"user_id": 1, "movie_id": 1, "rating": 2.0}]


def test_numbers_and_times_that_no_type_of_ours_holds_are_rejected_and_end_nothing(read, tmp_path):
    rows, provenance = read("kinds", timestamp_column="seen", max_reject_fraction=1)
    assert [(row["user_id"], row["movie_id"], row["rating"]) for row in rows] == [("film", 1, 4.5)]
    rejects = (tmp_path / "rejects.csv").read_text()
    for where, reason in {
        "user_id=film, movie_id=2": 'rating ""NaN"" is not finite',
        "user_id=series, movie_id=1": f'rating ""1{"0" * 59}…"" is larger than float32 can hold',
        "user_id=series, movie_id=2": 'timestamp ""infinity"" is neither',
        "user_id=series, movie_id=3": 'rating ""-Infinity"" is not finite',
        "user_id=film, movie_id=3": f'rating ""1{"0" * 59}…"" is larger than float32 can hold',
    }.items():
        assert re.search(f'"row {where}","?{re.escape(reason)}', rejects)
    assert provenance.rows_rejected == 5


def test_a_roles_time_limit_does_not_end_the_import(database, read):
    assert read("slow", as_reader(database))[1].rows_kept == 3


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "hidden",
            "row level security may hide rows from the role import_reader: connect as postgres",
        ),
        ("part_granted", r"\(42501\): run `grant select on public.part_granted to ROLE;`.*role of SUPABASE_DB_URL"),
        (
            "nowhere",
            r"does not exist \(42P01\): check --import_table; the tables to be seen are .*ratings, slow, twice",
        ),
    ],
)
def test_a_table_that_cannot_be_read_whole_is_refused(database, read, tmp_path, table, message):
    with pytest.raises(SupabaseError, match=rf"^cannot read table public\.{table}: .*{message}"):
        read(table, as_reader(database))
    assert not list(tmp_path.iterdir())


def test_a_missing_grant_names_the_statement_that_mends_it(database, read):
    with pytest.raises(SupabaseError, match=r"permission denied for table Not Granted \(42501\)") as caught:
        read("Not Granted", as_reader(database))
    statement = re.search("`(grant select on .* to import_reader;)`", str(caught.value))[1]
    with database.connect() as connection:
        connection.execute(statement)
    assert len(read("Not Granted", as_reader(database))[0]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((f":{PASSWORD}@", f":{PASSWORD}x@"), 'failed for user "import_reader": check the password in SUPABASE_DB_URL'),
        (("/test_", "/no_"), 'database "no_.*" does not exist: check the name after the last /'),
        ((r":\d+/", ":1/"), "Connection refused.*nothing listens there: check host and port"),
        (("127.0.0.1", "nowhere.invalid"), "IPv6 only; from a network without it use the session pooler's address"),
        (("sslmode=disable", "sslmode=require"), "does not support SSL.*add .sslmode=disable"),
    ],
)
def test_a_connection_that_cannot_be_had_is_one_line_without_the_password(database, read, tmp_path, change, message):
    with pytest.raises(SupabaseError, match=rf"^cannot read table public\.ratings: .*{message}") as caught:
        read("ratings", re.sub(*change, as_reader(database)))
    assert "\n" not in str(caught.value)
    library = str(Path(mf.__file__).parent)
    frames = [frame for frame, _ in traceback.walk_tb(caught.tb) if frame.f_code.co_filename.startswith(library)]
    assert len(frames) > 2
    assert all(PASSWORD not in repr(frame.f_locals) for frame in frames)
    assert not list(tmp_path.iterdir())


def test_a_connection_that_breaks_halfway_ends_in_one_line_and_leaves_what_was_there(
    database, read, tmp_path, monkeypatch
):
    before = read("ratings")
    check_rows, ended = direct.check_rows, []

    def end_backend(*rows):
        if not ended:
            with database.connect() as connection:
                query = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'mf'"
                ended.append(connection.execute(query).fetchall())
        return check_rows(*rows)

    monkeypatch.setattr(direct, "check_rows", end_backend)
    with pytest.raises(SupabaseError, match=r"^cannot read table public\.many: .* was lost: run it again$"):
        read("many")
    assert ended == [[(True,)]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ratings.parquet", "rejects.csv"]
    assert read_ratings(tmp_path / "ratings.parquet")[1] == before[1]
    monkeypatch.undo()
    assert read("many")[1].rows_kept == 1_200_000


def test_too_many_bad_rows_write_nothing(read, tmp_path):
    with pytest.raises(DataError, match=r"^table public\.kinds: 5 of 6 rows are bad .*row user_id=film, movie_id=2: "):
        read("kinds", timestamp_column="seen")
    assert not list(tmp_path.iterdir())
