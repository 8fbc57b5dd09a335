"""What a run ends with: figures beside the baselines, and recommendations as an app would get them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import SecretStr
from supabase import Client

from mf.local import LocalSupabase
from mf.ratings.schema import MOVIE, RATING, USER, read_ratings
from mf.supabase.client import connect
from mf.supabase.config import SchemaConfig
from mf.supabase.credentials import Credentials
from mf.supabase.recommend import published_run, recommend_movies, similar_movies
from pipelines.laptop.sources import Source

SHOWN = 5
LABELS = {"global_mean": "global mean", "user_movie_bias": "user + movie biases", "model": "this model"}


def summarise(source: Source, schema: SchemaConfig, supabase: LocalSupabase, outputs: Path) -> None:
    """Prints the figures of the run whose steps wrote ``outputs``, why it was not published where it was not, and what
    the API recommends out of what is."""
    ratings, provenance = read_ratings(outputs / "ingest" / "ratings.parquet")
    scores = json.loads((outputs / "evaluate" / "evaluation.json").read_text())
    print(
        f"\nratings   {provenance.rows_read:,} rows read, {provenance.rows_rejected:,} rejected, "
        f"{provenance.rows_kept:,} kept\n\nRMSE on {scores['test_rows']:,} test ratings"
    )
    for name, label in LABELS.items():
        print(f"  {label:<20} {scores[name]['rmse']:.4f}")
    if source.noise_floor is not None:
        print(f"  {'noise floor':<20} {source.noise_floor:.4f}  (nothing can do better on this sample)")

    with connect(Credentials(supabase.url, SecretStr(supabase.secret_key))) as client:
        run = published_run(client)
        tell(scores["decision"], run["run_id"] if run else None)
        if run:
            recommend(client, schema, ratings, source.titles(supabase))
    print(f"\nreport    {_short(outputs / 'evaluate' / 'report.html')}")
    print("your own  make run RATINGS=path/to/ratings.csv")


def tell(decision: Mapping[str, Any], readers_see: str | None) -> None:
    """Why a run was not published, or only by force; nothing of one that passed the gate."""
    if not decision["reasons"]:
        return
    print("\npublished by force, although" if decision["forced"] else "\nnot published, since")
    for reason in decision["reasons"]:
        print(f"  {reason}")
    if not decision["publish"]:
        print(f"readers see run {readers_see}" if readers_see else "no run is published, so nothing is recommended")
        print('publish it all the same: PARAMS="force_publish=true"')


def recommend(client: Client, schema: SchemaConfig, ratings: pa.Table, titles: Mapping[str, str]) -> None:
    """Prints what the published run recommends to one user, and what is similar to one of this user's movies."""
    user, liked = example(ratings)
    print(f"\nrecommended to user {user}")
    for movie, rating in unseen(client, schema, ratings, user):
        print(f"  {rating:.2f}  {titles.get(str(movie), movie)}")
    print(f"\nsimilar to {titles.get(str(liked), liked)}")
    for movie, similarity in similar_movies(client, liked, SHOWN):
        print(f"  {similarity:.2f}  {titles.get(str(movie), movie)}")


def example(ratings: pa.Table) -> tuple[Any, Any]:
    """The user with the most ratings, but for those who have rated nearly everything, and of the movies that this user
    likes best the one that most have rated."""
    users, movies = (pc.value_counts(ratings[name].combine_chunks()) for name in (USER, MOVIE))
    counts = users.field("counts").to_numpy()
    # recommend_movies gives 1000 at most, and those that the user has rated are taken out of them.
    fits = counts <= min(900, len(movies) - SHOWN)
    user = users.field("values")[int(np.argmax(np.where(fits, counts, 0) if fits.any() else -counts))]
    own = ratings.filter(pc.equal(ratings[USER], user))
    best = own.filter(pc.equal(own[RATING], pc.max(own[RATING])))[MOVIE].to_pylist()
    popularity = dict(zip(movies.field("values").to_pylist(), movies.field("counts").to_pylist(), strict=True))
    return user.as_py(), max(best, key=lambda movie: (popularity[movie], str(movie)))


def unseen(client: Client, schema: SchemaConfig, ratings: pa.Table, user: Any) -> list[tuple[Any, float]]:
    """The user's best movies among those the user has not rated: left out by the database where it holds the ratings,
    else here."""
    if schema.ratings_table:
        return recommend_movies(client, user, SHOWN, exclude_rated=True)
    rated = set(ratings.filter(pc.equal(ratings[USER], pa.scalar(user)))[MOVIE].to_pylist())
    best = recommend_movies(client, user, SHOWN + len(rated))
    return [(movie, rating) for movie, rating in best if movie not in rated][:SHOWN]


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
