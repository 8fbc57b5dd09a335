"""How long recommendations take in the database and through its API, by the exact search and by an index, and how many
of the ten best an index finds: of a ranking model trained on planted ratings, and of a million random vectors."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
import torch
from pydantic import SecretStr

from benchmarks.apart import Result, run
from benchmarks.bars import Bar, bars, quotient
from benchmarks.data import Ratings, load
from benchmarks.planted import FULL
from benchmarks.report import number, ratio, table
from benchmarks.sampled import servers_cpu_s
from mf.local import LocalSupabase, delete_home
from mf.model import MatrixFactorization
from mf.model_directory import TrainedModel, TrainedRanking
from mf.parallel import cores
from mf.ranking import RankingConfig, RankingModel
from mf.ratings.schema import MOVIE, RATING, USER
from mf.ratings.vocabulary import Vocabulary
from mf.supabase.config import ExportConfig, SchemaConfig
from mf.supabase.database import Database
from mf.supabase.direct_target import DirectTarget
from mf.supabase.schema import HNSW, migration
from mf.train import train_ranking

FACTORS = 64
RATED = (10, 200, 2000)  # ratings of a user
USERS = 150  # per number of ratings
CALLS = {10: 150, 200: 20}  # of recommend_from_ratings, by number of ratings
RUN = "benchmark"
RECALL = 0.99
MANY = 10_000  # ratings of one more user
MILLION_USERS = 40
# As a server with 4 GB of memory has them; PostgreSQL's defaults are for smaller ones.
MILLION_SETTINGS = {"shared_buffers": "1GB", "maintenance_work_mem": "2GB"}
RARE = 100  # one movie in so many has the genre "rare", by which a filter chooses
# Bounds of a list of a user with 200 ratings, as a multiple of the bare scan, and of one with MANY ratings.
TIMES_BARE, MANY_MS = 1.4, 150.0
MILLION_MS = {"exact": 1000.0, "index": 50.0}  # bounds of a list of a catalogue of a million movies
BARE = "select e.movie_id from public.mf_movie_ranking e order by e.vector operator(extensions.<#>) %s limit 10"

Float32s = npt.NDArray[np.float32]
Call = tuple[str, dict[str, Any]]  # a function and its arguments


def section(rows: int = FULL) -> str:
    """The latency table of a model of ``rows`` planted ratings, as Markdown."""
    measured = run("retrieval", measure, rows=rows)
    if "error" in measured:
        return f"Retrieval was not measured: {measured['error']}"
    lines = [
        (
            label,
            *(
                number(measured[way][label][place], 1)
                for way in ("exact", "index")
                for place in ("sql", "sql_cpu", "api", "api_cpu")
            ),
            ratio(measured["exact"][label]["sql"], measured["index"][label]["sql"]),
            ratio(measured["exact"][label]["sql"], measured["bare_ms"]),
            number(measured["recall"][label], 4),
        )
        for label in measured["recall"]
    ]
    ways = ("exact, SQL", "CPU", "API", "CPU", "index, SQL", "CPU", "API", "CPU")
    header = ("", *ways, "exact / index", "exact / bare", "recall@10")
    reached = [
        Bar(f"recall@10 of the index, {label}", recall, at_least=RECALL, digits=4)
        for label, recall in measured["recall"].items()
    ]
    exact = {label: times["sql"] for label, times in measured["exact"].items()}
    fresh, bare = exact[_label(200)], measured["bare_ms"]
    reached += [
        Bar(f"exact / bare, {_label(200)}, because included", quotient(fresh, bare), at_most=TIMES_BARE),
        Bar(f"milliseconds, {_label(MANY)}", exact[_label(MANY)], at_most=MANY_MS, digits=0),
        Bar("a filter that leaves 1 % / unfiltered", quotient(exact[_filtered(200)], fresh), at_most=1.0),
    ]
    return "\n\n".join([_explained(rows, measured), table(header, lines), bars(reached)])


def _explained(rows: int, measured: Mapping[str, Any]) -> str:
    return (
        f"The ten best of {measured['movies']:,} movies, {FACTORS} factors, {cores()} cores: medians of milliseconds "
        f"over {USERS} calls ({', '.join(f'{n} from {rated} ratings' for rated, n in CALLS.items())}), from a client "
        f"on the same machine. A bare query that scans the vectors with pgvector takes {measured['bare_ms']:.1f} ms, "
        f"NumPy's product with the same matrix {measured['numpy_ms']:.1f} ms. The two indexes of the run (HNSW, m "
        f"{HNSW['m']}, ef_construction {HNSW['ef_construction']}, ef_search {HNSW['ef_search']}) were built in "
        f"{measured['build_s']:.0f} s and take {measured['index_mb']:.0f} MB beside the searched table's "
        f"{measured['table_mb']:.0f} MB. The ranking model is trained on {rows:,} planted ratings; the users are new "
        f"and have {', '.join(map(str, RATED))} of these ratings, their rated movies left out. Every list is computed "
        f"from the table of ratings and says because of which movie; one movie in {RARE} passes the filter. CPU: mean "
        "milliseconds of a call, of PostgreSQL with its parallel workers and of PostgREST."
    )


def _label(rated: int) -> str:
    return f"recommend_movies, {rated:,} ratings"


def _filtered(rated: int) -> str:
    return f"{_label(rated)}, filtered"


def million(movies: int) -> str:
    """The latency table of a catalogue of ``movies`` random vectors, as Markdown."""
    measured = run("retrieval", measure_million, movies=movies)
    if "error" in measured:
        return f"Lists of a large catalogue were not measured: {measured['error']}"
    lines = [
        (label, *(number(measured[way][label][place], 1) for way in ("exact", "index") for place in ("sql", "api")))
        for label in measured["exact"]
    ]
    reached = [
        Bar(f"milliseconds, {way}, {_label(200)}", measured[way][_label(200)]["sql"], at_most=most, digits=0)
        for way, most in MILLION_MS.items()
    ]
    settings = " and ".join(f"{name} = {value}" for name, value in MILLION_SETTINGS.items())
    text = (
        f"The ten best of {movies:,} movies with random vectors of {FACTORS} factors, {cores()} cores: medians of "
        f"milliseconds over {MILLION_USERS} calls. A bare query that scans the vectors takes "
        f"{measured['bare_ms']:.0f} ms. The two indexes were built in {measured['build_s']:.0f} s, with {settings}, "
        f"and take {measured['index_mb']:,.0f} MB beside the searched table's {measured['table_mb']:,.0f} MB. Recall "
        f"is not measured: random vectors have no neighbours to find."
    )
    return "\n\n".join([text, table(("", "exact, SQL", "API", "index, SQL", "API"), lines), bars(reached)])


def measure(rows: int) -> Result:
    """Milliseconds, recall and the indexes' seconds and size, from a database of its own."""
    with _database() as (stack, home):
        rng = np.random.default_rng(0)
        data = load(f"planted:{rows}:0").train
        ranking = train_ranking(
            pa.table({USER: data.users, MOVIE: data.movies, RATING: data.ratings}),
            RankingConfig(factors=FACTORS),
            device=torch.device("cpu"),
        )
        users = _users(rng, data, ranking)
        _fill(stack, home, ranking, users, rng)
        calls = _calls(rng, users)
        exact, found = _latencies(stack, calls)
        p, q, b_m = ranking.vectors, ranking.model.embedding, ranking.model.bias
        bare, numpy = _bare(stack, p), _numpy(p, q, b_m)
        built = _index(stack)
        indexed, again = _latencies(stack, calls)
        recall = {label: _recall(found[label], again[label]) for label in calls}
        return {
            "movies": len(b_m), "exact": exact, "index": indexed, "recall": recall, "bare_ms": bare, "numpy_ms": numpy
        } | built  # fmt: skip


def measure_million(movies: int) -> Result:
    """Milliseconds and the indexes' seconds and size for random vectors, from a database of its own."""
    with _database(MILLION_SETTINGS) as (stack, home):
        rng = np.random.default_rng(0)
        q, history, liking = (rng.normal(0, 0.1, (movies, FACTORS)).astype(np.float32) for _ in range(3))
        b_m = rng.normal(0, 0.1, movies).astype(np.float32)
        model = RankingModel(b_m, q, history, liking, 3.5, 1.0, 0.5, 1.0, FACTORS, 0.0, 3.5)
        users = [
            (rng.choice(movies, 200, replace=False), rng.choice(np.arange(1, 11, dtype=np.float32) / 2, 200))
            for _ in range(MILLION_USERS)
        ]
        p = np.stack([model.user_vector(*user) for user in users])
        ids = Vocabulary(pa.array(np.arange(movies)))
        record = {"seconds": 0.0}
        ranking = TrainedRanking(model, Vocabulary(pa.array(np.arange(len(users)))), ids, p, {}, record)
        _fill(stack, home, ranking, users, rng)
        calls: dict[str, list[Call]] = {
            _label(200): [("recommend_movies", {"for_user": user}) for user in range(len(users))],
            _filtered(200): [("recommend_movies", {"for_user": user, "genre": "rare"}) for user in range(len(users))],
            "similar_movies": [("similar_movies", {"for_movie": movie}) for movie in range(MILLION_USERS)],
        }
        exact, _ = _latencies(stack, calls)
        bare = _bare(stack, p)
        built = _index(stack)
        indexed, _ = _latencies(stack, calls)
        return {"exact": exact, "index": indexed, "bare_ms": bare} | built


@contextmanager
def _database(settings: Mapping[str, str] | None = None) -> Iterator[tuple[LocalSupabase, Path]]:
    """A database of its own, whose server has ``settings``, and its folder, which is deleted."""
    home = Path(tempfile.mkdtemp(prefix="mf-benchmark-"))
    home.chmod(0o755)  # so that root's PostgreSQL, which runs as another user, lies in it too
    try:
        if settings:
            with LocalSupabase(home) as stack, stack.connect() as connection:
                for name, value in settings.items():
                    connection.execute(f"alter system set {name} = '{value}'".encode())
        with LocalSupabase(home) as stack:
            yield stack, home
    finally:
        delete_home(home)


def _fill(
    stack: LocalSupabase,
    home: Path,
    ranking: TrainedRanking,
    users: list[tuple[npt.NDArray[np.int64], Float32s]],
    rng: np.random.Generator,
) -> None:
    """The users' ratings, the items table, the migration and the published run, with the planner's statistics that
    autovacuum would make within a minute."""
    with stack.connect() as connection:
        connection.execute(
            "create table public.votes (user_id bigint, movie_id bigint, rating real, primary key (user_id, movie_id))"
        )
        with connection.cursor().copy("copy public.votes from stdin") as copy:
            for user, (movies, stars) in enumerate(users):
                for movie, rating in zip(movies.tolist(), stars.tolist(), strict=True):
                    copy.write_row((user, movie, rating))
            for movie in rng.choice(len(ranking.movies), min(MANY, len(ranking.movies) // 2), replace=False).tolist():
                copy.write_row((MANY, ranking.movies.ids[movie].as_py(), 3.5 + movie % 4 / 2))
        connection.execute("create table public.movies (id bigint primary key, genre text)")
        with connection.cursor().copy("copy public.movies from stdin") as copy:
            for row, movie in enumerate(ranking.movies.ids.to_pylist()):
                copy.write_row((movie, "common" if row % RARE else "rare"))
    stack.migrate(migration(SchemaConfig(ratings_table="votes", items_table="movies", items_filter="genre")))
    _model(ranking, users, rng).save(home / "model")
    DirectTarget(Database(SecretStr(stack.db_url))).export(home / "model", ExportConfig())
    with stack.connect() as connection:
        connection.execute("analyze")


def _index(stack: LocalSupabase) -> Result:
    """Builds the run's indexes, over the direct connection, which waits as long as it takes and shows progress."""
    with DirectTarget(Database(SecretStr(stack.db_url))).session() as session:
        _, build_s = _timed(lambda run: session.call("mf_index", "index the movies", run=run), RUN)
        session.commit("index the movies")
    with stack.connect() as connection:
        sizes = "select pg_table_size('public.mf_movie_ranking'), sum(pg_relation_size(indexrelid)) "
        sizes += "from pg_stat_user_indexes where starts_with(indexrelname, 'mf_hnsw_')"
        table_bytes, index_bytes = (int(size) for size in connection.execute(sizes.encode()).fetchall()[0])
    return {"build_s": build_s, "index_mb": index_bytes / 2**20, "table_mb": table_bytes / 2**20}


def _users(
    rng: np.random.Generator, data: Ratings, ranking: TrainedRanking
) -> list[tuple[npt.NDArray[np.int64], Float32s]]:
    """Movies and ratings of ``USERS`` users for each number of ratings; they replace those of ``ranking``."""
    order = np.argsort(data.users, kind="stable")
    offsets = np.searchsorted(data.users[order], np.arange(data.users.max() + 2))
    counts, users = np.diff(offsets), []
    for rated in RATED:
        for user in rng.choice(np.flatnonzero(counts >= min(rated, np.sort(counts)[-USERS])), USERS):
            own = rng.permutation(order[offsets[user] : offsets[user + 1]])[:rated]
            users.append((data.movies[own].astype(np.int64), data.ratings[own]))
    ranking.vectors = np.stack(
        [ranking.model.user_vector(ranking.movies.rows(pa.array(movies)), stars) for movies, stars in users]
    )
    ranking.users = Vocabulary(pa.array(np.arange(len(users))))
    return users


def _model(
    ranking: TrainedRanking, users: list[tuple[npt.NDArray[np.int64], Float32s]], rng: np.random.Generator
) -> TrainedModel:
    """The ranking model beside a star model of random vectors."""
    module = MatrixFactorization(len(users), len(ranking.movies), FACTORS, rating_min=0.5, rating_max=5.0, mu=3.5)
    for part in (module.user_factors, module.movie_factors, module.user_bias, module.movie_bias):
        part.weight.data = torch.from_numpy(rng.normal(0, 0.1, part.weight.shape).astype(np.float32))
    return TrainedModel(
        module, ranking.users, ranking.movies, RUN, "none", {}, {}, {"validation_rmse": 0.8}, ranking=ranking
    )


def _calls(rng: np.random.Generator, users: list[tuple[npt.NDArray[np.int64], Float32s]]) -> dict[str, list[Call]]:
    calls: dict[str, list[Call]] = {}
    for at, rated in enumerate(RATED):
        those = range(at * USERS, (at + 1) * USERS)
        calls[_label(rated)] = [("recommend_movies", {"for_user": user}) for user in those]
        if rated == 200:
            calls[_filtered(rated)] = [("recommend_movies", {"for_user": user, "genre": "rare"}) for user in those]
    calls[_label(MANY)] = [("recommend_movies", {"for_user": MANY})] * 20
    movies = np.unique(np.concatenate([movies for movies, _ in users]))
    calls["similar_movies"] = [
        ("similar_movies", {"for_movie": movie}) for movie in rng.choice(movies, USERS, False).tolist()
    ]
    for rated, n in CALLS.items():
        start = RATED.index(rated) * USERS
        calls[f"recommend_from_ratings, {rated:,} ratings"] = [
            (
                "recommend_from_ratings",
                {
                    "ratings": [
                        {"movie_id": movie, "rating": rating}
                        for movie, rating in zip(movies.tolist(), stars.tolist(), strict=True)
                    ]
                },
            )
            for movies, stars in users[start : start + n]
        ]
    return calls


def _latencies(
    stack: LocalSupabase, calls: dict[str, list[Call]]
) -> tuple[dict[str, dict[str, float]], dict[str, list[list[int]]]]:
    """Medians of milliseconds in SQL and through the API, with means of the servers' CPU milliseconds, and the movies
    that were found, by label."""
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
                before = servers_cpu_s()
                answers, seconds = zip(*(_timed(ask, each) for each in asked), strict=True)
                times[label][way] = float(np.median(seconds)) * 1000
                times[label][f"{way}_cpu"] = (servers_cpu_s() - before) / len(asked) * 1000
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
