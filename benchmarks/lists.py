"""Top-k lists: the ranking model beside other libraries, and its cost beside products of sparse matrices."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from scipy.sparse import csr_matrix

from benchmarks import data
from benchmarks.apart import Result, run
from benchmarks.bars import Bar, bars, quotient
from benchmarks.encoded import EncodedRatings
from benchmarks.planted import FULL
from benchmarks.rankers import HEAD, OURS, RANKERS, Ranker, Scorer, ours, popularity, rated
from benchmarks.report import failures, number, ratio, table
from mf.biases import Ints
from mf.evaluation.metrics import CATALOGUE_METRICS, LIST_METRICS
from mf.evaluation.ranking import find_hits, score_users
from mf.evaluation.topk import top_k
from mf.parallel import cores
from mf.ranking import Interactions, RankingConfig
from mf.ranking.fit import fit
from mf.ranking.interactions import UserRows
from mf.ranking.matrix import RATED, RatingMatrix
from mf.ranking.relevance import default_threshold
from mf.ratings.config import SplitConfig
from mf.ratings.schema import MOVIE, RATED_AT, RATING, USER
from mf.ratings.split import Parts, split
from mf.workers import Workers

K, SEEDS = 10, (0, 1, 2)
METRICS = [metric.name for metric in (*LIST_METRICS, *CATALOGUE_METRICS)]
BOTH, ALONE = "train + validation", "train"  # what is trained on
DEFAULT = OURS.format(64)
SUBSETS = (20, 40, 80, 150, 300)  # users
FOLDED = (0, 1, 3, 10, 30)  # ratings of a new user
NEW_USERS = 0.2
SMALL = 800_000  # planted ratings
BLOCK = 64  # columns of a product
WAYS = ("ours", "SciPy", "torch")

NDCG_BARS = (0.264, 0.278, 0.250)
MEAN_BARS = {"ndcg": 0.267, "recall": 0.25, "map": 0.165, "hit_rate": 0.68, "coverage": 0.05}
RATED_ONLY_BAR, LAST_BAR, SUBSET_BAR = 0.228, 0.036, 1.2
SMALL_S, FULL_S, FULL_CPU_S, FULL_MB = 1.5, 20, 32, 1536


def section(ratings: Path | None, rows: int) -> str:
    """Quality on a CSV file of MovieLens ratings and cost on planted ones, as Markdown."""
    return "\n\n".join([*([quality(ratings)] if ratings else []), cost(rows)])


def quality(ratings: Path) -> str:
    """List metrics of every ranker on the same splits, of leave-last parts, of few users and of new ones."""
    results = {
        name: [run(f"{name}, seed {seed}", measure, path=str(ratings), name=name, seed=seed) for seed in SEEDS]
        for name in RANKERS
    }
    failed = {name: wrong[0] for name, each in results.items() if (wrong := [one for one in each if "error" in one])}
    found = {name: result for name, result in results.items() if name not in failed}
    last = {name: run(f"{name}, leave-last", measure, path=str(ratings), name=name, kind="leave_last")
            for name in ("popularity", DEFAULT)}  # fmt: skip
    few = run("subsets of users", subsets, path=str(ratings))
    new = run("new users", new_users, path=str(ratings))
    return "\n\n".join(
        part
        for part in (
            _explained(ratings),
            _table(found),
            failures(failed | {name: r for name, r in last.items() if "error" in r}),
            _chosen(found),
            _others(last, few, new),
            bars(_bars(found, last, few, new)),
        )
        if part
    )


def _explained(ratings: Path) -> str:
    return (
        f"{ratings.name}: the pipeline's random split (`mf.ratings.split`). Ratings in the upper quarter of the range "
        "are relevant, and all movies are ranked but those that the user has rated in the other two parts. "
        f"NDCG@{K} of the test part for {len(SEEDS)} seeds, after training on the training part alone (the mean) and "
        "on train + validation; the other metrics are means after the latter. Seconds are those of a fit, of CPU time "
        f"on {cores()} cores and of the clock, medians. EASE^R is the full model of the {HEAD:,} most rated movies. "
        "Best of grid: of the options below those with the best NDCG@10 on the validation part. 64 factors unless "
        "named."
    )


def _table(found: Mapping[str, Sequence[Result]]) -> str:
    lines = []
    for name, result in found.items():
        alone, both = ([one[parts] for one in result] for parts in (ALONE, BOTH))
        lines.append(
            (
                name,
                number(mean(one["ndcg"] for one in alone), 3),
                *(number(one["ndcg"], 3) for one in both),
                *(number(mean(one[metric] for one in both), 3) for metric in METRICS[:-1]),
                f"{mean(one['coverage'] for one in both):.1%}",
                *(number(float(np.median([one[key] for one in both])), 2) for key in ("fit_cpu_s", "fit_s")),
            )
        )
    header = ("", ALONE, *(f"seed {seed}" for seed in SEEDS), *(f"{name}@{K}" for name in METRICS[:-1]), "coverage")
    return table((*header, "CPU s", "s"), lines)


def _chosen(found: Mapping[str, Sequence[Result]]) -> str:
    """The options that the validation part chose, and the grids."""
    lines = []
    for name, result in found.items():
        if grid := RANKERS[name].grid:
            chosen = "; ".join(str(one["options"]) for one in result)
            values = {key: sorted({point[key] for point in grid}) for key in grid[0]}
            lines.append(f"- {name}: of {values}, seeds {', '.join(map(str, SEEDS))}: {chosen}")
    return "\n".join(lines)


def _others(last: Mapping[str, Result], few: Result, new: Result) -> str:
    """Leave-last parts, few users, new users."""
    text = []
    if not any("error" in result for result in last.values()):
        found, popular = (last[name][BOTH]["ndcg"] for name in (DEFAULT, "popularity"))
        text.append(f"Each user's newest rating, whatever it is, to be found: {found:.4f}, popularity {popular:.4f}.")
    if "error" not in few:
        lines = [(users, *(number(few[name][str(users)], 3) for name in ("ours", "popularity"))) for users in SUBSETS]
        text.append(f"Trained on a random subset of the users, mean of {len(SEEDS) ** 2} draws and splits:")
        text.append(table(("users", "ranking model", "popularity"), lines))
    if "error" not in new:
        rows = [(name, *(number(new[key][str(n)], 3) for n in FOLDED))
                for name, key in (("ranking model", "ours"), ("popularity", "popularity"))]  # fmt: skip
        text.append(
            f"Users who were not trained on (a fifth, mean of {len(SEEDS)} draws), with n of their ratings folded in:"
        )
        text.append(table(("", *(f"n = {n}" for n in FOLDED)), rows))
    return "\n\n".join([*text, failures({"subsets of users": few, "new users": new})]).strip()


def _bars(found: Mapping[str, Sequence[Result]], last: Mapping[str, Result], few: Result, new: Result) -> list[Bar]:
    def of(name: str, parts: str, metric: str) -> list[float]:
        return [one[parts][metric] for one in found.get(name, [])]

    def mean_of(name: str, parts: str, metric: str) -> float | None:
        values = of(name, parts, metric)
        return mean(values) if values else None

    each = dict(enumerate(of(DEFAULT, BOTH, "ndcg")))
    reached = [
        Bar(f"NDCG@{K}, seed {seed}", each.get(seed), at_least=bound, digits=3)
        for seed, bound in zip(SEEDS, NDCG_BARS, strict=True)
    ]
    reached += [
        Bar(f"{metric}, mean", mean_of(DEFAULT, BOTH, metric), at_least=bound, digits=3)
        for metric, bound in MEAN_BARS.items()
    ]
    alone = mean_of("ranking model, rated_only", ALONE, "ndcg")
    reached.append(Bar(f"NDCG@{K}, rated_only, {ALONE}", alone, at_least=RATED_ONLY_BAR, digits=3))
    for name in found:
        if not name.startswith("ranking model"):
            times = quotient(mean_of(DEFAULT, BOTH, "ndcg"), mean_of(name, BOTH, "ndcg"))
            reached.append(Bar(f"NDCG@{K} / that of {name}", times, at_least=1))
    newest = last[DEFAULT].get(BOTH, {}).get("ndcg")
    reached.append(Bar(f"NDCG@{K}, leave-last", newest, at_least=LAST_BAR, digits=4))
    for users in SUBSETS:
        times = quotient(*(few.get(name, {}).get(str(users)) for name in ("ours", "popularity")))
        reached.append(Bar(f"{users} users: NDCG@{K} / popularity's", times, at_least=SUBSET_BAR))
    for n in FOLDED[1:]:
        times = quotient(*(new.get(name, {}).get(str(n)) for name in ("ours", "popularity")))
        reached.append(Bar(f"new users, n = {n}: NDCG@{K} / popularity's", times, at_least=1))
    return reached


def measure(path: str, name: str, seed: int = 0, kind: str = "random") -> Result:
    """Metrics of a ranker on the test part of a split.

    Args:
        path: a CSV file of user, movie, rating and time.
        name: of ``RANKERS``.
        kind: of split; with "leave_last" any rating is relevant.

    Returns:
        for each of ``ALONE`` and ``BOTH``, what it is trained on, the metrics, fit_s and fit_cpu_s; and options; or
        error if the library is not installed.
    """
    ranker = RANKERS[name]
    if ranker.missing:
        return {"error": f"{ranker.missing} is not installed"}
    cut = split(read(path), SplitConfig.of(split=kind, seed=seed, val_size=0.1, test_size=0.1))
    options = best_options(ranker, cut) if ranker.grid else dict(ranker.options)
    found: Result = {"options": options}
    for parts, training in ((ALONE, cut.train), (BOTH, pa.concat_tables([cut.train, cut.validation]))):
        # Movies of the validation part are in nobody's list: the user has rated them, whatever was trained on.
        encoded = EncodedRatings.of(training, cut.test, cut.validation if parts == ALONE else None)
        interactions = interactions_of(encoded)
        started = time.perf_counter(), time.process_time()
        scorer = ranker.fit(interactions, options)
        seconds = time.perf_counter() - started[0], time.process_time() - started[1]
        threshold = (
            float(encoded.train_ratings.min()) if kind == "leave_last" else default_threshold(encoded.train_ratings)
        )
        found[parts] = {**scores(scorer, encoded, threshold), "fit_s": seconds[0], "fit_cpu_s": seconds[1]}
    return found


def best_options(ranker: Ranker, cut: Parts) -> dict[str, Any]:
    """Options of the grid with the best NDCG on the validation part, trained on the training part."""
    encoded = EncodedRatings.of(cut.train, cut.validation)
    interactions, threshold = interactions_of(encoded), default_threshold(encoded.train_ratings)
    points = [dict(ranker.options) | dict(point) for point in ranker.grid]
    return max(points, key=lambda point: scores(ranker.fit(interactions, point), encoded, threshold)["ndcg"])


def read(path: str) -> pa.Table:
    """The first four columns of a CSV file as a table of ratings."""
    frame = pd.read_csv(path, usecols=[0, 1, 2, 3])
    users, movies, ratings, times = (frame.iloc[:, column].to_numpy() for column in range(4))
    rated_at = pa.array(times.astype("datetime64[s]"), pa.timestamp("us", "UTC"))
    return pa.table({USER: users, MOVIE: movies, RATING: ratings.astype(np.float32), RATED_AT: rated_at})


def interactions_of(encoded: EncodedRatings) -> Interactions:
    """The training ratings."""
    users, movies = encoded.users, encoded.movies
    ratings = torch.from_numpy(encoded.train_ratings.copy())
    rows = torch.from_numpy(users.train_rows), torch.from_numpy(movies.train_rows)
    return Interactions(*rows, ratings, len(users.vocabulary), len(movies.vocabulary))


def scores(scorer: Scorer, encoded: EncodedRatings, threshold: float) -> dict[str, float]:
    """Metrics of the lists of all test users who were trained on and have a relevant test movie."""
    counts = encoded.relevant_counts(threshold)
    users = np.flatnonzero((encoded.users.test_id_rows >= 0) & (counts > 0))
    catalogue = encoded.movies.vocabulary
    known = encoded.already_rated(catalogue)[users]
    relevant = encoded.relevant(threshold, catalogue)[users]
    lists = best(scorer(encoded.users.test_id_rows[users]), known)
    per_user = score_users(find_hits(lists, relevant), counts[users]).mean(0)
    values = {metric.name: float(value) for metric, value in zip(LIST_METRICS, per_user, strict=True)}
    return values | {metric.name: metric.of_lists(lists, relevant.shape[1]) for metric in CATALOGUE_METRICS}


def best(scores: Any, known: csr_matrix) -> Ints:
    """int64[n, K], the highest of ``scores`` float32[n, movies] without the movies that are ``known``."""
    scores = np.array(scores, np.float32)
    scores[known.nonzero()] = -np.inf
    return top_k(torch.from_numpy(scores), K).numpy()


def subsets(path: str) -> Result:
    """NDCG of the ranking model and of popularity, trained on random subsets of the users, by their number."""
    everything = read(path)
    found: dict[str, dict[str, float]] = {"ours": {}, "popularity": {}}
    for n in SUBSETS:
        each: list[list[float]] = []
        for draw in SEEDS:
            ids = np.unique(everything[USER])
            chosen = np.random.default_rng(draw).choice(ids, n, replace=False)
            own = everything.filter(pa.array(np.isin(everything[USER], chosen)))
            for seed in SEEDS:
                cut = split(own, SplitConfig(seed=seed, val_size=0.1, test_size=0.1))
                encoded = EncodedRatings.of(pa.concat_tables([cut.train, cut.validation]), cut.test)
                interactions, threshold = interactions_of(encoded), default_threshold(encoded.train_ratings)
                scorers = ours(interactions, {}), popularity(interactions, {})
                each.append([scores(scorer, encoded, threshold)["ndcg"] for scorer in scorers])
        found["ours"][str(n)], found["popularity"][str(n)] = np.mean(each, axis=0).tolist()
    return found


def new_users(path: str) -> Result:
    """NDCG of the ranking model and of popularity for users who were not trained on, by ratings folded in."""
    everything = read(path)
    each: dict[tuple[str, int], list[float]] = {(name, n): [] for name in ("ours", "popularity") for n in FOLDED}
    for draw in SEEDS:
        rng = np.random.default_rng(draw)
        ids = rng.permutation(np.unique(everything[USER]))
        new = np.isin(everything[USER], ids[: int(len(ids) * NEW_USERS)])
        encoded = EncodedRatings.of(everything.filter(pa.array(~new)), everything.filter(pa.array(new)))
        interactions, threshold = interactions_of(encoded), default_threshold(encoded.train_ratings)
        model = fit(interactions, RankingConfig(), torch.device("cpu"))
        popular = popularity(interactions, {})(np.zeros(1, np.int64))
        for user in range(len(encoded.users.test_ids)):
            own = rng.permutation(np.flatnonzero(encoded.users.test_index == user))
            movies, stars = encoded.movies.test_rows[own], encoded.test_ratings[own]
            for n in FOLDED:
                relevant = movies[n:][(stars[n:] >= threshold) & (movies[n:] >= 0)]
                if not len(relevant):
                    continue
                known = one_row(movies[:n][movies[:n] >= 0], interactions.n_movies)
                vector = model.user_vector(movies[:n], stars[:n])
                for name, scored in (("ours", model.scores(vector[None])), ("popularity", popular)):
                    hits = find_hits(best(scored, known), one_row(relevant, interactions.n_movies))
                    each[name, n].append(float(score_users(hits, np.array([len(relevant)]))[0, 0]))
    return {name: {str(n): mean(each[name, n]) for n in FOLDED} for name in ("ours", "popularity")}


def one_row(movies: Ints, n_movies: int) -> csr_matrix:
    return csr_matrix((np.ones(len(movies), np.bool_), ([0] * len(movies), movies)), shape=(1, n_movies))


def cost(rows: int) -> str:
    """Time and memory of a fit on planted ratings, and of one product, as Markdown."""
    sizes = [SMALL, *([rows] if rows != SMALL else [])]
    fits = {n: run(f"fit of {n:,} planted", measure_fit, name=f"planted:{n}:0") for n in sizes}
    products = {n: run(f"products with {n:,} planted", measure_products, name=f"planted:{n}:0") for n in sizes}
    said = (
        "Fits of planted ratings (`benchmarks/planted.py`) with the defaults. Beyond: the peak of the resident memory "
        "less that of the process before the fit, which holds the ratings."
    )
    header = ("ratings", "s", "CPU s", "MB beyond", "teacher's rank", "energy beyond")
    digits = {"ratings": 0, "fit_s": 1, "fit_cpu_s": 1, "beyond_mb": 0, "rank": 0, "energy_beyond": 3}
    lines = [[number(fits[n].get(key), places) for key, places in digits.items()] for n in sizes]
    failed = {f"{what}, {n:,} ratings": one for what, each in (("the fit", fits), ("a product", products))
              for n, one in each.items()}  # fmt: skip
    parts = [said, table(header, lines), _products(products), failures(failed)]
    reached = []
    if "fit_s" in fits[SMALL]:
        reached.append(Bar(f"{fits[SMALL]['ratings']:,} ratings: s", fits[SMALL]["fit_s"], at_most=SMALL_S, digits=1))
    if rows >= FULL:
        full = fits[rows]
        reached += [
            Bar(f"{rows:,} ratings: s", full.get("fit_s"), at_most=FULL_S, digits=1),
            Bar(f"{rows:,} ratings: CPU s", full.get("fit_cpu_s"), at_most=FULL_CPU_S, digits=1),
            Bar(f"{rows:,} ratings: MB beyond", full.get("beyond_mb"), at_most=FULL_MB, digits=0),
        ]
    return "\n\n".join(part for part in (*parts, bars(reached)) if part)


def _products(products: Mapping[int, Result]) -> str:
    """Nanoseconds of both products, ours and those of SciPy and torch."""
    lines = []
    for n, measured in products.items():
        for way in WAYS:
            cells = []
            for product in ("times", "transposed"):
                ns = measured.get(way, {}).get(product)
                cells += [number(ns, 1), ratio(ns, measured.get("ours", {}).get(product))]
            lines.append((f"{measured.get('ratings', n):,} ratings, {way}", *cells))
    said = (
        f"A fit consists of products X Z and Xᵀ Y of the rated pairs with matrices of {BLOCK} columns. Nanoseconds of "
        "CPU time per rating, float32, the fastest of 3, beside the same products of compressed sparse rows:"
    )
    return f"{said}\n\n{table(('', 'X Z', '× ours', 'Xᵀ Y', '× ours'), lines)}"


def measure_fit(name: str) -> Result:
    """Time of a fit of a planted data set, and its memory beyond that of the process before it."""
    interactions = planted(name)
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # the peak starts anew
    before = memory_mb("VmRSS")
    started = time.perf_counter(), time.process_time()
    model = fit(interactions, RankingConfig(), torch.device("cpu"))
    return {
        "fit_s": time.perf_counter() - started[0],
        "fit_cpu_s": time.process_time() - started[1],
        "beyond_mb": memory_mb("VmHWM") - before,
        "ratings": len(interactions),
        "rank": model.teacher_rank,
        "energy_beyond": model.energy_beyond,
    }


def measure_products(name: str) -> Result:
    """Nanoseconds of CPU time per rating of X Z and X' Y, by our matrix and by SciPy's and torch's."""
    interactions = planted(name)
    users, movies = interactions.n_users, interactions.n_movies
    rng = torch.Generator().manual_seed(0)
    z, y = (torch.randn(n, BLOCK, generator=rng) for n in (movies, users))
    ones, out = np.ones(users, np.float32), torch.empty(movies, BLOCK)
    x = rated(interactions)
    transposed = x.T.tocsr()
    by_torch = [torch.sparse_csr_tensor(m.indptr, m.indices, m.data, m.shape) for m in (x, transposed)]
    with Workers(torch.device("cpu")) as workers:
        rows = UserRows.of(interactions)
        matrix = RatingMatrix(rows, movies, {RATED: None}, None, 0.5, ones, ones, torch.device("cpu"), workers)
        own = [
            fastest(lambda: matrix.times({RATED: z}, matrix.scale)),
            fastest(lambda: matrix.transposed(y, {RATED: out})),
        ]
    ways = {
        "ours": own,
        "SciPy": [fastest(lambda: x @ z.numpy()), fastest(lambda: transposed @ y.numpy())],
        "torch": [fastest(lambda: by_torch[0] @ z), fastest(lambda: by_torch[1] @ y)],
    }
    n = len(interactions)
    return {
        "ratings": n,
        **{way: {"times": a / n * 1e9, "transposed": b / n * 1e9} for way, (a, b) in ways.items()},
    }


def fastest(work: Callable[[], object], times: int = 3) -> float:
    """CPU seconds of the fastest of several calls."""

    def once() -> float:
        started = time.process_time()
        work()
        return time.process_time() - started

    return min(once() for _ in range(times))


def planted(name: str) -> Interactions:
    """All ratings of a planted data set."""
    parts = data.load(name)
    users, movies, ratings = (
        torch.from_numpy(np.concatenate([getattr(parts.train, column), getattr(parts.test, column)]))
        for column in ("users", "movies", "ratings")
    )
    return Interactions(users, movies, ratings, parts.n_users, parts.n_movies)


def memory_mb(what: str) -> float:
    """Resident memory of this process: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status")
    return int(status.read_text().partition(f"{what}:")[2].split()[0]) / 1024 if status.exists() else float("nan")
