"""Train a model on ratings tables: ids to rows, solver, metadata; pick the device."""

import dataclasses
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from mf.biases import Ints
from mf.config import Config
from mf.errors import ConfigError, DataError
from mf.model_directory import MovieCounts, TrainedModel, TrainedRanking
from mf.nodes import Nodes
from mf.ranking import PassReport, RankingConfig
from mf.ranking.fit import fit as fit_ranking
from mf.ratings.batches import Batches
from mf.ratings.config import CLICKS_WITHOUT_RANKING
from mf.ratings.schema import (
    MOVIE,
    RATING,
    USER,
    Provenance,
    TrainedOn,
    check_ratings_differ,
    in_memory,
    same_ratings,
)
from mf.ratings.vocabulary import Vocabulary
from mf.solvers import EpochReport, RatingTensors, fit, for_processes, solver_of
from mf.solvers.base import Callback, Checkpoint
from mf.together import Fitted, Job, fit_together, interactions_of
from mf.version import git_sha
from mf.warm_start import EarlierModel

ALONE = Nodes()
MERGED = 16  # batches whose movie counts are added up at a time


def train(
    ratings: pa.Table | Path,
    validation: pa.Table | Path,
    config: Config,
    *,
    device: torch.device,
    callbacks: Sequence[Callback] = (),
    checkpoint: Checkpoint | None = None,
    earlier: EarlierModel | None = None,
    provenance: Provenance | None = None,
    ranking: RankingConfig | None = None,
    lists_from_validation: bool = True,
    progress: Callable[[PassReport], None] | None = None,
    processes: int = 1,
    nodes: Nodes = ALONE,
) -> TrainedModel:
    """Trains a star model on ``ratings`` with the solver that ``config`` belongs to, then a ranking model.

    Without ratings (clicks) there is no star model: ``config``, ``callbacks``, ``checkpoint`` and ``earlier`` are not
    used, and ``ranking`` is needed.

    Args:
        ratings, validation: ratings tables (``mf.ratings.schema``), or files of them, which several processes read
            without this one holding their rows; ``validation`` may be empty. Users and movies that occur only in
            ``validation`` get no star vector.
        config: the solver's options.
        device: device to compute on.
        callbacks: called after every epoch (``vb`` and ``gibbs``: every sweep).
        checkpoint: the state is saved there after every epoch, and resumed from there.
        earlier: a model to start from (warm start); users and movies that it lacks start at random.
        provenance: source of the ratings, recorded with the model.
        ranking: options of the ranking model; default: none is trained.
        lists_from_validation: whether the ranking model trains on ``validation`` too; False where that part judges the
            model.
        progress: called after every pass of the ranking model.
        processes: share the training among as many processes per machine, each with a GPU of its own where ``device``
            is one, else with a share of the cores (``mf.together``).
        nodes: the machines that share the training; this one is the first, the others call ``assist``.

    Raises:
        DataError: there are no ratings, or they are all the same.
        TrainingError: a value is not finite, or a process died.
        ConfigError: the checkpoint belongs to other ratings or options, the solver cannot start from a model, or there
            is neither a rating nor a ranking model.
    """
    several = processes * nodes.count > 1
    if not several:
        ratings, validation = map(in_memory, (ratings, validation))
    parts = Batches(ratings), Batches(validation)
    rows = {"train": len(parts[0]), "validation": len(parts[1])}
    if not rows["train"]:
        raise DataError("found no ratings to train on, expected at least one: lower --val_size, or add ratings")
    listed = parts if lists_from_validation else parts[:1]
    stars = parts[0].has_ratings
    # Before several processes need the memory.
    origin = _trained_on(provenance, ratings, validation, lists_from_validation, earlier if stars else None)
    movie_counts = _movie_counts(parts if stars else listed)
    if not stars:
        if ranking is None:
            raise ConfigError(CLICKS_WITHOUT_RANKING)
        if several:
            job = Job(None, ranking, lists_from_validation, processes, device.type == "cuda", nodes=nodes)
            lists = fit_together(ratings, validation, job, progress=progress)[1]
        else:
            lists = train_ranking(_joined(listed), ranking, device=device, progress=progress)
        assert lists is not None
        return _of_clicks(lists, rows, origin, movie_counts)
    _check_ratings_differ(parts)
    config = for_processes(config, processes * nodes.count)
    epochs: list[EpochReport] = []
    callbacks = [epochs.append, *callbacks]
    started = time.perf_counter()
    if several:
        if ranking:
            _check_ratings_differ(listed)
        job = Job(config, ranking, lists_from_validation, processes, device.type == "cuda", checkpoint, nodes)
        star, lists = fit_together(ratings, validation, job, callbacks=callbacks, progress=progress, earlier=earlier)
        assert star is not None
        fitted = star
        seconds = time.perf_counter() - started - (lists.metrics["seconds"] if lists else 0)
    else:
        fitted = _fit_alone(ratings, validation, config, device, callbacks, checkpoint, earlier)
        seconds = time.perf_counter() - started
        lists = train_ranking(_joined(listed), ranking, device=device, progress=progress) if ranking else None
    kept = [epoch for epoch in epochs if epoch.kept][-1]
    return TrainedModel(
        module=fitted.module,
        users=fitted.users,
        movies=fitted.movies,
        run_id=_new_run_id(),
        solver=solver_of(config).name,
        config=config.model_dump(),
        rows=rows,
        metrics={
            "validation_rmse": kept.validation_rmse,
            "best_epoch": kept.epoch,
            "init_from": fitted.init_from,
            "seconds": seconds,  # of the star model's fit
            "epochs": [dataclasses.asdict(epoch) for epoch in epochs],
        },
        git_sha=git_sha(),
        trained_on=origin,
        ranking=lists,
        movie_counts=movie_counts,
        ignore_ratings=provenance.ignore_ratings if provenance else (),
    )


def _fit_alone(
    ratings: pa.Table,
    validation: pa.Table,
    config: Config,
    device: torch.device,
    callbacks: Sequence[Callback],
    checkpoint: Checkpoint | None,
    earlier: EarlierModel | None,
) -> Fitted:
    """A star model fitted by this process."""
    with ThreadPoolExecutor(2) as pool:
        encoded = pool.map(Vocabulary.encode, (ratings[USER], ratings[MOVIE]))
    (users, train_users), (movies, train_movies) = encoded

    def tensors(table: pa.Table, user_rows: Ints, movie_rows: Ints) -> RatingTensors:
        rows = torch.from_numpy(user_rows), torch.from_numpy(movie_rows)
        return RatingTensors(*rows, torch.tensor(table[RATING].to_numpy()), len(users), len(movies))

    trained_on = tensors(ratings, train_users, train_movies)
    held_out = tensors(validation, users.rows(validation[USER]), movies.rows(validation[MOVIE]))
    initial = earlier.initial(users, movies) if earlier else None
    module = fit(trained_on, held_out, config, device, callbacks, checkpoint, initial)
    return Fitted(module, users, movies, initial.name if initial else None)


def assist(
    ratings: pa.Table | Path,
    validation: pa.Table | Path,
    config: Config,
    *,
    nodes: Nodes,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
    earlier: EarlierModel | None = None,
    ranking: RankingConfig | None = None,
    lists_from_validation: bool = True,
    processes: int = 1,
) -> None:
    """This machine's part of a training on several, of which it is not the first; arguments as for ``train``."""
    stars = for_processes(config, processes * nodes.count) if Batches(ratings).has_ratings else None
    job = Job(stars, ranking, lists_from_validation, processes, device.type == "cuda", checkpoint, nodes)
    fit_together(ratings, validation, job, earlier=earlier)


def _joined(parts: Sequence[Batches]) -> pa.Table:
    return pa.concat_tables([part.table() for part in parts])


def _movie_counts(parts: Sequence[Batches]) -> MovieCounts:
    found: list[pa.Table] = []
    for batch in (batch for part in parts for batch in part.read(MOVIE)):
        counts = MovieCounts.of(batch[MOVIE])
        found.append(pa.table({"id": counts.ids, "ratings": counts.ratings.astype(np.int64)}))
        if len(found) > MERGED:
            found = [_summed(found)]
    total = _summed(found)
    return MovieCounts(total["id"].combine_chunks(), total["ratings"].to_numpy().astype(np.int32))


def _summed(counts: list[pa.Table]) -> pa.Table:
    total = pa.concat_tables(counts).group_by("id", use_threads=False).aggregate([("ratings", "sum")])
    return total.select(["id", "ratings_sum"]).rename_columns(["id", "ratings"])


def _check_ratings_differ(parts: Sequence[Batches]) -> None:
    """As ``mf.ratings.schema.check_ratings_differ``, of parts that may be files."""
    ends = [pc.min_max(batch[RATING]).as_py() for part in parts for batch in part.read(RATING)]
    low, rows = min(end["min"] for end in ends), sum(map(len, parts))
    if rows > 1 and low == max(end["max"] for end in ends):
        raise same_ratings("training ratings", low, rows)


def _of_clicks(
    ranking: TrainedRanking, rows: dict[str, int], trained_on: TrainedOn | None, movie_counts: MovieCounts
) -> TrainedModel:
    """A ranking model alone."""
    return TrainedModel(
        module=None,
        users=ranking.users,
        movies=ranking.movies,
        run_id=_new_run_id(),
        solver=None,
        config={},
        rows=rows,
        git_sha=git_sha(),
        trained_on=trained_on,
        ranking=ranking,
        movie_counts=movie_counts,
    )


def _new_run_id() -> str:
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def train_ranking(
    ratings: pa.Table,
    config: RankingConfig,
    *,
    device: torch.device,
    progress: Callable[[PassReport], None] | None = None,
) -> TrainedRanking:
    """Trains the ranking model. It needs no validation part: give it those ratings too.

    Args:
        ratings: a ratings table; without the column ``rating``, implicit feedback.
        config: options of the ranking model.
        device: device to compute on.
        progress: called after every pass.

    Raises:
        DataError: there are no ratings, or they are all the same.
        TrainingError: a vector is not finite.
    """
    started = time.perf_counter()
    check_ratings_differ(ratings, "training ratings")
    with ThreadPoolExecutor(2) as pool:
        (users, user_rows), (movies, movie_rows) = pool.map(Vocabulary.encode, (ratings[USER], ratings[MOVIE]))
    interactions = interactions_of(ratings, users, movies, user_rows, movie_rows)
    model = fit_ranking(interactions, config, device, progress)
    vectors = model.user_vectors(interactions)
    metrics = {"seconds": time.perf_counter() - started, "ratings": len(ratings)}
    return TrainedRanking(model, users, movies, vectors, config.model_dump(), metrics)


def _trained_on(
    provenance: Provenance | None,
    ratings: pa.Table | Path,
    validation: pa.Table | Path,
    lists: bool,
    earlier: EarlierModel | None,
) -> TrainedOn | None:
    if provenance is None:
        return None
    trained_on = TrainedOn.of(provenance, ratings, validation, lists)
    return trained_on.after(earlier.trained_on) if earlier else trained_on


def pick_device(use_cuda: bool, gpus: int = 0) -> tuple[torch.device, str]:
    """The device to train on, and a log line that names it.

    Args:
        use_cuda: use a GPU if one is available.
        gpus: required number of GPUs, all of which are used; 0: one, where there is one.

    Raises:
        ConfigError: there are fewer GPUs, or PyTorch cannot use them.
    """
    trouble = _gpu_trouble() if use_cuda or gpus else ""
    seen = 0 if trouble else torch.cuda.device_count()
    if gpus > seen:
        trouble = trouble or f"the machine has {seen}"
        raise ConfigError(f"expected {gpus} GPU{'s' if gpus > 1 else ''}, but {trouble}")
    if not use_cuda:
        return torch.device("cpu"), "training on the CPU"
    if trouble:
        return torch.device("cpu"), f"training on the CPU: {trouble}"
    if gpus > 1:
        return torch.device("cuda"), f"training on {gpus} GPUs: {torch.cuda.get_device_name()}"
    idle = f"; {seen - 1} more {'is' if seen == 2 else 'are'} idle: training uses one" if seen > 1 else ""
    return torch.device("cuda"), f"training on the GPU: {torch.cuda.get_device_name()}{idle}"


def _gpu_trouble() -> str:
    """Why no GPU can be used; empty if one can."""
    if torch.version.cuda is None:
        return f"no GPU is available to this PyTorch ({torch.__version__}): it is a CPU build"
    if not torch.cuda.is_available():
        return (
            f"no GPU is available to this PyTorch ({torch.__version__}): the machine has none, or its driver is too "
            f"old for CUDA {torch.version.cuda}"
        )
    try:
        # is_available is true for a GPU that this build has no kernels for.
        torch.ones(1, device="cuda").sum().item()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        return f"this PyTorch ({torch.__version__}) cannot use the {torch.cuda.get_device_name()}: {reason}"
    return ""
