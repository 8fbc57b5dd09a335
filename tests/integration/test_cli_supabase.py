"""`python -m mf` from a table to a published model, against real PostgreSQL and PostgREST."""

import json
import os
import re
from collections.abc import Callable
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import SecretStr
from targets import pairs

from mf.__main__ import main
from mf.local import LocalSupabase
from mf.model_directory import TrainedModel
from mf.supabase import runs
from mf.supabase.client import connect
from mf.supabase.config import SchemaConfig
from mf.supabase.credentials import Credentials
from mf.supabase.recommend import published_run, recommend_movies
from mf.supabase.schema import migration

TABLE = """
create table ratings (user_id uuid, movie_id bigint, rating real, primary key (user_id, movie_id));
insert into ratings select md5(u::text)::uuid, m * 1000,
  least(5, greatest(1, 3 + (u % 5 - 2) * 0.3 + (m % 4 - 1.5) * 0.4 + (u % 2 * 2 - 1) * (m % 3 - 1) * 0.8
    + (u % 3 - 1) * (m % 5 - 2) * 0.3))
  from generate_series(1, 60) u, generate_series(1, 40) m where (u + m) % 7 > 0;
create table empty_ratings (user_id uuid, movie_id bigint, rating real, primary key (user_id, movie_id));
grant select on ratings, empty_ratings to service_role;
"""
OPTIONS = ["--factors", "4", "--solver", "vb"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def prepared(fresh_stack: Callable[..., LocalSupabase]) -> LocalSupabase:
    database = fresh_stack()
    database.migrate(migration(SchemaConfig(user_id_type="uuid")))
    database.migrate(TABLE)
    return database


@pytest.fixture
def database(prepared: LocalSupabase) -> LocalSupabase:
    with prepared.connect() as connection:
        connection.execute("truncate public.mf_runs cascade")
    prepared.gateway.requests.clear()
    return prepared


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], database: Any) -> Run:
    """Runs the command in an empty folder and gives exit status, stdout and stderr. The secret key stands in neither,
    and in no file."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SUPABASE_")]:
        monkeypatch.delenv(name)

    def run(*argv: str, **environ: str) -> tuple[int, str, str]:
        status: Any = 0
        with monkeypatch.context() as context:
            for name, value in environ.items():
                context.setenv(name, value)
            try:
                main([*OPTIONS, *argv] if argv[:1] != ("schema",) else list(argv))
            except SystemExit as ended:
                status = ended.code
        out, err = capfd.readouterr()
        written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        passwords = {"hunter2hunter2", str(re.findall(":([^:@]+)@", database.db_url)[0])}
        keys = {database.secret_key, database.service_role_key, environ.get("SUPABASE_KEY", "sb_secret_")}
        for key in keys | passwords:
            assert key not in out + err
            assert key.encode() not in written
        return status, out, err

    return run


def environment(database: LocalSupabase) -> dict[str, str]:
    return {"SUPABASE_URL": database.url, "SUPABASE_KEY": database.secret_key}


def published(database: LocalSupabase) -> dict[str, Any] | None:
    with connect(Credentials(database.url, SecretStr(database.secret_key))) as client:
        return published_run(client)


def test_a_project_in_the_environment_is_read_and_never_published_to(database: LocalSupabase, run: Run) -> None:
    status, out, err = run(**environment(database))
    assert (status, err) == (0, "")
    assert out.startswith("table public.ratings: 2,057 rows read, 0 rejected, 0 replaced")
    assert out.splitlines()[-1].startswith("model ")
    assert published(database) is None
    assert {request.method for request in database.gateway.requests} <= {"GET", "HEAD"}
    model = TrainedModel.load(Path("output"))
    assert (len(model.users), model.movies.ids.to_pylist()) == (60, [m * 1000 for m in range(1, 41)])


def test_a_named_file_takes_precedence_over_the_table(database: LocalSupabase, run: Run) -> None:
    rows = "".join(f"{u},{m},{(u * m) % 5 + 1}\n" for u in range(10) for m in range(10))
    Path("r.csv").write_text("userId,movieId,rating\n" + rows)
    status, out, _ = run("--ratings_csv", "r.csv", **environment(database))
    assert (status, out.split(":")[0]) == (0, "r.csv")
    assert database.gateway.requests == []


def test_a_training_starts_from_the_published_run_once_there_is_one(database: LocalSupabase, run: Run) -> None:
    adam = ["--solver", "adam", "--epochs", "40", "--lr", "0.03", "--batch_size", "256"]
    again = [*adam, "--init_from", "published", "--publish"]
    status, out, _ = run(*again, **environment(database))
    assert (status, out.splitlines()[0]) == (0, "no run is published yet: training starts from scratch")
    first = TrainedModel.load(Path("output"))
    # A step size of nothing at all leaves the model where it started.
    status, out, _ = run(*again, "--seed", "1", "--lr", "1e-30", **environment(database))
    assert (status, out.splitlines()[0]) == (0, f"starting from model {first.run_id}")
    second = TrainedModel.load(Path("output"))
    assert second.metrics["init_from"] == first.run_id
    ids = pa.array(first.users.ids.to_pylist() * 40), first.movies.ids.take(np.repeat(np.arange(40), 60))
    np.testing.assert_allclose(second.predict(*ids), first.predict(*ids), atol=0.2)
    # Vectors of another seed without it have nothing in common. The two splits differ, and so do the biases, whose
    # differences the products hold.
    assert float(np.corrcoef(_products(first).ravel(), _products(second).ravel())[0, 1]) > 0.98


def test_init_from_published_without_a_project_is_an_error(database: LocalSupabase, run: Run) -> None:
    Path("r.csv").write_text("userId,movieId,rating\n1,1,3\n")
    status, _, err = run("--ratings_csv", "r.csv", "--init_from", "published", "--solver", "sgd")
    assert status == 2
    assert "SUPABASE_URL" in err


def _products(model: TrainedModel) -> Any:
    return (model.module.user_factors.weight @ model.module.movie_factors.weight.T).detach().numpy()


@pytest.mark.parametrize("how", ["--publish", "--supabase_url"])
def test_the_published_run_recommends_as_the_model_does(database: LocalSupabase, run: Run, how: str) -> None:
    environ = environment(database)
    argv = ["--publish"] if how == "--publish" else ["--supabase_url", environ.pop("SUPABASE_URL")]
    status, out, err = run("--val_size", "0", "--force_publish", *argv, **environ)
    assert (status, err) == (0, "")
    assert "accepted by force_publish although no ratings were held out to judge the model on" in out
    model = TrainedModel.load(Path("output"))
    assert out.splitlines()[-1] == (f"published run {model.run_id}: 60 users, 40 movies; it is the first run")
    row = published(database)
    assert row is not None
    assert row["run_id"] == json.loads(Path("output/model.json").read_text())["run_id"]
    expected = {
        "forced": True,
        "reasons": ["no ratings were held out to judge the model on"],
        "run_id": None,
        "model": None,
    }
    assert row["judged"] == expected
    with connect(Credentials(database.url, SecretStr(database.secret_key))) as client:
        for user in model.users.ids.to_pylist()[::6]:
            answer = recommend_movies(client, user, 10)
            predicted = model.predict(pa.array([user] * 40), model.movies.ids)
            order = np.argsort(-ranking_scores(model, user), kind="stable")[:10]
            assert [movie for movie, _ in pairs(answer)] == model.movies.ids.take(pa.array(order)).to_pylist()
            assert [rating for _, rating in pairs(answer)] == pytest.approx(predicted[order].tolist(), abs=1e-5)


def test_with_the_databases_url_it_is_published_directly_without_a_key(database: LocalSupabase, run: Run) -> None:
    ratings = "".join(f"{md5(str(u).encode()).hexdigest()},{m},{(u + m) % 5 + 1}\n" for u in range(9) for m in range(9))
    uuids = re.sub(r"^(.{8})(.{4})(.{4})(.{4})(.{12}),", r"\1-\2-\3-\4-\5,", ratings, flags=re.M)
    Path("r.csv").write_text("userId,movieId,rating\n" + uuids)
    few = ["--min_rows", "10", "--min_users", "9", "--min_movies", "9", "--force_publish"]
    status, out, err = run("--ratings_csv", "r.csv", "--publish", *few, SUPABASE_DB_URL=database.db_url)
    assert (status, err) == (0, "")
    assert re.fullmatch(r"published run \S+: 9 users, 9 movies; it is the first run", out.splitlines()[-1])
    assert database.gateway.requests == []
    assert published(database) is not None
    status, out, err = run("--ratings_csv", "r.csv", "--publish", SUPABASE_DB_URL=wrong_password(database))
    assert (status, "epoch" in out) == (2, False)
    assert re.fullmatch(
        r"error: cannot connect to the database: [^\n]*check the password in SUPABASE_DB_URL[^\n]*\n", err
    )


def test_a_model_that_is_not_good_enough_is_written_and_not_published(
    database: LocalSupabase, run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run("--publish", **environment(database))
    assert (status, err) == (0, "")
    assert re.search(r"^RMSE 0\.\d+ on 206 validation ratings; user \+ movie biases 0\.\d+, global mean ", out, re.M)
    assert "accepted for publication: all " in out
    first = published(database)
    assert first is not None
    assert first["judged"] == {"forced": False, "reasons": [], "run_id": None, "model": None}
    assert Path("output/report.html").read_text().count("Accepted for publication")
    original = ["--solver", "adam", "--publish"]  # one epoch with a learning rate of 0.001
    bad: dict[str, list[str]] = {
        r"RMSE \S+ is not below that of user \+ movie biases": original,
        "min_rows is 100,000": ["--publish", "--min_rows", "100000"],
        r"RMSE 0\.\d+ is above max_rmse, 0.01": ["--publish", "--max_rmse", "0.01"],
        "no ratings were held out to judge the model on: hold some out": ["--publish", "--val_size", "0"],
        r"RMSE \S+ against \S+ of the published run .* max_regression is 0.01": ["--publish", "--rank", "1"],
    }
    for reason, argv in bad.items():
        status, out, err = run(*argv, **environment(database))
        assert status == 3
        assert re.fullmatch(rf"not published: [^\n]*{reason}[^\n]*\n", err)
        assert published(database) == first
        refused = TrainedModel.load(Path("output"))
        assert refused.run_id != first["run_id"]
        assert out.splitlines()[-1].startswith(f"model {refused.run_id}: 60 users, 40 movies")
        assert ("; for a good model: python -m mf --solver vb --publish --factors 4" in out) == (argv is original)
    status, out, err = run(*original, "--force_publish", **environment(database))
    assert (status, err) == (0, "")
    assert "accepted by force_publish although RMSE" in out
    second = published(database)
    assert second is not None
    assert second["judged"]["forced"] is True
    assert second["judged"]["reasons"][0].startswith("RMSE ")
    monkeypatch.setenv("SUPABASE_KEY", database.secret_key)
    runs.main(["list", "--supabase_url", database.url])
    marked = [line for line in capfd.readouterr().out.splitlines() if line.endswith("; published by force")]
    assert [line.split()[0] for line in marked] == [second["run_id"]]


def test_lists_are_judged_by_ratings_that_they_were_not_trained_on(database: LocalSupabase, run: Run) -> None:
    run("--publish", **environment(database))
    judged = TrainedModel.load(Path("output"))
    assert judged.ranking is not None
    assert judged.ranking.metrics["ratings"] == judged.rows["train"] == 1851
    rows = "".join(f"{md5(str(u).encode()).hexdigest()},{m}000,{3 + u % 2}\n" for u in range(1, 9) for m in range(1, 9))
    uuids = re.sub(r"^(.{8})(.{4})(.{4})(.{4})(.{12}),", r"\1-\2-\3-\4-\5,", rows, flags=re.M)
    Path("test.csv").write_text("userId,movieId,rating\n" + uuids)
    _, out, err = run("--publish", "--test_csv", "test.csv", **environment(database))
    assert "on 64 test ratings" in out + err
    both = TrainedModel.load(Path("output"))
    assert both.ranking is not None
    assert both.ranking.metrics["ratings"] == 2057


def test_a_database_of_another_project_is_refused(run: Run) -> None:
    Path("r.csv").write_text("userId,movieId,rating\n1,1,3\n1,2,3\n2,1,3\n")
    url = "postgresql://postgres.refone:hunter2hunter2@aws-0-eu-west-1.pooler.supabase.com:5432/postgres"
    argv = ["--ratings_csv", "r.csv", "--supabase_url", "https://reftwo.supabase.co"]
    status, out, err = run(*argv, SUPABASE_DB_URL=url)
    assert (status, out) == (2, "")
    assert err == (
        "error: --supabase_url is project reftwo, but SUPABASE_DB_URL is project refone: unset SUPABASE_DB_URL, "
        "or set it to the same project\n"
    )


def wrong_password(database: LocalSupabase) -> str:
    return re.sub(":[^:@]+@", ":hunter2hunter2@", database.db_url)


def ranking_scores(model: TrainedModel, user: str) -> np.ndarray:
    assert model.ranking is not None
    row = int(model.ranking.users.rows(pa.array([user]))[0])
    assert model.ranking.movies.ids == model.movies.ids  # with --val_size 0 both train on the same ratings
    return model.ranking.model.bias + model.ranking.model.embedding.astype(np.float64) @ model.ranking.vectors[row]


def test_schema_prints_a_migration_that_the_database_accepts(database: LocalSupabase, run: Run) -> None:
    status, out, _ = run("schema", "--user_id_type", "uuid")
    assert (status, out) == (0, migration(SchemaConfig(user_id_type="uuid")))
    with database.connect() as connection:
        before = connection.execute("select count(*) from pg_catalog.pg_class").fetchone()
    database.migrate(out)
    with database.connect() as connection:
        assert connection.execute("select count(*) from pg_catalog.pg_class").fetchone() == before


@pytest.mark.parametrize("argv", [[], ["--ratings_csv", "r.csv", "--publish"]])
def test_a_wrong_key_is_an_error_in_one_line_before_anything_is_written(
    database: LocalSupabase, run: Run, argv: list[str]
) -> None:
    Path("r.csv").write_text("userId,movieId,rating\n" + "".join(f"{i},1,3\n" for i in range(20)))
    status, out, err = run(*argv, **environment(database) | {"SUPABASE_KEY": "sb_secret_wrongwrongwrong"})
    assert (status, "epoch" in out) == (2, False)
    assert re.fullmatch(r"error: cannot [^\n]*check SUPABASE_KEY[^\n]*\n", err)
    assert [path.name for path in Path().iterdir()] == ["r.csv"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--import_table", "reviews"], "reviews"),
        (["--import_table", "empty_ratings"], "empty_ratings"),
        (["--user_column", "viewer"], "no column viewer"),
        (
            ["--supabase_url", "http://127.0.0.1:1/\nx"],
            "the Supabase URL is not of the form https://PROJECT.supabase.co",
        ),
    ],
)
def test_an_unusable_table_is_an_error_in_one_line(
    database: LocalSupabase, run: Run, argv: list[str], said: str
) -> None:
    status, out, err = run(*argv, **environment(database))
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"error: [^\n]*{said}[^\n]*\n", err)
    assert list(Path().iterdir()) == []


def test_a_missing_migration_is_an_early_error(fresh_stack: Callable[..., LocalSupabase], run: Run) -> None:
    Path("r.csv").write_text("userId,movieId,rating\n" + "".join(f"{i},1,3\n" for i in range(20)))
    status, out, err = run("--ratings_csv", "r.csv", "--publish", **environment(fresh_stack()))
    assert (status, "epoch" in out) == (2, False)
    assert re.fullmatch(r"error: [^\n]*is the migration applied\? `python -m mf schema` prints it\n", err)
    assert [path.name for path in Path().iterdir()] == ["r.csv"]
