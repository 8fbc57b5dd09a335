"""List models behind one interface: ours, simple ones and other libraries, installed from ``requirements/bench.in``."""

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_matrix, csr_matrix
from threadpoolctl import threadpool_limits
from torch.nn.functional import normalize

from mf.biases import Ints
from mf.parallel import cores
from mf.ranking import Interactions, RankingConfig
from mf.ranking.fit import fit

Floats = npt.NDArray[np.float32]
Options = Mapping[str, Any]
Scorer = Callable[[Ints], Floats]  # from user rows int[n] to the scores of all movies, float32[n, movies]

HEAD = 4000  # most rated movies whose matrix EASE^R inverts


@dataclass(frozen=True)
class Ranker:
    """A list model and its options.

    Attributes:
        package: the library to install; ``None``: none is needed.
        grid: options of which those with the best NDCG@10 on the validation part, after training on the training part
            alone, are used for a seed; empty: ``options`` as given.
    """

    fit: Callable[[Interactions, Options], Scorer]
    options: Options = field(default_factory=dict)
    package: str | None = None
    grid: Sequence[Options] = ()

    @property
    def missing(self) -> str | None:
        """The library that is not installed."""
        try:
            if self.package:
                importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return self.package
        return None


def ours(data: Interactions, options: Options) -> Scorer:
    model = fit(data, RankingConfig(**options), torch.device("cpu"))
    vectors = model.user_vectors(data)
    return lambda users: model.scores(vectors[users])


def popularity(data: Interactions, options: Options) -> Scorer:
    counts = np.bincount(data.movies.numpy(), minlength=data.n_movies).astype(np.float32)
    return lambda users: np.tile(counts, (len(users), 1))


def item_knn(data: Interactions, options: Options) -> Scorer:
    """Cosine of the columns, the ``k`` nearest of each movie (Deshpande & Karypis 2004)."""
    x = rated(data)
    columns = x.multiply(1 / np.sqrt(x.sum(0).clip(min=1))).tocsr()
    similarity = (columns.T @ columns).toarray()
    np.fill_diagonal(similarity, 0)
    similarity[similarity <= -np.partition(-similarity, options["k"], axis=0)[options["k"]]] = 0
    return lambda users: x[users] @ similarity


def ease(data: Interactions, options: Options) -> Scorer:
    """EASE^R in full (Steck 2019), by the inverse of the movies' matrix; movies beyond the ``HEAD`` are not ranked."""
    x = rated(data)
    head = np.argsort(-np.asarray(x.sum(0)).ravel(), kind="stable")[:HEAD]
    own = x[:, head]
    inverse = np.linalg.inv((own.T @ own).toarray().astype(np.float64) + options["l2"] * np.eye(len(head)))
    weights = (-inverse / np.diag(inverse)).astype(np.float32)
    np.fill_diagonal(weights, 0)

    def score(users: Ints) -> Floats:
        scores = np.full((len(users), data.n_movies), -np.inf, np.float32)
        scores[:, head] = own[users] @ weights
        return scores

    return score


def implicit_als(data: Interactions, options: Options) -> Scorer:
    from implicit.cpu.als import AlternatingLeastSquares

    return _implicit(AlternatingLeastSquares(random_state=0, num_threads=cores(), **options), data)


def implicit_bpr(data: Interactions, options: Options) -> Scorer:
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    return _implicit(BayesianPersonalizedRanking(random_state=0, num_threads=cores(), **options), data)


def _implicit(model: Any, data: Interactions) -> Scorer:
    with threadpool_limits(1, "blas"):  # it has threads of its own
        model.fit(rated(data), show_progress=False)
    return lambda users: model.user_factors[users] @ model.item_factors.T


def cmfrec_implicit(data: Interactions, options: Options) -> Scorer:
    from cmfrec import CMF_implicit

    model = CMF_implicit(nthreads=cores(), verbose=False, **options).fit(coo_matrix(rated(data)))
    return lambda users: np.asarray(model.A_[users] @ model.B_.T, np.float32)


def sansa(data: Interactions, options: Options) -> Scorer:
    """A sparse approximation of EASE^R's inverse (Spišák et al. 2023)."""
    from sansa import SANSA, CHOLMODGramianFactorizerConfig, SANSAConfig, UMRUnitLowerTriangleInverterConfig

    inverter = UMRUnitLowerTriangleInverterConfig(scans=1, finetune_steps=5)
    model = SANSA(SANSAConfig(options["l2"], options["density"], CHOLMODGramianFactorizerConfig(), inverter))
    x = rated(data)
    model.fit(x)
    return lambda users: model.forward(x[users]).toarray()


def elsa(data: Interactions, options: Options) -> Scorer:
    """ELSA (Vančura et al. 2022): x A A' - x with rows of A of length 1, by the cosine with x and NAdam, learning rate
    0.1, batches of 128 users."""
    rng = torch.Generator().manual_seed(0)
    x = torch.from_numpy(rated(data).toarray())
    a = torch.nn.Parameter(torch.nn.init.xavier_uniform_(torch.empty(data.n_movies, options["factors"]), generator=rng))
    optimiser = torch.optim.NAdam([a], lr=0.1)

    def output(rows: torch.Tensor) -> torch.Tensor:
        directions = normalize(a)
        return rows @ directions @ directions.T - rows

    for _ in range(options["epochs"]):
        order = torch.randperm(data.n_users, generator=rng)
        for start in range(0, data.n_users, 128):
            users = order[start : start + 128]
            optimiser.zero_grad()
            (normalize(output(x[users])) - normalize(x[users])).square().mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()

    def score(users: Ints) -> Floats:
        with torch.no_grad():
            return output(x[users]).numpy()

    return score


def rated(data: Interactions) -> csr_matrix:
    """float32[users, movies], 1 for each pair."""
    ones = np.ones(len(data), np.float32)
    return csr_matrix((ones, (data.users.numpy(), data.movies.numpy())), shape=(data.n_users, data.n_movies))


ALS_GRID = [
    {"factors": 64, "alpha": alpha, "regularization": regularization}
    for alpha in (1.0, 2.0, 10.0)
    for regularization in (1.0, 10.0, 30.0, 100.0)
]
BPR_GRID = [
    {"factors": 64, "learning_rate": 0.01, "regularization": 0.01, "iterations": 100},  # the defaults
    {"factors": 64, "learning_rate": 0.05, "regularization": 0.02, "iterations": 300},
]
CMFREC_GRID = [{"k": 64, "alpha": alpha, "lambda_": l2} for alpha in (1.0, 10.0) for l2 in (1.0, 5.0, 20.0)]
SANSA_GRID = [{"l2": l2, "density": density} for l2 in (100.0, 300.0) for density in (0.01, 0.05)]
ELSA_GRID = [{"factors": factors, "epochs": epochs} for factors in (64, 256) for epochs in (10, 50)]
OURS = "ranking model, {}"
RANKERS = {
    "popularity": Ranker(popularity),
    "item-kNN": Ranker(item_knn, {"k": 100}),
    "implicit BPR, best of grid": Ranker(implicit_bpr, package="implicit", grid=BPR_GRID),
    "implicit ALS": Ranker(implicit_als, {"factors": 64}, "implicit"),
    "implicit ALS, best of grid": Ranker(implicit_als, package="implicit", grid=ALS_GRID),
    "cmfrec implicit, best of grid": Ranker(cmfrec_implicit, package="cmfrec", grid=CMFREC_GRID),
    "ELSA, best of grid": Ranker(elsa, grid=ELSA_GRID),
    "SANSA, best of grid": Ranker(sansa, package="sansa", grid=SANSA_GRID),
    "EASE^R": Ranker(ease, {"l2": 300.0}),
    "ranking model, rated_only": Ranker(ours, {"rated_only": True}),
    **{OURS.format(factors): Ranker(ours, {"factors": factors}) for factors in (32, 64, 128, 256)},
}
