"""Other libraries behind one interface; installed from ``requirements/bench.in``."""

import importlib.metadata
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.apart import Result
from benchmarks.data import Ratings, Split, load
from mf.parallel import cores

Floats = npt.NDArray[np.floating]
# From options and a split: seconds of preparation (ratings to the library's format), seconds of training, and
# predictions for the test part.
TrainAndPredict = Callable[[Mapping[str, Any], Split], tuple[float, float, Floats]]


def surprise_svd(options: Mapping[str, Any], split: Split) -> tuple[float, float, Floats]:
    import pandas as pd
    from surprise import SVD, Dataset, Reader

    train = split.train
    started = time.perf_counter()
    frame = pd.DataFrame({"user": train.users, "movie": train.movies, "rating": train.ratings})
    scale = Reader(rating_scale=(float(train.ratings.min()), float(train.ratings.max())))
    ratings = Dataset.load_from_df(frame, scale).build_full_trainset()
    prepared = time.perf_counter()
    model = SVD(random_state=0, **options)
    model.fit(ratings)
    fitted = time.perf_counter()
    users = _rows(ratings._raw2inner_id_users, split.test.users, split.n_users)
    movies = _rows(ratings._raw2inner_id_items, split.test.movies, split.n_movies)
    predictions = _biased(ratings.global_mean, model.bu, model.bi, model.pu, model.qi, users, movies)
    return prepared - started, fitted - prepared, predictions


def cornac_mf(options: Mapping[str, Any], split: Split) -> tuple[float, float, Floats]:
    from cornac.data import Dataset
    from cornac.models import MF

    train = split.train
    started = time.perf_counter()
    ratings = Dataset.build(zip(train.users.tolist(), train.movies.tolist(), train.ratings.tolist(), strict=True))
    prepared = time.perf_counter()
    # No seed: with one it ignores num_threads and uses one thread.
    model = MF(num_threads=cores(), **options)
    model.fit(ratings)
    fitted = time.perf_counter()
    users = _rows(ratings.uid_map, split.test.users, split.n_users)
    movies = _rows(ratings.iid_map, split.test.movies, split.n_movies)
    biases, vectors = (model.u_biases, model.i_biases), (model.u_factors, model.i_factors)
    return prepared - started, fitted - prepared, _biased(ratings.global_mean, *biases, *vectors, users, movies)


def cmfrec_cmf(options: Mapping[str, Any], split: Split) -> tuple[float, float, Floats]:
    from cmfrec import CMF
    from scipy.sparse import coo_matrix

    train = split.train
    started = time.perf_counter()
    ratings = coo_matrix((train.ratings, (train.users, train.movies)), shape=(split.n_users, split.n_movies))
    prepared = time.perf_counter()
    model = CMF(nthreads=cores(), verbose=False, **options)
    model.fit(ratings)
    fitted = time.perf_counter()
    return prepared - started, fitted - prepared, model.predict(split.test.users, split.test.movies)


def myfm_ids(options: Mapping[str, Any], split: Split) -> tuple[float, float, Floats]:
    from myfm import MyFMRegressor
    from scipy.sparse import csr_matrix

    def one_hot(part: Ratings) -> csr_matrix:
        columns = np.stack([part.users, part.movies + split.n_users], axis=1).ravel()
        shape = (len(part), split.n_users + split.n_movies)
        return csr_matrix((np.ones(len(columns)), columns, np.arange(0, len(columns) + 1, 2)), shape)

    fits = dict(options)
    started = time.perf_counter()
    features = one_hot(split.train)
    groups = [0] * split.n_users + [1] * split.n_movies
    prepared = time.perf_counter()
    model = MyFMRegressor(rank=fits.pop("rank"))
    model.fit(features, split.train.ratings.astype(np.float64), grouping=groups, **fits)
    fitted = time.perf_counter()
    return prepared - started, fitted - prepared, model.predict(one_hot(split.test))


def _rows(known: Mapping[int, int], ids: npt.NDArray[np.int32], n: int) -> npt.NDArray[np.int64]:
    """A library's rows for ``ids`` below ``n``; -1 for unseen ids."""
    rows = np.full(n, -1)
    rows[list(known.keys())] = list(known.values())
    return rows[ids]


def _biased(
    mean: float,
    user_bias: Floats,
    movie_bias: Floats,
    p: Floats,
    q: Floats,
    users: npt.NDArray[np.int64],
    movies: npt.NDArray[np.int64],
) -> Floats:
    """mean + b_u + b_m + p_u·q_m; row -1 has bias 0 and a zero vector, as in the libraries' own predictions."""
    scores: Floats = mean + np.where(users >= 0, user_bias[users], 0) + np.where(movies >= 0, movie_bias[movies], 0)
    return scores + np.where((users >= 0) & (movies >= 0), np.einsum("ij,ij->i", p[users], q[movies]), 0)


@dataclass(frozen=True)
class Peer:
    """A library and its options: the defaults, or better ones where known."""

    package: str
    fit: TrainAndPredict
    options: Mapping[str, Any]

    @property
    def version(self) -> str | None:
        """The installed version; ``None`` if not installed."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None


CMFREC = {"k": 64, "niter": 10, "use_cg": True, "finalize_chol": False}
PEERS = {
    "Surprise SVD": Peer("scikit-surprise", surprise_svd, {"n_factors": 64, "n_epochs": 20}),
    "cornac MF": Peer(
        "cornac",
        cornac_mf,
        {"k": 64, "max_iter": 20, "learning_rate": 0.01, "lambda_reg": 0.02, "use_bias": True},
    ),
    "cmfrec CMF": Peer("cmfrec", cmfrec_cmf, {**CMFREC, "lambda_": 10.0}),
    "cmfrec CMF, scaled": Peer("cmfrec", cmfrec_cmf, {**CMFREC, "lambda_": 0.05, "scale_lam": True}),
    "cmfrec CMF, implicit": Peer("cmfrec", cmfrec_cmf, {**CMFREC, "lambda_": 15.0, "add_implicit_features": True}),
    "myfm (ids)": Peer("myfm", myfm_ids, {"rank": 16, "n_iter": 100, "n_kept_samples": 80}),
}


def measure(data: str, name: str) -> Result:
    """Trains a peer on a data set.

    Returns:
        version, rmse, preparation_s, fit_s, total_s; or error if it is not installed.
    """
    peer = PEERS[name]
    if peer.version is None:
        return {"error": f"{peer.package} is not installed"}
    split = load(data)
    preparation, seconds, predictions = peer.fit(peer.options, split)
    return {
        "version": peer.version,
        "rmse": split.rmse(predictions),
        "preparation_s": preparation,
        "fit_s": seconds,
        "total_s": preparation + seconds,
    }
