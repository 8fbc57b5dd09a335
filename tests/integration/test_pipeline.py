"""The pipeline's own steps on real parts, from ratings to recommendations; no key is left in anything they write."""

import gzip
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr
from supabase import Client
from targets import pairs

from mf.errors import MfError
from mf.local import LocalSupabase
from mf.ratings.schema import MOVIE, RATING, USER, read_ratings
from mf.sample import Sample, write_sample
from mf.supabase.client import call, connect
from mf.supabase.config import SchemaConfig
from mf.supabase.credentials import Credentials
from mf.supabase.recommend import recommend_movies
from mf.supabase.schema import migration
from pipelines.compiled import compile_pipeline
from pipelines.laptop.run import LOCAL, environment, run_steps
from pipelines.settings import Settings

ROOT = Path(__file__).parents[2]
# The pipeline for Kubeflow is the same function, whose pods get the key as an environment variable too.
KUBEFLOW = LOCAL.model_copy(update={"target": "kubeflow", "kubernetes_secret": "supabase"})
BAD_ROWS = ["u,m,five,0", "u,m", ",m,4,0"]


@dataclass(frozen=True)
class Pipeline:
    """A project whose ids are text, with a table of the sample's ratings, and what two runs of the steps made there:
    the first from a gzipped CSV with the secret key, the second, of the pipeline for Kubeflow, from the table with the
    legacy one."""

    supabase: LocalSupabase
    work: Path  # holds all that was written, the steps' temporary files too
    sample: Sample
    from_csv: Path
    from_table: Path
    printed: str

    @property
    def keys(self) -> list[str]:
        return [self.supabase.secret_key, self.supabase.service_role_key]


@pytest.fixture(scope="module")
def pipeline(fresh_stack: Callable[..., LocalSupabase], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    supabase, work = fresh_stack(), tmp_path_factory.mktemp("pipeline")
    sample = write_sample(work / "sample")
    rows = renamed(sample)
    csv = work / "ratings.csv.gz"
    csv.write_bytes(gzip.compress("\n".join(["userId,movieId,rating,timestamp", *rows, *BAD_ROWS]).encode()))
    titles = [f'"Né ""{movie}"", the",{title}' for movie, title in sample.titles.items()]
    (work / "movies.csv").write_text("\n".join(["movieId,title", *titles]))
    fill(supabase, rows)
    schema = SchemaConfig(user_id_type="text", movie_id_type="text", ratings_table="ratings")
    supabase.migrate(migration(schema))
    (work / "temporary").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(work / "temporary"))
        printed = io.StringIO()
        with redirect_stdout(printed), redirect_stderr(printed):
            from_csv = run(supabase, supabase.secret_key, work / "csv", ratings_csv=str(csv))
            table = work / "table"
            from_table = run(supabase, supabase.service_role_key, table, KUBEFLOW, relevance_threshold="-1")
            with environment(SUPABASE_URL=supabase.url, SUPABASE_KEY=supabase.secret_key):
                compile_pipeline(Settings(), work / "mf-training.yaml")
        yield Pipeline(supabase, work, sample, from_csv, from_table, printed.getvalue())


@pytest.fixture(scope="module")
def client(pipeline: Pipeline) -> Iterator[Client]:
    with connect(Credentials(pipeline.supabase.url, SecretStr(pipeline.supabase.secret_key))) as client:
        yield client


def renamed(sample: Sample) -> list[str]:
    """The sample's rows with movie ids that CSV must quote, and that are no integers."""
    rows = (line.split(",") for line in sample.ratings_csv.read_text().splitlines()[1:])
    return [f'{user},"Né ""{movie}"", the",{rating},{time}' for user, movie, rating, time in rows]


def fill(supabase: LocalSupabase, rows: list[str]) -> None:
    with supabase.connect() as connection:
        connection.execute("create table csv (user_id text, movie_id text, rating real, seconds bigint)")
        with connection.cursor().copy("copy csv from stdin csv") as copy:
            copy.write("\n".join(rows))
        connection.execute(
            "create table ratings (rated_at timestamptz, movie_id text, user_id text, rating real, "
            "primary key (user_id, movie_id));"
            "insert into ratings select to_timestamp(seconds), movie_id, user_id, rating from csv; drop table csv"
        )


def run(supabase: LocalSupabase, key: str, folder: Path, settings: Settings = LOCAL, **parameters: Any) -> Path:
    """The folder of the steps' outputs."""
    folder.mkdir(exist_ok=True)
    with environment(SUPABASE_URL=supabase.url, SUPABASE_KEY=key):
        run_steps({"refit": False, **parameters, "supabase_url": supabase.url}, folder, settings)
    (outputs,) = folder.glob("mf-training-*")
    return outputs


def scores(outputs: Path) -> dict[str, Any]:
    return json.loads((outputs / "evaluate" / "evaluation.json").read_text())


def statuses(client: Client) -> dict[str, str]:
    return {run["run_id"]: run["status"] for run in call(client.rpc("mf_list_runs"), "list the runs")}


def run_id(outputs: Path) -> str:
    return json.loads((outputs / "train" / "model" / "model.json").read_text())["run_id"]


def best(outputs: Path, user: str, k: int) -> list[tuple[str, float]]:
    """A user's top k in float64: movie and predicted rating, in the order of the ranking scores. The user's ranking
    vector is the sum over all ratings of the user in the table, also those that were held out."""
    model = outputs / "train" / "model"
    card = json.loads((model / "model.json").read_text())
    users, movies, ranked = (
        pq.read_table(model / f"{name}.parquet") for name in ("user_embeddings", "movie_embeddings", "movie_ranking")
    )
    ratings, _ = read_ratings(outputs / "ingest" / "ratings.parquet")
    own = {row[MOVIE]: row[RATING] for row in ratings.to_pylist() if row[USER] == user}
    options, vectors = card["ranking"], {row[MOVIE]: row for row in ranked.to_pylist()}
    likes = {movie: options["rho"] * (rating - options["mu"]) / options["sd"] for movie, rating in own.items()}
    terms = [
        np.array(vectors[movie]["history"]) + like * np.array(vectors[movie]["liking"])
        for movie, like in likes.items()
        if movie in vectors
    ]

    def products(p: np.ndarray, movies: pa.Table) -> dict[str, float]:
        scores = movies["bias"].to_numpy() + np.array(movies["embedding"].to_pylist()) @ p
        return dict(zip(movies[MOVIE].to_pylist(), scores, strict=True))

    row = users[USER].to_pylist().index(user)
    score, stars = products(sum(terms), ranked), products(np.array(users["embedding"][row].as_py()), movies)
    bias = card["mu"] + users["bias"][row].as_py()
    order = sorted(score, key=lambda movie: (-score[movie], movie))[:k]
    low, high = card["rating_min"], card["rating_max"]
    return [(movie, float(np.clip(bias + stars.get(movie, 0.0), low, high))) for movie in order]


def in_order(file: Path) -> pa.Table:
    return read_ratings(file)[0].sort_by([(USER, "ascending"), (MOVIE, "ascending")])


def test_the_model_comes_near_the_noise_floor_and_well_below_the_biases(pipeline: Pipeline) -> None:
    found = scores(pipeline.from_csv)
    assert found["test_rows"] == 1100
    assert pipeline.sample.noise_floor < found["model"]["rmse"] < pipeline.sample.noise_floor + 0.125  # 0.111 measured
    assert found["model"]["rmse"] < found["user_movie_bias"]["rmse"] - 0.13  # 0.188 measured
    assert found["user_movie_bias"]["rmse"] < found["global_mean"]["rmse"]


def test_the_ranking_model_is_trained_beside_the_star_model_on_both_parts(pipeline: Pipeline) -> None:
    ranked = {}
    for outputs in (pipeline.from_csv, pipeline.from_table):
        model, split = outputs / "train" / "model", outputs / "split"
        ranking = ranked[outputs] = json.loads((model / "model.json").read_text())["ranking"]
        rows = {part: pq.read_metadata(split / f"{part}_ratings.parquet").num_rows for part in ("train", "validation")}
        assert ranking["metrics"]["ratings"] == rows["train"] + rows["validation"]
        for kind in ("user", "movie"):
            vectors = pq.read_table(model / f"{kind}_ranking.parquet")
            assert {*pq.read_table(model / f"{kind}_embeddings.parquet")[f"{kind}_id"].to_pylist()} <= {
                *vectors[f"{kind}_id"].to_pylist()
            }
            assert {len(vector) for vector in vectors["embedding"].to_pylist()} == {64}
    # The run's threshold is the ranking model's.
    assert [one["relevance_threshold"] for one in ranked.values()] == [pytest.approx(3.875), -1]
    assert sum("lists     ranking model of 64 factors" in line for line in pipeline.printed.splitlines()) == 2


def test_the_report_recommends_by_title_what_the_user_has_not_rated(pipeline: Pipeline) -> None:
    page = (pipeline.from_csv / "evaluate" / "report.html").read_text()
    known = [
        read_ratings(pipeline.from_csv / "split" / f"{part}_ratings.parquet")[0] for part in ("train", "validation")
    ]
    rated = {(row[USER], row[MOVIE]) for part in known for row in part.select([USER, MOVIE]).to_pylist()}
    users = scores(pipeline.from_csv)["examples"]
    assert len(users) == 3
    for user in users:
        assert len(user["best"]) == len(user["recommended"]) == 8
        assert all(movie["title"] in page for movie in user["best"] + user["recommended"])
        assert {(user["user_id"], movie["movie_id"]) for movie in user["best"]} <= rated
        assert not {(user["user_id"], movie["movie_id"]) for movie in user["recommended"]} & rated
    without_titles = scores(pipeline.from_table)["examples"]
    assert {movie["title"] for user in without_titles for movie in user["recommended"]} == {None}


def test_a_threshold_of_minus_1_is_no_sentinel(pipeline: Pipeline) -> None:
    thresholds = [scores(one)["ranking"]["relevance_threshold"] for one in (pipeline.from_csv, pipeline.from_table)]
    assert thresholds == [pytest.approx(3.875), -1]


def test_bad_rows_are_counted_and_kept_with_their_reasons(pipeline: Pipeline) -> None:
    _, provenance = read_ratings(pipeline.from_csv / "ingest" / "ratings.parquet")
    assert (provenance.rows_read, provenance.rows_rejected, provenance.rows_kept) == (11_003, 3, 11_000)
    rejects = (pipeline.from_csv / "ingest" / "rejects.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rejects] == ["where", "line 11002", "line 11003", "line 11004"]


def test_a_table_gives_the_ratings_and_the_split_that_the_file_gives(pipeline: Pipeline) -> None:
    for part in ("ingest/ratings", "split/train_ratings", "split/validation_ratings", "split/test_ratings"):
        of_table, of_csv = (in_order(one / f"{part}.parquet") for one in (pipeline.from_table, pipeline.from_csv))
        assert of_table.equals(of_csv)
    assert scores(pipeline.from_table)["model"]["rmse"] == pytest.approx(
        scores(pipeline.from_csv)["model"]["rmse"], abs=0.01
    )


def test_the_second_run_is_the_one_that_is_published_and_the_first_is_kept(pipeline: Pipeline, client: Client) -> None:
    assert statuses(client) == {run_id(pipeline.from_table): "published", run_id(pipeline.from_csv): "retired"}


def test_the_api_recommends_what_the_exported_model_itself_would(pipeline: Pipeline, client: Client) -> None:
    users = pq.read_table(pipeline.from_table / "train" / "model" / "user_embeddings.parquet")[USER]
    for user in users.to_pylist()[::20]:
        answer, expected = (
            pairs(recommend_movies(client, user, exclude_rated=False)),
            best(pipeline.from_table, user, 10),
        )
        assert [movie for movie, _ in answer] == [movie for movie, _ in expected]
        assert [rating for _, rating in answer] == pytest.approx([rating for _, rating in expected], abs=1e-5)


def test_the_database_leaves_out_what_the_user_has_rated(pipeline: Pipeline, client: Client) -> None:
    ratings, _ = read_ratings(pipeline.from_table / "ingest" / "ratings.parquet")
    user = ratings[USER][0].as_py()
    rated = {row[MOVIE] for row in ratings.to_pylist() if row[USER] == user}
    everything = best(pipeline.from_table, user, 300)
    expected = [movie for movie, _ in everything if movie not in rated][:10]
    assert [movie for movie, _ in pairs(recommend_movies(client, user))] == expected


def test_every_step_shows_its_lines_and_the_rest_is_in_the_log(pipeline: Pipeline) -> None:
    lines = pipeline.printed.splitlines()
    said = {line.split()[0] for line in lines if " still running, " not in line}
    assert said == {"ingest", "split", "train", "evaluate", "export"}
    assert sum("epoch 2/12  validation RMSE 0." in line for line in lines) == 2
    for folder in ("csv", "table"):
        assert "finished with status" in (pipeline.work / folder / "log.txt").read_text()


def test_no_key_is_in_any_file_or_line_that_the_runs_have_left(pipeline: Pipeline) -> None:
    files = {file: file.read_bytes() for file in pipeline.work.rglob("*") if file.is_file()}
    names = {file.name for file in files}
    assert names >= {"log.txt", "ephemeral_component.py", "executor_output.json", "report.html", "mf-training.yaml"}
    assert holding(files, pipeline.supabase.url)  # the search finds what is there
    for key in pipeline.keys:
        assert holding(files, key) == []
        assert key not in pipeline.printed


def holding(files: dict[Path, bytes], text: str) -> list[Path]:
    return [file for file, content in files.items() if text.encode() in content]


def refused(pipeline: Pipeline, client: Client, key: str, folder: Path, **parameters: Any) -> str:
    """What a run that fails says; it leaves what is published as it was."""
    before, user = statuses(client), read_ratings(pipeline.from_csv / "ingest" / "ratings.parquet")[0][USER][0].as_py()
    recommended = recommend_movies(client, user)
    with pytest.raises(MfError) as error:
        run(pipeline.supabase, key, folder, **parameters)
    assert statuses(client) == before
    assert recommend_movies(client, user) == recommended
    assert "\n" not in str(error.value)
    return str(error.value)


def test_faults_of_five_steps_are_named_by_the_first_step_and_no_other_starts(
    pipeline: Pipeline, client: Client, tmp_path: Path
) -> None:
    faults = {
        "max_reject_fraction": 2.0,
        "val_size": 1.0,
        "solver_options": {"rank": 16, "patience": -1},
        "ranking_options": {"factors": 0},
        "min_users": -1,
        "movie_export_table": "mf_movies",
    }
    said = refused(pipeline, client, pipeline.supabase.secret_key, tmp_path, **faults, ratings_csv="no such file")
    assert said.startswith("the step ingest failed: 6 values are not valid: max_reject_fraction: Input should be less ")
    assert all(
        f"; {name}" in said
        for name in ("val_size: ", "solver_options.rank: ", "ranking_options.factors: ", "min_users: ")
    )
    assert "; movie_export" in said
    (outputs,) = tmp_path.glob("mf-training-*")
    assert [step.name for step in outputs.iterdir()] == ["ingest"]


def test_a_file_with_too_many_bad_rows_ends_the_run_with_the_steps_own_sentence(
    pipeline: Pipeline, client: Client, tmp_path: Path
) -> None:
    csv = tmp_path / "bad.csv"
    csv.write_text("userId,movieId,rating\n1,2,five\n1,3,4\n")
    said = refused(pipeline, client, pipeline.supabase.secret_key, tmp_path, ratings_csv=str(csv))
    assert said.startswith(
        f"the step ingest failed: {csv}: 1 of 2 rows are bad (50.00%, at most 1.00% may be): line 2: "
    )


def test_a_wrong_key_ends_the_run_with_the_steps_own_sentence(
    pipeline: Pipeline, client: Client, tmp_path: Path
) -> None:
    key = "sb_secret_" + "x" * 32
    said = refused(pipeline, client, key, tmp_path)
    assert said.startswith("the step ingest failed: ")
    assert "key" in said
    assert key not in said + (tmp_path / "log.txt").read_text()


def test_a_step_that_crashes_shows_its_traceback_and_the_run_says_where_the_log_is(
    pipeline: Pipeline,
    client: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "pyarrow.py").write_text("1 / 0")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'broken'}{os.pathsep}{ROOT}")
    said = refused(pipeline, client, pipeline.supabase.secret_key, tmp_path)
    assert said == f"the step ingest failed; see {tmp_path / 'log.txt'}"
    assert "ingest    ZeroDivisionError: division by zero\n" in capsys.readouterr().out


# MLflow's functions that the page calls, with its names of arguments; each prints what it was given.
MLFLOW = """
import contextlib, json, numbers, os

def say(**given):
    print(json.dumps(given))

def set_experiment(experiment_name):
    say(experiment=experiment_name)

@contextlib.contextmanager
def start_run(run_name):
    say(run=run_name)
    yield

def log_params(params):
    say(params={name: str(value)[:6000] for name, value in params.items()})

def log_metric(key, value):
    assert isinstance(value, numbers.Number)
    say(metrics={key: float(value)})

def log_metrics(metrics):
    for key, value in metrics.items():
        log_metric(key, value)

def log_artifact(local_path):
    say(artifact=os.path.basename(local_path), bytes=os.path.getsize(local_path))
"""


def test_the_page_on_mlflow_logs_a_run(pipeline: Pipeline, tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/experiments.md").read_text(), re.DOTALL)
    (tmp_path / "mlflow.py").write_text(MLFLOW)
    command = [sys.executable, "-c", block, str(pipeline.from_csv)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert said[:2] == [{"experiment": "mf"}, {"run": run_id(pipeline.from_csv)}]
    (params,) = [one["params"] for one in said if "params" in one]
    assert (params["solver"], params["factors"], params["seed"]) == ("vb", "64", "0")
    metrics = {name: value for one in said for name, value in one.get("metrics", {}).items()}
    assert metrics.keys() == {"model_rmse", "user_movie_bias_rmse", "global_mean_rmse", "published"}
    assert metrics["model_rmse"] == scores(pipeline.from_csv)["model"]["rmse"]
    assert said[-1]["artifact"] == "report.html"
