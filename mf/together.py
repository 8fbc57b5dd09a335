"""Training by several processes: start them with torchrun's launcher, put their shares together."""

import dataclasses
import json
import logging
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from mf.biases import Ints
from mf.config import Config
from mf.errors import KilledError, MfError, TrainingError
from mf.model import MatrixFactorization
from mf.model_directory import RANKING_NUMBERS, TrainedRanking
from mf.nodes import Nodes
from mf.ranking import Interactions, PassReport, RankingConfig, RankingModel
from mf.ranking.fit import fit as fit_ranking
from mf.ranks import Ranks
from mf.ratings.collect import by_pair
from mf.ratings.schema import MOVIE, RATED_AT, RATING, USER, Provenance, has_ratings, times, write_ratings
from mf.ratings.share import ShareOfUsers, is_sorted
from mf.ratings.vocabulary import Vocabulary
from mf.solvers import EpochReport, RatingTensors, fit
from mf.solvers.base import Callback, Checkpoint
from mf.warm_start import EarlierModel

# Files in a training's scratch directory; with the number of a process, what it found for its own users.
TRAIN, VALIDATION, EARLIER, REPORTS = "train.parquet", "validation.parquet", "earlier", "reports.jsonl"
MOVIES, MODEL, USERS = "movies.parquet", "movies.pt", "users-{}.parquet"
LISTED_MOVIES, LISTS, LISTED_USERS = "ranking-movies.parquet", "ranking.pt", "ranking-users-{}.parquet"
RANKING_ARRAYS = ("bias", "embedding", "history", "liking")
ARRIVAL_S = 1800  # how long the first machine waits for the others


@dataclass(frozen=True)
class Fitted:
    """A star model on the CPU with its ids."""

    module: MatrixFactorization
    users: Vocabulary
    movies: Vocabulary
    init_from: str | None  # name of the earlier model


@dataclass(frozen=True)
class Job:
    """What the processes of a training are told.

    Attributes:
        config: of the star model; ``None``: none is trained.
        ranking: of the ranking model; ``None``: none is trained.
        lists_from_validation: whether the ranking model trains on the validation ratings too.
        processes: per machine, each with a GPU of its own or a share of the machine's cores.
        cuda: whether each has a GPU.
        checkpoint: a file; every process reads it, the first one writes it.
        nodes: the machines, each of which has all ratings.
    """

    config: Config | None
    ranking: RankingConfig | None = None
    lists_from_validation: bool = True
    processes: int = 1
    cuda: bool = False
    checkpoint: Checkpoint | None = None
    nodes: Nodes = field(default_factory=Nodes)

    @property
    def world(self) -> int:
        """Number of processes on all machines."""
        return self.processes * self.nodes.count


def fit_together(
    ratings: pa.Table | Path,
    validation: pa.Table | Path,
    job: Job,
    *,
    callbacks: Sequence[Callback] = (),
    progress: Callable[[PassReport], None] | None = None,
    earlier: EarlierModel | None = None,
) -> tuple[Fitted | None, TrainedRanking | None]:
    """Fits a star model and a ranking model by several processes; each reads the ratings of its own users.

    Every machine of ``job.nodes`` calls this; the models are found on the first one, and none on the others.

    Args:
        ratings, validation: ratings tables, which are written to scratch files and stay in memory meanwhile; or files
            of ``write_ratings``, sorted by user, of which this process reads nothing.
        callbacks: called in this process after every epoch.
        progress: called in this process after every pass of the ranking model.
        earlier: a star model to start from.

    Raises:
        TrainingError: a value is not finite, or a process failed.
        KilledError: a signal ended a process.
        MfError: as ``mf.solvers.fit``.
    """
    with tempfile.TemporaryDirectory(prefix="mf-") as scratch:
        folder = Path(scratch)
        for name, part in ((TRAIN, ratings), (VALIDATION, validation)):
            if isinstance(part, Path):
                (folder / name).symlink_to(part.absolute())
                continue
            table = part.select(_columns(part.column_names, job))
            ordered = table if is_sorted(table) else by_pair(table)
            write_ratings(ordered, folder / name, Provenance("scratch", len(table), 0, 0, len(table)))
        if earlier:
            earlier.save(folder / EARLIER)
        (folder / REPORTS).touch()
        if job.checkpoint:
            job.checkpoint.load()  # so that its number of finished epochs is known here
        with _followed(folder / REPORTS, callbacks, progress):
            _launch(folder, job)
        if job.nodes.rank:
            return None, None
        return _star_model(folder, job.world) if job.config else None, _ranking_model(folder, job)


def _columns(names: Sequence[str], job: Job) -> list[str]:
    """The columns of ratings that the training reads."""
    timed = job.ranking is not None and job.ranking.recency
    return [name for name in (USER, MOVIE, RATING, RATED_AT) if name in names and (timed or name != RATED_AT)]


def interactions_of(
    table: pa.Table, users: Vocabulary, movies: Vocabulary, user_rows: Any, movie_rows: Any
) -> Interactions:
    """A ratings table as tensors for the ranking model; the rows are those of the table's ids."""
    return Interactions(
        torch.from_numpy(user_rows),
        torch.from_numpy(movie_rows),
        torch.tensor(table[RATING].to_numpy()) if has_ratings(table) else None,
        len(users),
        len(movies),
        torch.tensor(times(table)) if RATED_AT in table.column_names else None,
    )


def _launch(folder: Path, job: Job) -> None:
    """Runs ``_fit_share`` in each process of this machine; returns when all have ended."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    nodes = job.nodes
    meeting: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0", "local_addr": "127.0.0.1"}
    if nodes.count > 1:
        # Static: c10d numbers machines as it likes, and the first one must be the first.
        meeting = {"rdzv_backend": "static", "rdzv_endpoint": nodes.address}
        meeting["rdzv_configs"] = {"rank": nodes.rank, "timeout": ARRIVAL_S}
    launch = LaunchConfig(
        min_nodes=nodes.count,
        max_nodes=nodes.count,
        nproc_per_node=job.processes,
        run_id="mf" if nodes.count > 1 else folder.name,
        max_restarts=0,
        **meeting,
    )
    try:
        with _own_signals(), _quiet("torch.distributed"), _quiet("torch.multiprocessing"):
            elastic_launch(launch, _fit_share)(folder, job)
    except SignalException as stopped:
        if stopped.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as error:
        for file in sorted(folder.glob("error-*.pickle")):
            raise pickle.loads(file.read_bytes()) from None  # noqa: S301  # written by a process of this training
        raise _death(error, job.world) from None


def _death(error: "ChildFailedError", processes: int) -> MfError:  # type: ignore[name-defined]  # noqa: F821
    """The error that says which process died of what."""
    # Of several failures the cause is the one by a signal; the others lost their connection to it.
    killed = [(rank, f) for rank, f in error.failures.items() if f.exitcode < 0 and f.exitcode != -signal.SIGTERM]
    rank, failure = killed[0] if killed else error.get_first_failure()
    which = f"process {rank + 1} of {processes}"
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        hint = ", which the system sends when memory runs out" if name == "SIGKILL" else ""
        return KilledError(
            f"training: {which} was ended by {name}{hint}; the others were stopped, only checkpoints are saved"
        )
    message = failure.message["message"] if isinstance(failure.message, dict) else failure.message
    text = " ".join(str(message).split())[:300]
    return TrainingError(f"training: {which} failed with exit status {failure.exitcode}: {text}")


def _fit_share(folder: Path, job: Job) -> None:
    """One process: reads its users' ratings, fits with the others, writes its users, and the movies if it is rank 0."""
    rank = int(os.environ["RANK"])
    if job.nodes.count == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if job.cuda else torch.device("cpu")
    if job.cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if job.cuda else "gloo")
    try:
        ranks = Ranks.joined()
        columns = _columns(pq.read_schema(folder / TRAIN).names, job)
        share = ShareOfUsers.read(folder / TRAIN, ranks.rank, ranks.world, columns)
        held_out = share.of(folder / VALIDATION)
        if job.config:
            _fit_stars(folder, job, share.table, held_out, device, ranks)
        if job.ranking:
            listed = [share.table, held_out] if job.lists_from_validation else [share.table]
            _fit_lists(folder, job.ranking, pa.concat_tables(listed), device, ranks)
        names = ([USERS] if job.config else []) + ([LISTED_USERS] if job.ranking else [])
        for name in names if job.nodes.count > 1 else []:
            _to_first_machine(folder, name, ranks, job.processes)
    except MfError as error:
        (folder / f"error-{rank}.pickle").write_bytes(pickle.dumps(error))
        sys.exit(1)
    finally:
        dist.destroy_process_group()


def _fit_stars(
    folder: Path, job: Job, ratings: pa.Table, held_out: pa.Table, device: torch.device, ranks: Ranks
) -> None:
    assert job.config is not None
    users, user_rows = Vocabulary.encode(ratings[USER])
    movies, movie_rows = _encode_movies(ratings, ranks)
    earlier = EarlierModel.read(folder / EARLIER) if (folder / EARLIER).exists() else None
    initial = earlier.initial(users, movies) if earlier else None

    def tensors(table: pa.Table, user_rows: Ints, movie_rows: Ints) -> RatingTensors:
        rows = torch.from_numpy(user_rows), torch.from_numpy(movie_rows)
        return RatingTensors(*rows, torch.tensor(table[RATING].to_numpy()), len(users), len(movies))

    train = tensors(ratings, user_rows, movie_rows)
    validation = tensors(held_out, users.rows(held_out[USER]), movies.rows(held_out[MOVIE]))
    callbacks = [] if ranks.rank else [_writer(folder / REPORTS)]
    model = fit(train, validation, job.config, device, callbacks, job.checkpoint, initial, ranks).cpu()
    state = {name: x for name, x in model.state_dict().items() if not name.startswith("user_")}
    bias = model.user_bias.weight.detach().numpy().ravel()
    _write_users(folder / USERS.format(ranks.rank), users, model.user_factors.weight.detach().numpy(), bias=bias)
    if not ranks.rank:
        pq.write_table(pa.table({MOVIE: movies.ids}), folder / MOVIES)
        torch.save({"state": state, "init_from": initial.name if initial else None}, folder / MODEL)


def _fit_lists(folder: Path, config: RankingConfig, table: pa.Table, device: torch.device, ranks: Ranks) -> None:
    started = time.perf_counter()
    users, user_rows = Vocabulary.encode(table[USER])
    movies, movie_rows = _encode_movies(table, ranks)
    interactions = interactions_of(table, users, movies, user_rows, movie_rows)
    model = fit_ranking(interactions, config, device, None if ranks.rank else _writer(folder / REPORTS), ranks=ranks)
    _write_users(folder / LISTED_USERS.format(ranks.rank), users, model.user_vectors(interactions))
    rows = sum(ranks.gather_objects(len(table)))
    if not ranks.rank:
        pq.write_table(pa.table({MOVIE: movies.ids}), folder / LISTED_MOVIES)
        torch.save(
            {
                "arrays": {name: torch.from_numpy(getattr(model, name)) for name in RANKING_ARRAYS},
                "numbers": {name: getattr(model, name) for name in RANKING_NUMBERS},
                "metrics": {"seconds": time.perf_counter() - started, "ratings": rows},
            },
            folder / LISTS,
        )


def _encode_movies(table: pa.Table, ranks: Ranks) -> tuple[Vocabulary, Ints]:
    """The movies in the tables of all processes, and int32[N], the row of each rating's movie."""
    own, rows = Vocabulary.encode(table[MOVIE])
    movies = Vocabulary.of(pa.chunked_array(ranks.gather_objects(own.ids)))
    return movies, movies.rows(own.ids).astype(np.int32)[rows]


def _write_users(path: Path, users: Vocabulary, vectors: npt.NDArray[np.float32], **columns: Any) -> None:
    embedding = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
    pq.write_table(pa.table({USER: users.ids, "embedding": embedding, **columns}), path)


def _to_first_machine(folder: Path, name: str, ranks: Ranks, processes: int) -> None:
    """Sends the files of the other machines' processes to the first one's, one after another."""
    for rank in range(processes, ranks.world):
        path = folder / name.format(rank)
        if ranks.rank == rank:
            content = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
            dist.send(torch.tensor(len(content)), 0)
            dist.send(content, 0)
        elif not ranks.rank:
            size = torch.zeros((), dtype=torch.int64)
            dist.recv(size, rank)
            content = torch.empty(int(size), dtype=torch.uint8)
            dist.recv(content, rank)
            path.write_bytes(content.numpy().tobytes())


def _read_users(folder: Path, name: str, world: int) -> tuple[Vocabulary, npt.NDArray[np.float32], pa.Table]:
    """The users of all processes, their vectors, and the other columns. One share at a time is held twice."""
    paths = [folder / name.format(rank) for rank in range(world)]
    n = sum(pq.read_metadata(path).num_rows for path in paths)
    others, vectors, start = [], None, 0
    for path in paths:
        part = pq.read_table(path)
        path.unlink()
        own = part["embedding"].combine_chunks().flatten().to_numpy().reshape(len(part), -1)
        if vectors is None:
            vectors = np.empty((n, own.shape[1]), np.float32)
        vectors[start : start + len(part)] = own
        start += len(part)
        others.append(part.drop_columns("embedding"))
    table = pa.concat_tables(others)
    assert vectors is not None
    return Vocabulary(table[USER].combine_chunks()), vectors, table


def _star_model(folder: Path, world: int) -> Fitted:
    """The model of all users, from the files that the processes wrote."""
    saved = torch.load(folder / MODEL, weights_only=True)
    users, vectors, others = _read_users(folder, USERS, world)
    state = saved["state"]
    state["user_factors.weight"] = torch.from_numpy(vectors)
    state["user_bias.weight"] = torch.from_numpy(others["bias"].to_numpy().copy()).unsqueeze(1)
    movies = pq.read_table(folder / MOVIES)[MOVIE].combine_chunks()
    numbers = {name: state[name].item() for name in ("rating_min", "rating_max", "mu")}
    module = MatrixFactorization(1, 1, vectors.shape[1], **numbers)
    for table in ("user_factors", "user_bias", "movie_factors", "movie_bias"):  # in place of tables of random numbers
        rows = state[f"{table}.weight"]
        embedding = torch.nn.Embedding(1, rows.shape[1])
        embedding.num_embeddings, embedding.weight.data = len(rows), rows
        setattr(module, table, embedding)
    return Fitted(module.eval(), users, Vocabulary(movies), saved["init_from"])


def _ranking_model(folder: Path, job: Job) -> TrainedRanking | None:
    """The ranking model of all users, from the files that the processes wrote."""
    if not job.ranking:
        return None
    saved = torch.load(folder / LISTS, weights_only=True)
    users, vectors, _ = _read_users(folder, LISTED_USERS, job.world)
    movies = Vocabulary(pq.read_table(folder / LISTED_MOVIES)[MOVIE].combine_chunks())
    model = RankingModel(**{name: x.numpy() for name, x in saved["arrays"].items()}, **saved["numbers"])
    return TrainedRanking(model, users, movies, vectors, job.ranking.model_dump(), saved["metrics"])


def _writer(path: Path) -> Callable[[EpochReport | PassReport], None]:
    """A callback that appends each report to a file, as a line of JSON."""

    def write(report: EpochReport | PassReport) -> None:
        with path.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(report)) + "\n")

    return write


@contextmanager
def _followed(
    path: Path, callbacks: Sequence[Callback], progress: Callable[[PassReport], None] | None
) -> Iterator[None]:
    """Calls ``callbacks`` or ``progress`` for each report that ``_writer`` appends to the file while the block runs."""
    over = threading.Event()
    failures: list[BaseException] = []

    def follow() -> None:
        try:
            with path.open() as file:
                line = ""
                while True:
                    ending = over.is_set()
                    while read := file.readline():
                        line += read
                        if line.endswith("\n"):
                            values, line = json.loads(line), ""
                            if "epoch" in values:
                                for callback in callbacks:
                                    callback(EpochReport(**values))
                            elif progress:
                                progress(PassReport(**values))
                    if ending:
                        return
                    over.wait(0.1)
        except BaseException as error:  # re-raised below, in the caller's thread
            failures.append(error)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failures:
        raise failures[0]


@contextmanager
def _own_signals() -> Iterator[None]:
    """Restores the signal handlers that torch's launcher replaces."""
    names = [s for s in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, s)]
    before = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in names}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keeps a logger silent: what it says of a failure comes as an exception too."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
