"""Clicks, plays and purchases: from a CSV or a table without ratings to lists from SQL, on real servers."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kfp.local import subprocess_task_handler
from targets import api, direct, rest
from test_gate import Project, in_this_process

from mf.__main__ import main
from mf.errors import DataError
from mf.ingest import ingest
from mf.local import LocalSupabase
from mf.ratings.config import IngestConfig
from mf.ratings.schema import MOVIE, USER, read_ratings
from mf.supabase.client import call
from mf.supabase.config import SchemaConfig
from mf.supabase.recommend import recommend_from_ratings, recommend_movies, similar_movies
from mf.supabase.runs import list_runs, rollback, table
from mf.supabase.schema import migration

USERS, ITEMS, GROUPS = 240, 160, 4
TABLE = """
create table public.plays (user_id bigint, item_id bigint, played_at timestamptz, plays integer,
  primary key (user_id, item_id));
grant select on public.plays to service_role;
"""
SCHEMA = SchemaConfig(ratings_table="plays", movie_column="item_id", rating_column="none")


def planted() -> list[tuple[int, int, int, int]]:
    """User, item, seconds, plays: users prefer the items of their group five to one, whatever is popular."""
    rng = np.random.default_rng(0)
    group, kind, popularity = (
        rng.integers(0, GROUPS, USERS),
        rng.integers(0, GROUPS, ITEMS),
        rng.exponential(size=ITEMS),
    )
    rows = []
    for user in range(USERS):
        weight = popularity * np.where(kind == group[user], 5, 1)
        for item in rng.choice(ITEMS, rng.integers(8, 40), replace=False, p=weight / weight.sum()):
            rows.append((user, int(item), 1_600_000_000 + int(rng.integers(10**7)), int(rng.integers(1, 20))))
    return rows


@pytest.fixture(scope="module")
def project(fresh_stack: Callable[..., LocalSupabase], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess_task_handler, "run_local_subprocess", in_this_process)
        yield Project(fresh_stack(), tmp_path_factory.mktemp("clicks"))


@pytest.fixture(scope="module")
def clicks(project: Project) -> Path:
    file = project.folder / "clicks.csv"
    rows = planted()
    # A pair that occurs again counts once.
    lines = [",".join(map(str, row)) for row in [*rows, *rows[:50]]]
    file.write_text("\n".join(["user,item,timestamp,plays", *lines]) + "\n")
    return file


@pytest.fixture(scope="module")
def outcome(project: Project, clicks: Path) -> Any:
    """The pipeline from the file, and then the training part's and the validation part's clicks in a table."""
    project.supabase.migrate(TABLE)
    project.supabase.migrate(migration(SCHEMA))
    done = project.run("first", clicks, rating_column="none", relevance_threshold="4", init_from="published")
    with project.supabase.connect() as connection, connection.cursor().copy("copy public.plays from stdin") as copy:
        for row in known(project).to_pylist():
            copy.write_row((row[USER], row[MOVIE], row["rated_at"], 1))
    return done


def outputs(project: Project, name: str = "first") -> Path:
    (folder,) = (project.folder / name).glob("mf-training-*")
    return folder


def part(project: Project, name: str) -> pa.Table:
    return pq.read_table(next((outputs(project) / "split").glob(f"{name}_ratings*")))


def known(project: Project) -> pa.Table:
    return pa.concat_tables([part(project, "train"), part(project, "validation")])


def test_the_lists_of_sql_beat_popularity_on_held_out_clicks(project: Project, outcome: Any) -> None:
    test, seen = part(project, "test").to_pylist(), known(project).to_pylist()
    popular = np.bincount([row[MOVIE] for row in seen], minlength=ITEMS)
    own: dict[int, set[int]] = {}
    for row in seen:
        own.setdefault(row[USER], set()).add(row[MOVIE])
    ours = theirs = 0
    with api(project.supabase) as client:
        for user in sorted({row[USER] for row in test}):
            wanted = {row[MOVIE] for row in test if row[USER] == user}
            rows = recommend_movies(client, user)
            assert own[user].isdisjoint(row.movie_id for row in rows)
            assert {row.predicted_rating for row in rows} == {None}
            assert all(row.because in own[user] for row in rows)
            ours += len(wanted & {row.movie_id for row in rows})
            best = sorted(set(range(ITEMS)) - own[user], key=lambda item: -popular[item])[:10]
            theirs += len(wanted & set(best))
    assert ours > 1.3 * theirs > 0
    lists = outcome.evaluation["ranking"]
    assert lists["model"]["ndcg"] > 1.3 * lists["popularity"]["ndcg"]
    points = [point["model"]["ndcg"] for point in outcome.evaluation["cold_start_curve"]["points"]]
    assert points[0] > 0.9 * lists["popularity"]["ndcg"]
    assert points[-1] > lists["popularity"]["ndcg"]


def test_nothing_speaks_of_predicted_ratings(project: Project, outcome: Any) -> None:
    texts = {path.name: path.read_text() for path in outputs(project).rglob("*") if path.suffix in (".html", ".json")}
    texts["printed"], texts["decision"] = outcome.printed, outcome.evaluation["decision"]["checks"]
    unused = "ingest    without ratings there is no star model: solver, solver_options, factors, epochs, "
    assert unused in texts["printed"]
    texts["printed"] = "\n".join(line for line in outcome.printed.splitlines() if not line.startswith(unused))
    assert len(texts) >= 4
    for name, text in texts.items():
        without_null = str(text).lower().replace('"rmse": null', "").replace("_rmse", "").replace("rmse_difference", "")
        assert "rmse" not in without_null, name
    assert [check["name"] for check in outcome.evaluation["decision"]["checks"]] == [
        "finite", "lists", "champion_lists", "min_rows", "min_users", "min_movies",
    ]  # fmt: skip
    assert outcome.evaluation["ranking"]["relevance_threshold"] is None
    model = next((outputs(project) / "train").glob("model*"))
    assert {path.name for path in model.iterdir()} == {"model.json", "movie_ranking.parquet", "user_ranking.parquet"}
    card = json.loads((model / "model.json").read_text())
    assert [card[name] for name in ("mu", "rating_min", "rating_max", "solver")] == [None] * 4


def test_the_views_have_every_row_with_nulls_and_both_connections_read_the_run_back(
    project: Project, outcome: Any
) -> None:
    items = len(known(project)[MOVIE].unique())
    with project.supabase.connect() as connection:
        for view, ids in (("user_embeddings", USERS), ("movie_embeddings", items)):
            query = f"select count(*), count(bias), count(embedding) from public.{view}"
            assert connection.execute(query).fetchone() == (ids, 0, 0)
        stored = connection.execute("select mu, rating_min, rating_max, factors from public.mf_runs").fetchone()
        assert stored == (None, None, None, 64)
    rankings = []
    for target in (rest(project.supabase), direct(project.supabase)):
        run = target.published_run()
        assert run
        assert (run.header.has_stars, run.header.mu, run.users, run.movies) == (False, None, USERS, items)
        with pytest.raises(DataError, match="was trained without ratings: it has no star model, only lists"):
            target.embeddings(run)
        rankings.append(target.ranking(run))
    order = [np.argsort(ranking.movie_ids.to_pylist()) for ranking in rankings]
    np.testing.assert_array_equal(*(one.embedding[at] for one, at in zip(rankings, order, strict=True)))


def test_a_new_user_is_folded_in_by_the_items_alone(project: Project, outcome: Any) -> None:
    mine = [row[MOVIE] for row in known(project).to_pylist() if row[USER] == 7]
    with api(project.supabase) as client:
        without = recommend_from_ratings(client, dict.fromkeys(mine))
        assert [(row.movie_id, row.predicted_rating) for row in without] == [
            (row.movie_id, None) for row in recommend_movies(client, 7)
        ]
        assert recommend_from_ratings(client, dict.fromkeys(mine, 5.0)) == without
        assert len(similar_movies(client, mine[0])) == 10
        assert [row.because for row in recommend_movies(client, -1)] == [None] * 10


def test_the_next_run_is_compared_by_lists_and_a_star_run_is_rolled_back_to_and_from(
    project: Project, outcome: Any, clicks: Path
) -> None:
    again = project.run("again", clicks, direct=True)  # recognised by its columns
    champion = again.evaluation["champion"]
    assert champion["figures"] is None
    assert (champion["lists"]["clean"], champion["lists"]["difference"]) == (True, pytest.approx(0, abs=1e-6))
    assert champion["note"].startswith("clean: the published run was trained on the same")
    stars = project.folder / "stars.csv"
    rng = np.random.default_rng(1)
    level = rng.normal(0, 0.8, ITEMS)
    lines = [f"{u},{i},{3 + level[i] + rng.normal(0, 0.3):.2f}" for u, i, *_ in planted()]
    stars.write_text("\n".join(["user,item,rating", *lines]) + "\n")
    rated = project.run("stars", stars, init_from="published", solver="sgd", force_publish=True)
    assert (
        f"ingest    the published run {again.published} has no star model: training starts from scratch"
        in rated.printed
    )
    assert rated.evaluation["champion"]["figures"] is None
    assert rated.runs[rated.published] == "published"
    assert rated.published != again.published
    with api(project.supabase) as client:
        listed = table(list_runs(client)).splitlines()
        assert "ratings, lists" in listed[1]
        assert " lists " in listed[2].replace("ratings, lists", "")
        assert all(row.predicted_rating is not None for row in recommend_movies(client, 7))
        rollback(client, again.published)
        assert {row.predicted_rating for row in recommend_movies(client, 7)} == {None}
        rollback(client, rated.published)
        assert all(row.predicted_rating is not None for row in recommend_movies(client, 7))


@pytest.mark.parametrize("connection", ["API", "direct"])
@pytest.mark.parametrize("how", ["by itself", "none"])
def test_a_table_of_plays_is_read_over_both_connections(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connection: str, how: str
) -> None:
    extra = "" if how == "by itself" else ", rating text"
    project.supabase.migrate(
        "drop table if exists public.listens cascade;"
        "create table public.listens (id bigint primary key, u text, item_id uuid, created_at timestamptz, plays int"
        f"{extra}); insert into public.listens (id, u, item_id, created_at, plays)"
        "  select i, 'u' || i % 5, md5((i % 3)::text)::uuid, '2026-01-01'::timestamptz + i * interval '1 h', i % 4"
        "  from generate_series(1, 12) i;"
        "create view public.plain as select u, item_id, created_at, plays from public.listens;"
        "grant select on public.listens, public.plain to service_role; notify pgrst, 'reload schema'"
    )
    monkeypatch.delenv("SUPABASE_DB_URL", raising=False)
    monkeypatch.setenv("SUPABASE_URL", project.supabase.url)
    monkeypatch.setenv("SUPABASE_KEY", project.supabase.secret_key)
    if connection == "direct":
        monkeypatch.setenv("SUPABASE_DB_URL", project.supabase.db_url)
    options: dict[str, Any] = {"import_table": "plain", "key_columns": "created_at"}
    if how == "none":
        options = {"import_table": "listens", "rating_column": "none"}
    config = IngestConfig.of(user_column="u", max_reject_fraction=0.5, **options)
    provenance = ingest(config, tmp_path / "r.parquet", tmp_path / "bad.csv", for_training=True)
    read, _ = read_ratings(tmp_path / "r.parquet")
    assert read.column_names == ["user_id", "movie_id", "rated_at"]
    assert (provenance.rows_kept, provenance.rows_rejected) == (9, 3)  # played 0 times
    assert '0"" is not above 0' in (tmp_path / "bad.csv").read_text()


def test_the_command_trains_publishes_and_says_what_it_does_not_use(
    project: Project, clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUPABASE_URL", project.supabase.url)
    monkeypatch.setenv("SUPABASE_KEY", project.supabase.secret_key)
    monkeypatch.delenv("SUPABASE_DB_URL", raising=False)
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "model.pt").write_text("of an earlier star model")
    project.supabase.migrate("truncate public.mf_runs cascade")
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    header, *lines = clicks.read_text().splitlines()
    lines = [*dict.fromkeys(lines)]
    train.write_text("\n".join([header, *(line for at, line in enumerate(lines) if at % 7)]))
    test.write_text("\n".join([header, *lines[::7]]))
    main(
        ["--rating_column", "none", "--ratings_csv", str(train), "--test_csv", str(test), "--factors", "8", "--publish"]
    )
    printed = capsys.readouterr().out
    assert (
        "no ratings, so no star model, no epochs and no RMSE: the ranking model is trained; not used: --factors"
        in printed
    )
    assert "epoch 1" not in printed
    assert "test NDCG@10 0." in printed
    assert "test RMSE" not in printed
    assert not (tmp_path / "output" / "model.pt").exists()
    with api(project.supabase) as client:
        assert call(client.table("mf_runs").select("mu,status"), "read") == [{"mu": None, "status": "published"}]
    for name in ("rating", "ranking"):
        same = tmp_path / "same.csv"
        same.write_text("user,item,rating\n" + "".join(f"{u},{i},1\n" for u in range(9) for i in range(9)))
        with pytest.raises(SystemExit) as end:
            main(
                ["--ratings_csv", str(same)]
                if name == "rating"
                else ["--ratings_csv", str(clicks), "--ranking", "none"]
            )
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert (
            "use rating_column=none" if name == "rating" else "ranking=none without ratings leaves no model"
        ) in said
        assert said.count("error:") == 1
