"""Lists of an app: fresh ratings, an items table with filters, embedded titles, popular movies, forgotten users."""

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg
import pyarrow as pa
import pytest
from supabase import Client
from targets import api, direct, rest
from trained import MOVIES, UNSEEN, Trained, train_groups

from mf.errors import SupabaseError
from mf.fold_in import fold_in, prior
from mf.local import LocalSupabase
from mf.local.tools import default_cache, supabase_js
from mf.model_directory import read_model
from mf.supabase.client import call
from mf.supabase.config import ExportConfig, SchemaConfig
from mf.supabase.recommend import (
    forget_user,
    pages,
    popular_movies,
    recommend_from_ratings,
    recommend_movies,
    similar_movies,
)
from mf.supabase.schema import migration

GENRES = ("drama", "comedy", "war")  # of every hundred movies 60, 39 and 1
SCHEMA = SchemaConfig(
    user_id_type="uuid",
    ratings_table="ratings",
    items_table="movies",
    items_where="in_stock and not coalesce(hidden, false)",
    items_filter="genre, year",
    public_read="movies",
)
SETUP = """
create table public.movies (
  id integer primary key, title text not null, genre text, year integer, in_stock boolean default true, hidden boolean);
alter table public.movies enable row level security;
create policy visible on public.movies for select to anon, authenticated using (title <> 'secret');
grant select on public.movies to anon, authenticated;
create table public.ratings (
  user_id uuid not null, movie_id integer not null, rating numeric, created_at timestamptz default now());
create index on public.ratings (user_id);
alter table public.ratings enable row level security;
"""


def user(number: int) -> str:
    return str(uuid.UUID(int=number))


def genre(movie: int) -> str:
    return GENRES[(movie // 3 % 100 >= 60) + (movie // 3 % 100 == 99)]


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train_groups(user)


@pytest.fixture(scope="module")
def directory(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model"
    trained.model.save(path)
    return path


@pytest.fixture(scope="module")
def database(fresh_stack, trained: Trained, directory: Path) -> LocalSupabase:
    database = fresh_stack(legacy_grants=False)
    with database.connect() as connection:
        connection.execute(SETUP)
        with connection.cursor().copy("copy public.movies (id, title, genre, year) from stdin") as copy:
            for movie in [*range(0, 3 * MOVIES, 3), UNSEEN]:
                copy.write_row((movie, f"movie {movie}", genre(movie), 1980 + movie % 7))
        with connection.cursor().copy("copy public.ratings (user_id, movie_id, rating) from stdin") as copy:
            for row in trained.ratings.to_pylist():
                copy.write_row(tuple(row.values()))
    database.migrate(migration(SCHEMA))
    rest(database).export(directory, ExportConfig())
    return database


@pytest.fixture(scope="module")
def client(database: LocalSupabase):
    with api(database) as client:
        yield client


@pytest.fixture
def sql(database: LocalSupabase):
    """Runs SQL; what it changes in the app's tables is undone after the test."""
    with database.connect() as connection:
        kept = {
            table: connection.execute(f"select * from public.{table}").fetchall() for table in ("movies", "ratings")
        }

        def run(text: str, *values: Any) -> list[tuple[Any, ...]]:
            found = connection.execute(text, values)
            return found.fetchall() if found.description else []

        yield run
        for table, rows in kept.items():
            connection.execute(f"truncate public.{table}")
            with connection.cursor().copy(f"copy public.{table} from stdin") as copy:
                for row in rows:
                    copy.write_row(row)


def rate(sql: Any, who: str, ratings: Mapping[int, float | Decimal | None]) -> None:
    for movie, rating in ratings.items():
        sql("insert into public.ratings (user_id, movie_id, rating) values (%s, %s, %s)", who, movie, rating)


def check(answer: list[Any], expected: list[tuple[int, float, int | None]]) -> None:
    assert [(row.movie_id, row.because) for row in answer] == [(movie, why) for movie, _, why in expected]
    scores = [score for _, score, _ in expected]
    atol = 1e-5 * max(1.0, *map(abs, scores))
    np.testing.assert_allclose([row.score for row in answer], scores, rtol=0, atol=atol)


def ids(answer: list[Any]) -> list[int]:
    return [row.movie_id for row in answer]


def as_user(database: LocalSupabase, who: str, path: str, body: dict[str, Any]) -> httpx.Response:
    headers = {"apikey": database.publishable_key, "Authorization": f"Bearer {database.user_token(who)}"}
    return httpx.post(f"{database.url}/rest/v1{path}", json=body, headers=headers, trust_env=False)


def test_somebody_new_gets_a_personal_list_from_the_table_and_the_same_from_ratings(
    database, client: Client, trained: Trained, directory: Path, sql
) -> None:
    who = user(900)
    ratings = dict(zip(trained.ranking.movies.ids.to_pylist()[:4], (5.0, 0.5, 4.0, 3.5), strict=True))
    assert recommend_movies(client, who, 5)[0].score == pytest.approx(trained.best({}, 1)[0][1], abs=1e-5)
    rate(sql, who, ratings)
    answer = recommend_movies(client, who, 20)
    check(answer, trained.best(ratings, 20))
    assert answer == recommend_from_ratings(client, ratings, 20)
    own = as_user(database, who, "/rpc/recommend_for_me", {"k": 20}).json()
    assert own == [row._asdict() for row in answer]
    # The star model does not know this user: its rating is the fold-in's.
    model = read_model(directory)
    rows, stars = model.movies.rows(pa.array([*ratings])), np.array([*ratings.values()])
    rows, stars = rows[rows >= 0], stars[rows >= 0]
    p, b_u = fold_in(
        model.movies.vectors[rows], model.movies.bias[rows], stars, model.header.mu,
        prior(model.users.vectors, model.users.bias, model.noise_variance),
    )  # fmt: skip
    at = model.movies.rows(pa.array(ids(answer)))
    expected = model.header.mu + b_u + np.where(at < 0, 0, model.movies.bias[at] + model.movies.vectors[at] @ p)
    np.testing.assert_allclose([row.predicted_rating for row in answer], expected, atol=1e-4)


def test_one_star_for_the_top_five_moves_the_list_at_once(client: Client, trained: Trained, sql) -> None:
    who = user(20)
    before = recommend_movies(client, who, 10)
    stars = dict.fromkeys(ids(before)[:5], 1.0)
    rate(sql, who, stars)
    after = recommend_movies(client, who, 10)
    check(after, trained.best(trained.own(who) | stars, 10))
    assert abs(after[0].score - before[5].score) > 0.01
    predicted = trained.model.predict(pa.array([who] * 10), pa.array(ids(after)))
    np.testing.assert_allclose([row.predicted_rating for row in after], predicted, atol=1e-5)


def test_ratings_that_training_would_not_take_only_leave_their_movie_out(client: Client, trained: Trained, sql) -> None:
    who, good = user(901), {3: 4.5, 60: 1.0}
    bad = {6: 9.0, 9: -1.0, 12: None, 15: float("nan"), 18: 1e300, 21: 2.0, 24: Decimal("1e400"), 27: Decimal("1e-400")}
    rate(sql, who, good | bad)
    sql("update public.mf_runs set ignore_ratings = '{2}'")
    try:
        left = [row for row in trained.best(good, 40) if row[0] not in bad][:20]
        check(recommend_movies(client, who, 20), left)
        assert {*bad} <= {*ids(recommend_movies(client, who, 1000, exclude_rated=False))}
        same = recommend_from_ratings(client, good | {21: 2.0}, 1000)
        assert 21 not in ids(same)
        assert [row.score for row in same if row.movie_id not in bad][:20] == [
            row.score for row in recommend_movies(client, who, 20)
        ]
    finally:
        sql("update public.mf_runs set ignore_ratings = '{}'")


def test_of_several_ratings_of_a_movie_the_newest_counts_and_recency_weights_by_place(
    client: Client, trained: Trained, sql
) -> None:
    who, ranking = user(902), trained.ranking
    movies = ranking.movies.ids.to_pylist()[:60]
    stars = np.random.default_rng(0).choice([0.5, 2.0, 3.5, 5.0], 60)
    times = np.arange(60) // 2  # two at a time
    for movie, star, time in zip(movies, stars.tolist(), times.tolist(), strict=True):
        for rating, days in ((1.0, 100), (star, 0)):
            when = f"2026-01-01T00:00:00Z', '{time} hours', '{days} days"
            sql(f"insert into public.ratings values (%s, %s, %s, timestamptz '{when[:20]}' "
                f"+ interval '{time} hours' - interval '{days} days')", who, movie, rating)  # fmt: skip
    check(recommend_movies(client, who, 20), trained.best(dict(zip(movies, stars.tolist(), strict=True)), 20))
    sql("update public.mf_runs set ranking = jsonb_set(ranking, '{recency}', 'true')")
    try:
        answer = recommend_movies(client, who, 20)
    finally:
        sql("update public.mf_runs set ranking = jsonb_set(ranking, '{recency}', 'false')")
    model = replace(ranking.model, recency=True)
    rows = ranking.movies.rows(pa.array(movies))
    scores = model.scores(model.user_vector(rows, stars, times)[None])[0]
    scores[rows] = -np.inf
    best = np.argsort(-scores, kind="stable")[:20]
    because = model.because(best, rows, stars, times)
    all_ids = ranking.movies.ids.to_pylist()
    check(answer, [(all_ids[i], float(scores[i]), all_ids[j]) for i, j in zip(best, because, strict=True)])


FEW = {"3000": "5"}  # movies that a filter leaves are read by key up to this number
OLDER = {"current_setting('hnsw.iterative_scan', true) is not null": "false"}  # pgvector 0.7


@pytest.mark.parametrize(
    ("indexed", "changed"), [(False, {}), (False, FEW), (True, {}), (True, FEW), (True, FEW | OLDER)]
)
def test_lists_are_chosen_before_the_limit_and_never_short(
    client: Client, trained: Trained, sql, indexed: bool, changed: dict[str, str]
) -> None:
    who = user(30)
    if indexed:
        call(client.rpc("mf_index", {"run": trained.model.run_id}), "index")
    ((nearest,),) = sql("select pg_get_functiondef('public.mf_nearest'::regproc)")
    other = nearest
    for part, by in changed.items():
        assert part in nearest
        other = other.replace(part, by)
    sql(other.replace("%", "%%"))
    try:
        rated = trained.own(who)
        full = trained.best(rated, len(trained.ranking.movies) - len(rated))

        def ask(k: int = 10, **arguments: Any) -> list[int]:
            chosen = {name: arguments.pop(name) for name in ("genre", "year") if name in arguments}
            return ids(recommend_movies(client, who, k, filters=chosen, **arguments))

        for name in GENRES:
            expected = [movie for movie, *_ in full if genre(movie) == name]
            for k in (3, 1000):
                assert ask(k, genre=name) == expected[:k], (name, k)
        assert ask(genre="war", year=1982) == [m for m, *_ in full if genre(m) == "war" and 1980 + m % 7 == 1982][:10]
        assert ask(genre="none") == []
        assert ask(genre="x' or true --") == []
        # The first 300 of the list are out of stock, hidden or deleted, all but one.
        gone = [movie for movie, *_ in full[:300]]
        sql("update public.movies set in_stock = false where id = any (%s)", gone[:100])
        sql("update public.movies set hidden = true where id = any (%s)", gone[100:200])
        sql("delete from public.movies where id = any (%s)", gone[200:299])
        assert ask() == [gone[299], *(movie for movie, *_ in full[300:309])]
        assert ask(only_ids=[*gone[250:], full[400][0]]) == [gone[299], full[400][0]]
        assert ask(5, without_ids=[gone[299], None]) == [movie for movie, *_ in full[300:305]]
        assert ask(4, skip=3) == ask(7)[3:]
        left = {*trained.ranking.movies.ids.to_pylist()} - {*gone[:299]}
        for movie in (full[310][0], *[movie for movie in rated if rated[movie] > 4][:3]):
            near = similar_movies(client, movie, 50)
            assert len(near) == 50
            assert not {*ids(near)} & {*gone[:299]}
            for name in GENRES:
                answer = similar_movies(client, movie, 9, filters={"genre": name})
                assert {genre(row.movie_id) for row in answer} == {name}
                assert len(answer) == min(9, len([m for m in left if genre(m) == name and m != movie]))
        assert not {*gone[:299]} & {*ids(popular_movies(client, 1000))}
    finally:
        sql(nearest.replace("%", "%%"))
        if indexed:
            call(client.rpc("mf_drop_indexes", {"run": trained.model.run_id}), "drop")


def test_popular_movies_are_those_with_the_most_ratings(database, client: Client, trained: Trained) -> None:
    counts = {row["values"]: row["counts"] for row in trained.ratings["movie_id"].value_counts().to_pylist()}
    del counts[UNSEEN]  # the star model's part of the ratings has it not
    order = sorted(counts, key=lambda movie: (-counts[movie], movie))
    headers = {"apikey": database.publishable_key}
    answer = httpx.post(f"{database.url}/rest/v1/rpc/popular_movies", json={"k": 9, "skip": 2}, headers=headers,
                        trust_env=False).json()  # fmt: skip
    assert [(row["movie_id"], row["ratings"]) for row in answer] == [(m, counts[m]) for m in order[2:11]]
    wars = [movie for movie in order if genre(movie) == "war"]
    assert [(row.movie_id, row.ratings) for row in popular_movies(client, 4, skip=1, filters={"genre": "war"})] == [
        (movie, counts[movie]) for movie in wars[1:5]
    ]
    with pytest.raises(SupabaseError, match="k is 1001, expected a number of movies from 0 to 1000"):
        popular_movies(client, 1001)


def test_titles_come_with_the_list_under_the_items_tables_row_level_security(database, client: Client, sql) -> None:
    who = user(20)
    first, second = ids(recommend_movies(client, who, 2))
    sql("update public.movies set title = 'secret' where id = %s", second)
    select = "movie_id,predicted_rating,movies(title,genre),because_of(id)"
    rows = call(client.rpc("recommend_movies", {"for_user": who, "k": 2}).select(select), "recommend")
    assert rows[1]["movies"] == {"title": "secret", "genre": genre(second)}
    assert all(row["because_of"]["id"] in ids_of(sql, who) for row in rows)
    own = as_user(database, who, f"/rpc/recommend_for_me?select={select}", {"k": 2}).json()
    assert own[0]["movies"] == {"title": f"movie {first}", "genre": genre(first)}
    assert (own[1]["movie_id"], own[1]["movies"]) == (second, None)
    for function, body in (("similar_movies", {"for_movie": first}), ("popular_movies", {}),
                           ("recommend_from_ratings", {"ratings": []})):  # fmt: skip
        rows = as_user(database, who, f"/rpc/{function}?select=movie_id,movies(title)", body | {"k": 3}).json()
        assert [row["movies"]["title"] for row in rows] == [f"movie {row['movie_id']}" for row in rows]


def ids_of(sql: Any, who: str) -> set[int]:
    return {movie for (movie,) in sql("select movie_id from public.ratings where user_id = %s", who)}


SCRIPT = """
const bundle = require('fs').readFileSync(process.argv[1], 'utf8') // a script for browsers
const { createClient } = new Function(bundle + '; return supabase')()
const [url, key, token] = process.argv.slice(2)
const supabase = createClient(url, key, {
  global: { headers: { Authorization: `Bearer ${token}` } }, realtime: { transport: class {} } })
supabase.rpc('recommend_for_me', { k: 3, genre: 'comedy' }).select('predicted_rating, movies(title, genre)')
  .then((answer) => console.log(JSON.stringify(answer)))
"""


def test_supabase_js_gets_titles_in_one_request(database) -> None:
    node = shutil.which("node")
    if node is None and os.environ.get("CI"):
        pytest.fail("this machine has no node, expected Debian's package nodejs")
    if node is None:
        pytest.skip("this machine has no node")
    arguments = [
        str(supabase_js(default_cache())),
        database.url,
        database.publishable_key,
        database.user_token(user(20)),
    ]
    answer = subprocess.run([node, "-e", SCRIPT, *arguments], capture_output=True, text=True, timeout=900)
    assert not answer.returncode, answer.stderr
    found = json.loads(answer.stdout)
    assert found["error"] is None
    assert [row["movies"]["genre"] for row in found["data"]] == ["comedy"] * 3
    assert set(found["data"][0]) == {"predicted_rating", "movies"}


def test_a_forgotten_user_is_gone_from_all_runs_and_no_running_export_brings_it_back(
    fresh_stack, trained: Trained, directory: Path, tmp_path: Path
) -> None:
    database = fresh_stack(max_rows=50)
    database.migrate(migration(SchemaConfig(user_id_type="uuid")))
    later = replace(trained.model, run_id="later")
    later.save(tmp_path / "later")
    last = replace(trained.model, run_id="last")
    last.save(tmp_path / "last")
    tables = ("mf_user_embeddings", "mf_user_ranking")

    def rows(who: str) -> list[int]:
        with database.connect() as connection:
            counted = [f"(select count(*) from public.{table} where user_id = %(who)s)" for table in tables]
            return list(connection.execute(f"select {', '.join(counted)}", {"who": who}).fetchone())

    with api(database) as client:
        rest(database).export(directory, ExportConfig())
        reading = pages(client, "user", trained.model.run_id)
        read = len(next(reading))
        # While an export through the API runs: one user after its rows were written, one before.
        seen: list[str] = []

        def forget(request: Any) -> None:
            if seen or "/mf_load_user_ranking" not in request.path:
                return
            seen.append("now")
            with database.connect() as connection:
                for number in (100, 101):
                    connection.execute("select public.mf_forget_user(%s)", [user(number)])

        database.gateway.faults.append(forget)
        assert rest(database).export(tmp_path / "later", ExportConfig(rows_per_request=40, clients=1)).changed
        database.gateway.faults.clear()
        assert seen
        assert forget_user(client, user(102)) == 4
        assert [rows(user(number)) for number in (100, 101, 102)] == [[0, 0]] * 3
        # Reading goes on, and so does an export over the direct connection, which copies all rows.
        assert read + sum(map(len, reading)) == len(trained.model.users) - 3
        run = rest(database).published_run()
        assert run
        for target in (rest(database), direct(database)):
            users, _ = target.embeddings(run)
            assert len(users) == run.users == len(trained.model.users) - 3
            ranking = target.ranking(run)
            assert ranking
            assert len(ranking.user_ids) == len(trained.ranking.users) - 3
        assert direct(database).export(tmp_path / "last", ExportConfig()).changed
        assert [rows(user(number)) for number in (100, 101, 102)] == [[0, 0]] * 3
        assert call(client.rpc("mf_rollback", {}), "roll back")["run_id"] == "later"
        assert [rows(user(number)) for number in (100, 101, 102)] == [[0, 0]] * 3
        assert rows(user(50)) == [2, 2]
        again = call(client.rpc("mf_forget_user", {"forget": user(102)}), "forget")
        assert again == {"user_id": user(102), "rows": 0}


def test_an_account_that_is_deleted_is_forgotten_by_a_trigger(database, trained: Trained) -> None:
    with database.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute("insert into auth.users (id) values (%s)", [user(33)])
        page = Path("docs/erasure.md").read_text()
        connection.execute(page.split("```sql\n")[2].split("```")[0].encode())
        connection.execute("delete from auth.users")
        left = connection.execute("select count(*) from public.mf_user_embeddings where user_id = %s", [user(33)])
        assert left.fetchone() == (0,)


def test_a_table_that_the_migrations_owner_cannot_read_is_refused_and_a_later_policy_says_so(fresh_stack) -> None:
    database = fresh_stack(legacy_grants=False)
    with database.connect() as connection:
        connection.execute("create role weak; grant create, usage on schema public to weak; grant weak to postgres")
        connection.execute("grant usage on schema extensions, auth to weak")
        connection.execute("create table public.ratings (user_id bigint, movie_id bigint, rating real)")
        connection.execute("alter table public.ratings enable row level security")
        try:
            denied = {
                "select 1": "it lacks the right to select",
                "grant select on public.ratings to weak": "row-level security applies to it",
            }
            for grant, said in denied.items():
                connection.execute(grant.encode())
                connection.execute("set role weak")
                with pytest.raises(psycopg.Error, match=f"cannot read all rows of public.ratings: {said}"):
                    connection.execute(migration(SchemaConfig(ratings_table="ratings")).encode())
                connection.execute("rollback; reset role")
        finally:
            connection.execute("rollback; reset role; drop owned by weak; drop role weak")


GONE = "the table of ratings is no longer the public.ratings that the migration was applied to"
DROPPED = "the view mf_items, of the movies to choose from, was dropped: apply the migration again"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("alter table public.ratings rename to votes", GONE),
        ("alter table public.ratings rename column rating to stars", GONE),
        ("alter table public.ratings drop column movie_id", GONE),
        ("alter table public.ratings alter rating type text", GONE),
        (
            "alter table public.movies drop column genre cascade",
            DROPPED,
        ),
        ("drop table public.movies cascade", DROPPED),
    ],
)
def test_a_table_that_changed_after_the_migration_is_named(database, change: str, said: str) -> None:
    with database.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute(change.encode())
        calls = ["recommend_movies(%(who)s)"]
        if said == DROPPED:
            calls += ["similar_movies(3)", "popular_movies()", "recommend_from_ratings('[]')"]
        for call_ in calls:
            with pytest.raises(psycopg.Error, match=said), connection.transaction():
                connection.execute(f"select * from public.{call_}", {"who": user(20)})


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_public_lists_that_row_level_security_would_empty_are_refused_with_the_policy_to_create(database, role) -> None:
    sql = migration(SCHEMA).replace("begin;\n", "", 1).removesuffix("commit;\n").encode()
    with database.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute(f"alter policy visible on public.movies to {role}".encode())
        with pytest.raises(psycopg.Error, match="would get empty lists; run: ") as error, connection.transaction():
            connection.execute(sql)
        assert f"no policy for {'anon' if role == 'authenticated' else 'authenticated'}," in str(error.value)
        connection.execute(str(error.value).split("; run: ")[1].splitlines()[0].encode())
        connection.execute(sql)
        connection.execute("set local role anon")
        assert len(connection.execute("select * from public.popular_movies()").fetchall()) == 10


ODD = """
create table public.films (id numeric, data json, genre text);
insert into public.films (id, genre) select id, genre from public.movies where id > 3
  union all select odd, 'war' from unnest(array[6.4, 1e30, 'NaN', null]) odd;
create table public.stars (user_id uuid, movie_id numeric, rating boolean, score numeric, at json);
insert into public.stars (user_id, movie_id, score) select user_id, movie_id, rating from public.ratings
  union all select uuid '00000000-0000-0000-0000-000000000014', odd, 5 from unnest(array[6.4, 1e30, 'NaN', null]) odd
"""


def test_ids_of_a_numeric_column_are_those_that_bigint_has_and_columns_that_cannot_be_compared_are_refused(
    database, trained: Trained
) -> None:
    who = user(20)
    expected = [(m, score, why) for m, score, why in trained.best(trained.own(who), 21) if m > 3][:20]
    odd = {"user_id_type": "uuid", "ratings_table": "stars", "rating_column": "score", "items_table": "films"}
    with database.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute(ODD)

        def migrate(**options: str) -> None:
            sql = migration(SchemaConfig(**odd | options))
            connection.execute(sql.replace("begin;\n", "", 1).removesuffix("commit;\n").encode())

        for options, said in (
            ({"time_column": "at"}, "public.stars.at is json, whose values have no order: give --time_column another"),
            ({"items_filter": "genre,data"}, "public.films.data is json, whose values cannot be compared with ="),
            (
                {"rating_column": "rating"},
                "public.stars.rating is boolean, .* give --rating_column another column, or none",
            ),
        ):
            with pytest.raises(psycopg.Error, match=said), connection.transaction():
                migrate(**options)
        migrate(items_filter="genre")
        rows = connection.execute("select movie_id, because from public.recommend_movies(%s, 20)", [who]).fetchall()
        assert rows == [(movie, because) for movie, _, because in expected]
        wars = connection.execute("select movie_id from public.recommend_movies(%s, 1000, genre => 'war')", [who])
        assert {genre(movie) for (movie,) in wars.fetchall()} == {"war"}


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("year > random()", "items_where calls pg_catalog.random, which is volatile"),
        ("public.noisy(year)", "items_where calls public.noisy, which is volatile"),
        ("year", "must be type boolean"),
        ("nothing", 'column "nothing" does not exist'),
        ("vector is not null", 'column "vector" does not exist'),
        ("id in (select movie_id from public.ratings)", "items_where has a subquery"),
    ],
)
def test_conditions_that_would_make_lists_wrong_are_refused_and_change_nothing(database, where: str, said: str) -> None:
    with database.connect() as connection:
        connection.execute(
            "create or replace function public.noisy(n int) returns boolean language sql as 'select true'"
        )
    try:
        with pytest.raises(SupabaseError) as error:
            database.migrate(migration(SCHEMA.model_copy(update={"items_where": where})))
        assert said in str(error.value)
    finally:
        with database.connect() as connection:
            connection.execute("drop function public.noisy")
            assert connection.execute("select count(*) > 1000 from public.mf_items").fetchone() == (True,)


def test_other_options_replace_functions_and_views_in_place(database, client: Client, directory: Path) -> None:
    """The last test of the module: it changes the migration."""
    who = user(20)
    with_items = ids(recommend_movies(client, who))
    for config in (SchemaConfig(user_id_type="uuid"), SchemaConfig(user_id_type="uuid", ratings_table="ratings"),
                   SCHEMA.model_copy(update={"items_filter": "year"}), SCHEMA):  # fmt: skip
        for _ in range(2):
            database.migrate(migration(config))
        assert len(recommend_movies(client, who)) == 10
    assert ids(recommend_movies(client, who)) == with_items
