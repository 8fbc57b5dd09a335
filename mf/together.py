"""Training by several processes on this machine: start them with torchrun's launcher, put their shares together."""

import dataclasses
import json
import logging
import os
import pickle
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from mf.config import Config
from mf.errors import MfError, TrainingError
from mf.model import MatrixFactorization
from mf.ranks import Ranks
from mf.ratings.collect import by_pair
from mf.ratings.schema import MOVIE, RATING, USER, Provenance, write_ratings
from mf.ratings.share import ShareOfUsers, is_sorted
from mf.ratings.vocabulary import Vocabulary
from mf.solvers import EpochReport, RatingTensors, fit
from mf.solvers.base import Callback, Checkpoint
from mf.warm_start import EarlierModel

# Files in a training's scratch directory.
TRAIN, VALIDATION, EARLIER = "train.parquet", "validation.parquet", "earlier"
REPORTS, MOVIES, MODEL = "epochs.jsonl", "movies.parquet", "movies.pt"


@dataclass(frozen=True)
class Fitted:
    """What the processes made together."""

    module: MatrixFactorization  # on the CPU
    users: Vocabulary
    movies: Vocabulary
    init_from: str | None  # name of the earlier model


def fit_together(
    ratings: pa.Table,
    validation: pa.Table,
    config: Config,
    processes: int,
    *,
    cuda: bool = False,
    callbacks: Sequence[Callback] = (),
    checkpoint: Checkpoint | None = None,
    earlier: EarlierModel | None = None,
) -> Fitted:
    """Fits a star model by several processes; each reads the ratings of its own users from a scratch file.

    Args:
        ratings, validation: ratings tables.
        processes: how many, each with a GPU of its own or a share of this machine's cores.
        callbacks: called in this process after every epoch.
        checkpoint: a file; every process reads it, the first one writes it.

    Raises:
        TrainingError: a process died, or a value is not finite.
        MfError: as ``mf.solvers.fit``.
    """
    with tempfile.TemporaryDirectory(prefix="mf-") as scratch:
        folder = Path(scratch)
        for name, table in ((TRAIN, ratings), (VALIDATION, validation)):
            ordered = table if is_sorted(table) else by_pair(table)
            write_ratings(ordered, folder / name, Provenance("scratch", len(table), 0, 0, len(table)))
        if earlier:
            earlier.save(folder / EARLIER)
        (folder / REPORTS).touch()
        if checkpoint:
            checkpoint.load()  # so that its number of finished epochs is known here
        with _followed(folder / REPORTS, callbacks):
            _launch(folder, config, processes, cuda, checkpoint)
        return _put_together(folder, processes)


def _launch(folder: Path, config: Config, processes: int, cuda: bool, checkpoint: Checkpoint | None) -> None:
    """Runs ``_fit_share`` in each process; returns when all have ended."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
    )
    try:
        with _own_signals(), _quiet("torch.distributed"), _quiet("torch.multiprocessing"):
            elastic_launch(launch, _fit_share)(folder, config, cuda, checkpoint)
    except SignalException as stopped:
        if stopped.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as error:
        for file in sorted(folder.glob("error-*.pickle")):
            raise pickle.loads(file.read_bytes()) from None  # noqa: S301  # written by a process of this training
        raise TrainingError(_death(error, processes)) from None


def _death(error: "ChildFailedError", processes: int) -> str:  # type: ignore[name-defined]  # noqa: F821
    """Which process died of what, in one sentence."""
    # Of several failures the cause is the one by a signal; the others lost their connection to it.
    killed = [(rank, f) for rank, f in error.failures.items() if f.exitcode < 0 and f.exitcode != -signal.SIGTERM]
    rank, failure = killed[0] if killed else error.get_first_failure()
    which = f"process {rank + 1} of {processes}"
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        hint = ", which the system sends when memory runs out" if name == "SIGKILL" else ""
        return f"training: {which} was ended by {name}{hint}; the others were stopped, only checkpoints are saved"
    message = failure.message["message"] if isinstance(failure.message, dict) else failure.message
    return f"training: {which} failed with exit status {failure.exitcode}: {' '.join(str(message).split())[:300]}"


def _fit_share(folder: Path, config: Config, cuda: bool, checkpoint: Checkpoint | None) -> None:
    """One process: reads its users' ratings, fits with the others, writes its users, and the movies if it is rank 0."""
    rank = int(os.environ["RANK"])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        _fit(folder, config, device, Ranks.joined(), checkpoint)
    except MfError as error:
        (folder / f"error-{rank}.pickle").write_bytes(pickle.dumps(error))
        sys.exit(1)
    finally:
        dist.destroy_process_group()


def _fit(folder: Path, config: Config, device: torch.device, ranks: Ranks, checkpoint: Checkpoint | None) -> None:
    share = ShareOfUsers.read(folder / TRAIN, ranks.rank, ranks.world)
    held_out = share.of(folder / VALIDATION)
    users, user_rows = Vocabulary.encode(share.table[USER])
    own_movies = Vocabulary.of(share.table[MOVIE])
    movies = Vocabulary.of(pa.chunked_array(ranks.gather_objects(own_movies.ids)))
    earlier = EarlierModel.read(folder / EARLIER) if (folder / EARLIER).exists() else None
    initial = earlier.initial(users, movies) if earlier else None

    def interactions(table: pa.Table, rows: np.typing.NDArray[np.integer]) -> RatingTensors:
        columns = (rows, movies.rows(table[MOVIE]), table[RATING].to_numpy().copy())
        user_rows, movie_rows, values = map(torch.from_numpy, columns)
        return RatingTensors(user_rows, movie_rows, values, len(users), len(movies))

    train = interactions(share.table, user_rows)
    validation = interactions(held_out, users.rows(held_out[USER]))
    callbacks = [] if ranks.rank else [_writer(folder / REPORTS)]
    model = fit(train, validation, config, device, callbacks, checkpoint, initial, ranks).cpu()
    state = {name: x for name, x in model.state_dict().items() if not name.startswith("user_")}
    vectors = model.user_factors.weight.detach().numpy()
    columns = {
        USER: users.ids,
        "bias": model.user_bias.weight.detach().numpy().ravel(),
        "embedding": pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1]),
    }
    pq.write_table(pa.table(columns), folder / f"users-{ranks.rank}.parquet")
    if not ranks.rank:
        pq.write_table(pa.table({MOVIE: movies.ids}), folder / MOVIES)
        torch.save({"state": state, "init_from": initial.name if initial else None}, folder / MODEL)


def _put_together(folder: Path, processes: int) -> Fitted:
    """The model of all users, from the files that the processes wrote."""
    saved = torch.load(folder / MODEL, weights_only=True)
    parts = [pq.read_table(folder / f"users-{rank}.parquet") for rank in range(processes)]
    users = pa.concat_tables(parts).combine_chunks()
    state, n = saved["state"], len(users)
    factors = state["movie_factors.weight"].shape[1]
    vectors = users["embedding"].combine_chunks().flatten().to_numpy().reshape(n, factors)
    state["user_factors.weight"] = torch.from_numpy(vectors.copy())
    state["user_bias.weight"] = torch.from_numpy(users["bias"].to_numpy().copy()).unsqueeze(1)
    movies = pq.read_table(folder / MOVIES)[MOVIE].combine_chunks()
    numbers = {name: state[name].item() for name in ("rating_min", "rating_max", "mu")}
    module = MatrixFactorization(n, len(movies), factors, **numbers)
    module.load_state_dict(state)
    return Fitted(module.eval(), Vocabulary(users[USER].combine_chunks()), Vocabulary(movies), saved["init_from"])


def _writer(path: Path) -> Callback:
    """A callback that appends each epoch's report to a file, as a line of JSON."""

    def write(report: EpochReport) -> None:
        with path.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(report)) + "\n")

    return write


@contextmanager
def _followed(path: Path, callbacks: Sequence[Callback]) -> Iterator[None]:
    """Calls ``callbacks`` for each report that ``_writer`` appends to the file while the block runs."""
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
                            report, line = EpochReport(**json.loads(line)), ""
                            for callback in callbacks:
                                callback(report)
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
