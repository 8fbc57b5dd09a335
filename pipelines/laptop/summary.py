"""Summary at the end of a local run: RMSE, NDCG, gate decision and recommendations from the API."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import SecretStr
from supabase import Client

from mf.local import LocalSupabase
from mf.ratings.batches import Batches
from mf.ratings.schema import MOVIE, RATING, USER, has_ratings, read_provenance
from mf.supabase.client import connect
from mf.supabase.config import SchemaConfig
from mf.supabase.credentials import Credentials
from mf.supabase.recommend import Recommendation, published_run, recommend_movies, similar_movies
from mf.terminal import printable
from pipelines.laptop.own import OwnSource
from pipelines.laptop.sources import LocalSource

SHOWN = 5  # movies per list
MODELS = {"global_mean": "global mean", "user_movie_bias": "user + movie biases", "model": "this model"}


def print_summary(
    source: LocalSource, schema: SchemaConfig, supabase: LocalSupabase, outputs: Path, seconds: float
) -> None:
    """Prints the RMSE (where there are ratings) and the NDCG of a run, why it was not published if it was not, and
    recommendations of the published run.

    Args:
        source: the ratings of the run.
        schema: the options of the database's migration.
        supabase: the embedded Supabase, running.
        outputs: the folder that the run's steps wrote to.
        seconds: time that the steps took.
    """
    decision = _print_run(
        Credentials(supabase.url, SecretStr(supabase.secret_key)),
        schema,
        outputs,
        source.titles(supabase),
        source.noise_floor,
    )
    print(f"{_verdict(decision, seconds)}; your own: make run RATINGS=path/to/ratings.csv")


def print_own_summary(source: OwnSource, schema: SchemaConfig, outputs: Path, seconds: float) -> None:
    """As ``print_summary``, of a run against the user's own project; without its key no recommendations."""
    project = source.project
    credentials = Credentials(project.url, project.key) if project.key else None
    print(_verdict(_print_run(credentials, schema, outputs, source.titles()), seconds))


def _print_run(
    credentials: Credentials | None,
    schema: SchemaConfig,
    outputs: Path,
    titles: Mapping[str, str],
    noise_floor: float | None = None,
) -> dict[str, Any]:
    """Prints all but the last line; returns the gate's decision."""
    ratings = outputs / "ingest" / "ratings.parquet"
    provenance = read_provenance(ratings)
    evaluation = json.loads((outputs / "evaluate" / "evaluation.json").read_text())
    ignored = f"{provenance.rows_ignored:,} ignored, " if provenance.ignore_ratings else ""
    print(
        f"\n{'ratings' if provenance.has_ratings else 'clicks ':<10}{provenance.rows_read:,} rows read, "
        f"{provenance.rows_rejected:,} rejected, {ignored}{provenance.rows_kept:,} kept"
    )
    if provenance.has_ratings:
        print(f"\nRMSE on {evaluation['test_rows']:,} test ratings")
        for name, label in MODELS.items():
            print(f"  {label:<20} {evaluation[name]['rmse']:.4f}")
    if noise_floor is not None:
        print(f"  {'noise floor':<20} {noise_floor:.4f}  (nothing can do better on this sample)")
    print(f"\n{lists_line(evaluation['ranking'])}")

    decision: dict[str, Any] = evaluation["decision"]
    if credentials:
        with connect(credentials) as client:
            published = published_run(client)
            print_decision(decision, published["run_id"] if published else None)
            if published:
                print_recommendations(client, schema, ratings, titles)
    print(f"\nreport    {_relative(outputs / 'evaluate' / 'report.html')}")
    return decision


def _verdict(decision: Mapping[str, Any], seconds: float) -> str:
    """The gate's verdict and the time, in colour on a terminal."""
    outcome = (
        "not published" if not decision["publish"] else "published by force" if decision["forced"] else "published"
    )
    reasons = f": {'; '.join(decision['reasons'])}" if decision["reasons"] else ""
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        outcome = f"\x1b[{32 if decision['publish'] else 31}m{outcome}\x1b[0m"
    return f"{outcome}{reasons}, in {seconds:.0f} s"


def lists_line(ranking: Mapping[str, Any]) -> str:
    """NDCG@k of the lists beside that of popularity; ``ranking`` is the entry of ``evaluation.json``."""
    if not ranking["model"]:
        return f"lists  no figure: {ranking['reason']}"
    ndcg, popularity = (ranking[name]["ndcg"] for name in ("model", "popularity"))
    return f"lists  NDCG@{ranking['k']} {ndcg:.3f}, popularity {popularity:.3f}"


def print_decision(decision: Mapping[str, Any], published: str | None) -> None:
    """Prints why the gate refused a run; nothing when the run passed.

    Args:
        decision: the gate's decision, as evaluate wrote it.
        published: id of the run that is published now.
    """
    if not decision["reasons"]:
        return
    print("\npublished by force, although" if decision["forced"] else "\nnot published, since")
    for reason in decision["reasons"]:
        print(f"  {reason}")
    if not decision["publish"]:
        print(f"readers see run {published}" if published else "no run is published, so nothing is recommended")
        print('publish it anyway: PARAMS="force_publish=true"')


def print_recommendations(client: Client, schema: SchemaConfig, ratings: Path, titles: Mapping[str, str]) -> None:
    """Prints the published run's recommendations for one user, and movies similar to one that the user likes."""
    user, liked = example_user(ratings)
    print(f"\nrecommended to user {printable(str(user))}")
    for best in recommend_unrated(client, schema, ratings, user):
        predicted = "" if best.predicted_rating is None else f"{best.predicted_rating:.2f}  "
        print(f"  {predicted}{_title(titles, best.movie_id)}")
    print(f"\nsimilar to {_title(titles, liked)}")
    for near in similar_movies(client, liked, SHOWN):
        print(f"  {near.similarity:.2f}  {_title(titles, near.movie_id)}")


def example_user(ratings: pa.Table | Path) -> tuple[Any, Any]:
    """A user with many ratings, and the best known of the user's favourite movies (of clicks, of all the user's).

    Users who have rated nearly every movie are left out if possible: there would be little to recommend.

    Args:
        ratings: a table of ratings, or a file, of which one column at a time is read.
    """
    source = Batches(ratings)
    users, movies = (pc.value_counts(pa.concat_tables(source.read(name))[name]) for name in (USER, MOVIE))
    counts = users.field("counts").to_numpy()
    # recommend_movies leaves out at most 10,000 movies.
    suitable = counts <= min(10_000, len(movies) - SHOWN)
    user = users.field("values")[int(np.argmax(np.where(suitable, counts, 0) if suitable.any() else -counts))]
    own = ratings_of(ratings, user)
    liked = own.filter(pc.equal(own[RATING], pc.max(own[RATING]))) if has_ratings(own) else own
    favourites = liked[MOVIE].to_pylist()
    popularity = dict(zip(movies.field("values").to_pylist(), movies.field("counts").to_pylist(), strict=True))
    return user.as_py(), max(favourites, key=lambda movie: (popularity[movie], str(movie)))


def ratings_of(ratings: pa.Table | Path, user: Any) -> pa.Table:
    """The user's ratings; of a file, which is sorted by user, only the parts that hold them are read."""
    wanted = pc.field(USER) == pa.scalar(user)
    return pq.read_table(ratings, filters=wanted) if isinstance(ratings, Path) else ratings.filter(wanted)


def recommend_unrated(client: Client, schema: SchemaConfig, ratings: Path, user: Any) -> list[Recommendation]:
    """Recommended movies that the user has not rated.

    The database leaves out the rated ones if it has a table of ratings; otherwise this function names them.
    """
    if schema.ratings_table:
        return recommend_movies(client, user, SHOWN)
    rated = ratings_of(ratings, user)[MOVIE].to_pylist()
    return recommend_movies(client, user, SHOWN, without_ids=rated)


def _title(titles: Mapping[str, str], movie: Any) -> str:
    return printable(titles.get(str(movie), str(movie)))


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
