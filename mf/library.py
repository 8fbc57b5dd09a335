"""The library: ``mf.fit``, ``mf.load`` and ``Model``."""

import csv
import inspect
import tempfile
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import SecretStr

from mf.calls import in_keywords, path_of, public
from mf.checkpoint import CheckpointFile, say_at_once
from mf.config import did_you_mean
from mf.errors import ConfigError, DataError
from mf.evaluation.config import EvaluateConfig, GateConfig
from mf.evaluation.evaluate import Evaluation
from mf.evaluation.evaluate import evaluate as evaluate_model
from mf.ingest import ingest, ingest_frame
from mf.model_directory import TrainedModel
from mf.parameters import OR_SOLVERS_OWN, chosen_solver
from mf.plan import Plan
from mf.publish import Outcome, publish
from mf.ranking import configure as configure_ranking
from mf.ranking.config import DEFAULT_RANKING
from mf.ratings.config import IngestConfig, SplitConfig
from mf.ratings.frame import Frame
from mf.ratings.names import RATINGS_PARQUET
from mf.ratings.schema import MOVIE, USER, Provenance, read_ratings, write_ratings
from mf.ratings.split import split
from mf.recommender import Recommender
from mf.solvers import SOLVERS, configure
from mf.supabase.config import ExportConfig
from mf.supabase.find import find_target
from mf.supabase.target import Target
from mf.sweep.config import Choices, SweepConfig
from mf.sweep.journal import JOURNAL
from mf.sweep.search import check_optuna
from mf.train import pick_device
from mf.warm_start import EarlierModel

READING = IngestConfig.model_fields.keys() - {"ratings_csv"}  # options of reading
HELD_OUT = 0.1  # share for validation where the solver stops early
NO_VALIDATION = ("vb", "gibbs")  # solvers that need no validation part


@public
def fit(
    ratings: "str | Path | Frame | Any" = None,
    *,
    solver: str = "",
    ranking: str = DEFAULT_RANKING,
    ranking_options: Mapping[str, Any] | None = None,
    val_size: float | None = None,
    seed: int = 0,
    use_cuda: bool = False,
    init_from: "str | Path | Model" = "",
    checkpoint: str | Path | None = None,
    trials: int = 0,
    trial_minutes: float = 0,
    trial_objective: str = "rmse",
    verbose: bool = False,
    **options: Any,
) -> "Model":
    """Trains on ratings: a model that predicts ratings and one that orders lists.

    Without a rating column (clicks, plays, purchases) only the one that orders lists is trained.

    Args:
        ratings: a file (CSV, plain or compressed, also gs://bucket/object), a data frame (pandas, polars, pyarrow, any
            that Arrow can read), a dict of columns, or a SciPy sparse matrix of users and movies. Columns are
            recognised by name: userId, movieId (or itemId), rating and, if there is one, timestamp. ``None`` with
            ``import_table``: a table of the Supabase project in the environment.
        solver: vb, gibbs, adam or sgd; default: vb, or adam where ``lr``, ``batch_size`` or ``init_from`` is given.
        ranking: ease, or none: lists are ordered by predicted rating.
        ranking_options: options of the ranking model (``mf.ranking.RankingConfig``).
        val_size: share of the ratings for early stopping, 0 to 1; default: 0 for vb and gibbs, which need none, else
            0.1, as with ``trials``.
        seed: random seed.
        use_cuda: train on a GPU if there is one.
        init_from: a model or model directory to start from; solvers adam and sgd only.
        checkpoint: file that is saved after every epoch and resumed from; with ``trials`` a second file beside it is.
        trials: trainings of a sweep over solver and options, of which the best on the validation part is kept
            (docs/sweeps.md); the options that are given here are not changed; 0 or 1: no sweep. Needs the extra
            ``sweep``.
        trial_minutes: minutes after which the sweep ends, whatever it has tried; 0: no limit.
        trial_objective: what trials are compared by: rmse, or ndcg, NDCG@10 of the lists.
        verbose: print what is read and a line per epoch.
        options: options of the solver (``factors``, ``epochs``, …) and of reading (``user_column``,
            ``movie_column``, ``rating_column``, ``timestamp_column``, ``max_reject_fraction``, …); docs/parameters.md
            lists them.

    Returns:
        The model, on the CPU. It keeps the ratings, for ``exclude_seen`` and ``explain``.

    Raises:
        ConfigError: an option is unknown or invalid; the message names every fault.
        DataError: the ratings cannot be read, or too many rows are bad.
        TrainingError: the training diverged, or all trials did.

    Warns:
        UserWarning: rows were bad and left out, ``Model.rejects`` lists them; or times lie in years without ratings.
    """
    reading, training = _sorted_options(options)
    ranking_options = {} if ranking_options is None else ranking_options
    if not isinstance(ranking_options, Mapping):
        raise ConfigError(f"ranking_options: found {type(ranking_options).__name__}, expected a dict")
    if ratings is None and not options.get("import_table"):
        raise ConfigError("fit: found no ratings, expected a file, a data frame or the option import_table")
    any_solver = not solver
    solver, why = _chosen_solver(solver, training, bool(init_from))
    config = configure(solver, {**training, "seed": seed})
    lists = configure_ranking(ranking, dict(ranking_options), {"seed": seed})
    sweep = SweepConfig.of(trials=trials, trial_minutes=trial_minutes, trial_objective=trial_objective)
    needs_none = solver in NO_VALIDATION and not sweep.wanted
    share = val_size if val_size is not None else 0.0 if needs_none else HELD_OUT
    division = SplitConfig.of(val_size=share, test_size=0, seed=seed)
    choices = Choices.of(solver, config, {**training, "seed": seed}, lists, ranking_options, any_solver=any_solver)
    if sweep.wanted:
        sweep.check(val_size=share, init_from=bool(init_from), processes={"processes": 1})
        check_optuna()
    plan = Plan(
        config, lists, sweep, choices,
        checkpoint=CheckpointFile(path_of(checkpoint, "checkpoint")) if checkpoint else None,
        journal=Path(f"{checkpoint}.{JOURNAL}") if checkpoint else None,
    )  # fmt: skip
    device, device_line = pick_device(use_cuda)
    earlier = _earlier(init_from)
    say = say_at_once if verbose else _silent
    if why:
        say(why)
    with tempfile.TemporaryDirectory(prefix="mf-") as scratch:
        table, provenance, rejects = _read(ratings, reading, Path(scratch), for_training=True)
    say(provenance.summary())
    if provenance.warning and not verbose:
        warnings.warn(f"{provenance.source}: {provenance.warning}", stacklevel=2)
    if provenance.rows_rejected:
        warnings.warn(_rejected(provenance, rejects), stacklevel=3)
    parts = split(table, division)
    say(device_line)
    trained, _ = plan.train(
        parts.train, parts.validation, device=device, say=say, earlier=earlier, provenance=provenance
    )
    plan.clean_up()
    if trained.module:
        trained.module.cpu()
    say(trained.summary())
    return Model(trained, table, provenance, rejects)


@public
def load(directory: str | Path, ratings: "str | Path | Frame | Any" = None, **reading: Any) -> "Model":
    """Reads a model directory, of ``Model.save``, of ``python -m mf`` or of the pipeline.

    Args:
        directory: the model directory.
        ratings: the users' ratings, as for ``fit``, for ``exclude_seen``, ``explain`` and ``evaluate``; default: those
            that ``Model.save`` wrote. A user whom the model does not know, but these do, is folded in.
        reading: options of reading, as for ``fit``.

    Raises:
        ConfigError: an option is unknown or invalid.
        DataError: it is not a model directory, or the ratings cannot be read.
    """
    directory = path_of(directory, "directory")
    _check_reading(reading)
    trained = TrainedModel.load(directory)
    if ratings is None and not reading:
        stored = directory / RATINGS_PARQUET
        return Model(trained, *(read_ratings(stored) if stored.exists() else (None, None)))
    with tempfile.TemporaryDirectory(prefix="mf-") as scratch:
        table, provenance, rejects = _read(ratings, reading, Path(scratch))
    return Model(trained, _with_ids_of(trained, table, provenance.source), provenance, rejects)


class Model(Recommender):
    """A trained model with its ids and, where they are known, the ratings that it was trained on.

    Attributes:
        trained: the model as ``mf.train.train`` returned it.
        ratings: ``user_id``, ``movie_id``, ``rating`` and, if there were times, ``rated_at``; None: not known.
        provenance: source and row counts of the ratings; None: not known.
        rejects: the rows that were bad, each with ``where``, ``reason`` and ``row``.
    """

    def __init__(
        self,
        trained: TrainedModel,
        ratings: pa.Table | None = None,
        provenance: Provenance | None = None,
        rejects: Sequence[Mapping[str, str]] = (),
    ) -> None:
        super().__init__(trained, ratings)
        self.provenance, self.rejects = provenance, list(rejects)

    def __repr__(self) -> str:
        ranking = f", ranking of {self.trained.ranking.factors} factors" if self.trained.ranking else ""
        return (
            f"<mf.Model {self.trained.run_id}: {len(self.users):,} users, {len(self.movies):,} movies, "
            f"{self.trained.solver or 'lists only,'} of {self.trained.factors} factors{ranking}>"
        )

    @public
    def evaluate(
        self, test: "str | Path | Frame | Any", k: int = 10, relevance_threshold: float | None = None, **reading: Any
    ) -> Evaluation:
        """Metrics on ratings that the model was not trained on, beside baselines fitted to its training ratings.

        ``evaluate(test).log_line()`` is one line; ``.scores()`` has every metric by model and baseline.

        Args:
            test: ratings, as for ``fit``.
            k: length of the lists that are scored.
            relevance_threshold: rating from which a movie counts as relevant; default: three quarters up the range.
            reading: options of reading, as for ``fit``.

        Raises:
            DataError: the ratings cannot be read, or the model's own ratings are not known.

        Warns:
            UserWarning: the model was trained on some of the test ratings.
        """
        config = EvaluateConfig.of(k=k, relevance_threshold=relevance_threshold)
        ratings, held_out = self._ratings("they fit the baselines"), self.read_test(test, **reading)
        if known := self._trained_on(held_out):
            warnings.warn(
                f"{known:,} of {len(held_out):,} test ratings are among those that the model knows: the metrics are "
                "wrong",
                stacklevel=3,
            )
        return evaluate_model(ratings, held_out, self.trained, config)

    @public
    def publish(
        self,
        target: str | Target = "",
        test: "str | Path | Frame | Any" = None,
        force: bool = False,
        *,
        key: str | None = None,
        directory: str | Path | None = None,
        **options: Any,
    ) -> Outcome:
        """Publishes the model to Supabase if it is good enough, judged on ratings that it was not trained on.

        The model must beat the baselines and not clearly lose to the published run (``mf.evaluation.config.GateConfig``
        has the limits). A refused model changes nothing in Supabase.

        Args:
            target: URL of the project, or a ``Target``; default: the one of the environment (``SUPABASE_URL``,
                ``SUPABASE_DB_URL``).
            test: ratings to judge the model on, as for ``fit``. Without them it is published only by ``force``.
            force: publish a model that the gate refuses, too; the run's record says so.
            key: secret key of the project; default: ``SUPABASE_KEY``, which is safer.
            directory: where the model and the report (``report.html``) are written; default: a temporary one.
            options: limits of the gate, names of the views (``movie_export_table``, …) and options of reading ``test``.

        Returns:
            The decision in a sentence, the evaluation, and ``export``: None where the model was refused.

        Raises:
            ConfigError: an option is unknown or invalid, or no project is known.
            DataError: ``test`` cannot be read, or holds ratings that the model was trained on.
            SupabaseError: Supabase cannot be reached, or refused; readers still see the previous run.

        Warns:
            UserWarning: the model was refused; the text says why.
        """
        of_gate, of_views = (
            {n: v for n, v in options.items() if n in c.model_fields} for c in (GateConfig, ExportConfig)
        )
        reading = {name: value for name, value in options.items() if name not in of_gate | of_views}
        _check_reading(reading, {*GateConfig.model_fields, *ExportConfig.model_fields})
        gate, views = GateConfig.of(**{"force_publish": force, **of_gate}), ExportConfig.of(**of_views)
        where = target if isinstance(target, Target) else find_target(target, SecretStr(key) if key else None)
        where.check(self.trained.users.ids, self.trained.movies.ids, views)
        held_out = None if test is None else self.read_test(test, **reading)
        if held_out is not None and (known := self._trained_on(held_out)):
            raise DataError(
                f"publish: found {known:,} of {len(held_out):,} test ratings among those that the model knows, "
                "expected none: it cannot be judged on ratings that it was trained on"
            )
        train_part = self._ratings("they fit the baselines") if held_out is not None else pa.table({})
        with tempfile.TemporaryDirectory(prefix="mf-") as scratch:
            folder = Path(directory or scratch)
            self.save(folder, with_ratings=directory is not None)
            outcome = publish(
                self.trained, where, train_part, held_out,
                directory=folder, views=views, gate=gate, provenance=self.provenance,
            )  # fmt: skip
        outcome = replace(outcome, decision=in_keywords(outcome.decision))
        if outcome.export is None:
            warnings.warn(outcome.decision, stacklevel=3)
        return outcome

    @public
    def read_test(self, test: "str | Path | Frame | Any", **reading: Any) -> pa.Table:
        """Test ratings as a table with ids of the model's types.

        Raises:
            DataError: they cannot be read, or their ids are of another type.
        """
        _check_reading(reading)
        with tempfile.TemporaryDirectory(prefix="mf-") as scratch:
            table, provenance, rejects = _read(test, reading, Path(scratch))
        if provenance.rows_rejected:
            warnings.warn(_rejected(provenance, rejects), stacklevel=5)
        return _with_ids_of(self.trained, table, provenance.source)

    @public
    def save(self, directory: str | Path, with_ratings: bool = True) -> None:
        """Writes the model directory, atomically; ``mf.load`` reads it, and the pipeline's export publishes it.

        Args:
            directory: the directory; other files in it are kept.
            with_ratings: write the ratings too, as ``ratings.parquet``: ``mf.load`` needs them for ``exclude_seen``.

        Raises:
            ConfigError: ``directory`` is a file.
            TrainingError: mu lies outside the rating range; nothing is written.
        """
        directory = path_of(directory, "directory")
        if directory.exists() and not directory.is_dir():
            raise ConfigError(f"directory: {directory} is a file, expected a directory")
        with tempfile.TemporaryDirectory(prefix="mf-") as scratch:
            also = []
            if with_ratings and self.ratings is not None and self.provenance is not None:
                also.append(Path(scratch) / RATINGS_PARQUET)
                write_ratings(self.ratings, also[0], self.provenance)
            else:
                (directory / RATINGS_PARQUET).unlink(missing_ok=True)  # of an earlier model
            self.trained.save(directory, also=also)


def _chosen_solver(solver: str, training: Mapping[str, Any], warm: bool) -> tuple[str, str]:
    """The solver, as the pipeline chooses it, and a line for the log."""
    own = {name: value for name, value in training.items() if name in OR_SOLVERS_OWN}
    options = {name: value for name, value in training.items() if name not in own}
    given = {"solver": solver, "solver_options": options, "init_from": "a model" if warm else "", **own}
    return chosen_solver(given)


def _check_reading(options: Mapping[str, Any], others: Collection[str] = ()) -> None:
    """Refuses what is no option of reading ratings.

    Raises:
        ConfigError: naming each and the nearest of the options and ``others``.
    """
    unknown = [name for name in options if name not in READING]
    if unknown:
        raise ConfigError(*(f"unknown option {name}{did_you_mean(name, {*READING, *others})}" for name in unknown))


def _sorted_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of reading and options of a solver.

    Raises:
        ConfigError: one is neither.
    """
    reading = READING
    training = {name for solver in SOLVERS.values() for name in solver.config.model_fields}
    unknown = [name for name in options if name not in reading | training]
    if unknown:
        known = reading | training | {*inspect.signature(fit).parameters}
        raise ConfigError(*(f"unknown option {name}{did_you_mean(name, known)}" for name in unknown))
    of_reading = {name: value for name, value in options.items() if name in reading}
    return of_reading, {name: value for name, value in options.items() if name in training}


def _read(
    ratings: Any, options: Mapping[str, Any], scratch: Path, for_training: bool = False
) -> tuple[pa.Table, Provenance, list[dict[str, str]]]:
    """Ratings from any source, as ``mf.ratings.schema`` has them, and the bad rows."""
    good, bad = scratch / "ratings.parquet", scratch / "rejects.csv"
    if ratings is None or isinstance(ratings, str | Path):
        source = {} if ratings is None else {"ratings_csv": str(ratings)}
        provenance = ingest(IngestConfig.of(**options, **source), good, bad, for_training=for_training)
    else:
        provenance = ingest_frame(ratings, IngestConfig.of(**options), good, bad, for_training=for_training)
    with bad.open(newline="", encoding="utf-8") as rows:
        return read_ratings(good)[0], provenance, list(csv.DictReader(rows))


def _rejected(provenance: Provenance, rejects: Sequence[Mapping[str, str]]) -> str:
    first = "; ".join(f"{row['where']}: {row['reason']}" for row in rejects[:3])
    return (
        f"{provenance.source}: {provenance.rows_rejected:,} of {provenance.rows_read:,} rows are bad and left out: "
        f"{first}{' …' if len(rejects) > 3 else ''} (Model.rejects lists them)"
    )


def _with_ids_of(trained: TrainedModel, table: pa.Table, source: str) -> pa.Table:
    """``table`` with ids of the model's types: text ids of a small table may all look like integers."""
    for place, (name, vocabulary) in enumerate(((USER, trained.users), (MOVIE, trained.movies))):
        found, expected = table.schema.field(name).type, vocabulary.ids.type
        if pa.types.is_integer(found) and not pa.types.is_integer(expected):
            table = table.set_column(place, name, table[name].cast(expected))
        elif found != expected:
            raise DataError(f"{source}: {name} is {found}, expected {expected} as in the training ratings")
    return table


def _earlier(init_from: Any) -> EarlierModel | None:
    if isinstance(init_from, Model):
        with tempfile.TemporaryDirectory(prefix="mf-") as scratch:
            init_from.save(scratch, with_ratings=False)
            return EarlierModel.read(Path(scratch))
    return EarlierModel.read(path_of(init_from, "init_from")) if init_from else None


def _silent(_: str) -> None:
    pass
