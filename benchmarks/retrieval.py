"""How long recommendations take in the database and through its API, by the exact search and by an index, and how many
of the ten best an index finds."""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
import torch
from pydantic import SecretStr

from benchmarks.apart import Result, cores, run
from benchmarks.bars import Bar, bars
from benchmarks.planted import FULL_MOVIES, MOVIE_BIAS, TASTE, USER_BIAS
from benchmarks.report import number, ratio, table
from mf.local import LocalSupabase, delete_home
from mf.model import MatrixFactorization
from mf.model_directory import TrainedModel
from mf.ratings.vocabulary import Vocabulary
from mf.supabase.config import ExportConfig, SchemaConfig
from mf.supabase.credentials import Credentials
from mf.supabase.rest_target import RestTarget
from mf.supabase.schema import HNSW, migration

FACTORS, USERS, RATED, GIVEN = 64, 500, 200, 20
PASSED = 4000  # ratings that the calls of recommend_from_ratings pass in all
RUN = "benchmark"
RECALL = 0.99
BARE = "select e.movie_id from public.mf_movie_embeddings e order by e.augmented operator(extensions.<#>) %s limit 10"

Float32s = npt.NDArray[np.float32]
Call = tuple[str, dict[str, Any]]  # a function and its arguments


def section(movies: int = FULL_MOVIES) -> str:
    """The latency table of ``movies`` movies, as Markdown."""
    measured = run("retrieval", measure, movies=movies)
    if "error" in measured:
        return f"Retrieval was not measured: {measured['error']}"
    rows = [
        (
            label,
            *(number(measured[way][label][place], 1) for way in ("exact", "index") for place in ("sql", "api")),
            ratio(measured["exact"][label]["sql"], measured["index"][label]["sql"]),
            ratio(measured["exact"][label]["sql"], measured["bare_ms"]),
            number(measured["recall"][label], 4),
        )
        for label in measured["recall"]
    ]
    header = ("", "exact, SQL", "API", "index, SQL", "API", "exact / index", "exact / bare", "recall@10")
    reached = [
        Bar(f"recall@10 of the index, {label}", recall, at_least=RECALL, digits=4)
        for label, recall in measured["recall"].items()
    ]
    return "\n\n".join([_explained(movies, measured), table(header, rows), bars(reached)])


def _explained(movies: int, measured: Mapping[str, Any]) -> str:
    return (
        f"The ten best of {movies:,} movies, {FACTORS} factors, {cores()} cores: medians of milliseconds over {USERS} "
        f"calls ({PASSED // GIVEN} and {PASSED // RATED} from ratings), from a client on the same machine. A bare "
        f"query that scans the vectors with pgvector takes {measured['bare_ms']:.1f} ms, NumPy's product with the same "
        f"matrix {measured['numpy_ms']:.1f} ms. The two indexes of the run (HNSW, m {HNSW['m']}, ef_construction "
        f"{HNSW['ef_construction']}, ef_search "
        f"{HNSW['ef_search']}) were built in {measured['build_s']:.0f} s and take {measured['index_mb']:.0f} MB beside "
        f"the table's {measured['table_mb']:.0f} MB. The vectors are random, their factors' variances falling as one "
        f"over the root of the rank. A user has rated {RATED} movies, half of them among its {2 * RATED} best."
    )


def measure(movies: int) -> Result:
    """Milliseconds, recall and the indexes' seconds and size, from a database of its own."""
    home = Path(tempfile.mkdtemp(prefix="mf-benchmark-"))
    home.chmod(0o755)  # so that root's PostgreSQL, which runs as another user, lies in it too
    try:
        with LocalSupabase(home) as stack:
            return _measure(stack, movies, home)
    finally:
        delete_home(home)


def _measure(stack: LocalSupabase, movies: int, home: Path) -> Result:
    rng = np.random.default_rng(0)
    p, q = _vectors(rng, USERS), _vectors(rng, movies)
    b_m = rng.normal(0, MOVIE_BIAS, movies).astype(np.float32)
    with stack.connect() as connection:
        connection.execute(
            "create table public.votes (user_id bigint, movie_id bigint, primary key (user_id, movie_id))"
        )
        rated = _rated(rng, p, q, b_m)
        with connection.cursor().copy("copy public.votes from stdin") as copy:
            for user, theirs in enumerate(rated):
                for movie in theirs:
                    copy.write_row((user, int(movie)))
    stack.migrate(migration(SchemaConfig(ratings_table="votes")))
    _model(p, q, b_m, rng).save(home / "model")
    RestTarget(Credentials(stack.url, SecretStr(stack.secret_key))).export(home / "model", ExportConfig())
    calls = _calls(rng, movies, rated)
    exact, found = _latencies(stack, calls)
    bare, numpy = _bare(stack, p), _numpy(p, q, b_m)
    with stack.connect() as connection:
        # Not through the API: a client that is tired of waiting asks again, and is told of the second call only.
        _, build_s = _timed(lambda run: connection.execute("select public.mf_index(%s)", [run]), RUN)
        indexed, again = _latencies(stack, calls)
        sizes = "select pg_table_size('public.mf_movie_embeddings'), sum(pg_relation_size(indexrelid)) "
        sizes += "from pg_stat_user_indexes where starts_with(indexrelname, 'mf_hnsw_')"
        table_bytes, index_bytes = (int(size) for size in connection.execute(sizes.encode()).fetchall()[0])
    return {
        "exact": exact,
        "index": indexed,
        "recall": {label: _recall(found[label], again[label]) for label in calls},
        "bare_ms": bare,
        "numpy_ms": numpy,
        "build_s": build_s,
        "table_mb": table_bytes / 2**20,
        "index_mb": index_bytes / 2**20,
    }


def _vectors(rng: np.random.Generator, rows: int) -> Float32s:
    variances = np.arange(1, FACTORS + 1) ** -0.5
    variances *= TASTE / np.sqrt((variances**2).sum())
    vectors: Float32s = (rng.standard_normal((rows, FACTORS)) * np.sqrt(variances)).astype(np.float32)
    return vectors


def _rated(rng: np.random.Generator, p: Float32s, q: Float32s, b_m: Float32s) -> list[npt.NDArray[np.int64]]:
    """For each user ``RATED`` movies, half of them among the best and half any."""
    best = np.argsort(-(p @ q.T + b_m), axis=1)
    return [
        np.concatenate(
            [rng.choice(order[: 2 * RATED], RATED // 2, False), rng.choice(order[2 * RATED :], RATED // 2, False)]
        )
        for order in best
    ]


def _model(p: Float32s, q: Float32s, b_m: Float32s, rng: np.random.Generator) -> TrainedModel:
    module = MatrixFactorization(len(p), len(q), FACTORS, rating_min=0.5, rating_max=5.0, mu=3.5)
    b_u = rng.normal(0, USER_BIAS, len(p)).astype(np.float32)
    for part, values in (
        (module.user_factors, p),
        (module.movie_factors, q),
        (module.user_bias, b_u[:, None]),
        (module.movie_bias, b_m[:, None]),
    ):
        part.weight.data = torch.from_numpy(values)
    users, movies = (Vocabulary(pa.array(np.arange(n))) for n in (len(p), len(q)))
    return TrainedModel(module, users, movies, RUN, "none", {}, {}, {"validation_rmse": 0.8})


def _calls(rng: np.random.Generator, movies: int, rated: list[npt.NDArray[np.int64]]) -> dict[str, list[Call]]:
    def from_ratings(n: int) -> list[Call]:
        some = (rng.choice(movies, n, False).tolist() for _ in range(PASSED // n))
        given = ([{"movie_id": m, "rating": float(rng.integers(1, 11)) / 2} for m in chosen] for chosen in some)
        return [("recommend_from_ratings", {"ratings": ratings}) for ratings in given]

    users = range(len(rated))
    return {
        "recommend_movies": [("recommend_movies", {"for_user": user}) for user in users],
        "recommend_movies, exclude_rated": [
            ("recommend_movies", {"for_user": user, "exclude_rated": True}) for user in users
        ],
        "similar_movies": [
            ("similar_movies", {"for_movie": m}) for m in rng.choice(movies, len(users), False).tolist()
        ],
        f"recommend_from_ratings, {GIVEN} ratings": from_ratings(GIVEN),
        f"recommend_from_ratings, {RATED} ratings": from_ratings(RATED),
    }


def _latencies(
    stack: LocalSupabase, calls: dict[str, list[Call]]
) -> tuple[dict[str, dict[str, float]], dict[str, list[list[int]]]]:
    """Medians of milliseconds in SQL and through the API, and the movies that were found, by label."""
    times: dict[str, dict[str, float]] = {}
    found: dict[str, list[list[int]]] = {}
    headers = {"apikey": stack.secret_key, "Authorization": f"Bearer {stack.secret_key}"}
    with stack.connect() as connection, httpx.Client(headers=headers, trust_env=False, timeout=60) as http:
        ways: dict[str, Callable[[Call], list[int]]] = {
            "sql": lambda call: _ask_sql(connection, *call),
            "api": lambda call: _ask_api(http, stack.url, *call),
        }
        for label, asked in calls.items():
            times[label] = {}
            for way, ask in ways.items():
                ask(asked[0])
                answers, seconds = zip(*(_timed(ask, each) for each in asked), strict=True)
                times[label][way] = float(np.median(seconds)) * 1000
                found[label] = list(answers)
    return times, found


def _timed(ask: Callable[[Any], Any], what: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    return ask(what), time.perf_counter() - began


def _ask_sql(connection: psycopg.Connection[Any], function: str, arguments: dict[str, Any]) -> list[int]:
    named = ", ".join(f"{name} => %({name})s" for name in arguments)
    values = {name: json.dumps(value) if isinstance(value, list) else value for name, value in arguments.items()}
    rows = connection.execute(f"select movie_id from public.{function}({named})".encode(), values)  # noqa: S608
    return [movie for (movie,) in rows]


def _ask_api(http: httpx.Client, url: str, function: str, arguments: dict[str, Any]) -> list[int]:
    answer = http.post(f"{url}/rest/v1/rpc/{function}", json=arguments).raise_for_status()
    return [row["movie_id"] for row in answer.json()]


def _bare(stack: LocalSupabase, p: Float32s) -> float:
    with stack.connect() as connection:
        asked = [str([*vector.tolist(), 1.0]) for vector in p]
        seconds = [_timed(lambda vector: connection.execute(BARE, [vector]).fetchall(), v)[1] for v in asked]
    return float(np.median(seconds)) * 1000


def _numpy(p: Float32s, q: Float32s, b_m: Float32s) -> float:
    seconds = [_timed(lambda vector: np.argpartition(-(q @ vector + b_m), 10)[:10], vector)[1] for vector in p]
    return float(np.median(seconds)) * 1000


def _recall(exact: list[list[int]], found: list[list[int]]) -> float:
    return float(np.mean([len({*a} & {*b}) / len(a) for a, b in zip(exact, found, strict=True)]))
