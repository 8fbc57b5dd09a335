"""The command ``mf`` and ``python -m mf``, which without a command trains as the original trainer did.

What needs PyTorch is imported where it is used: help must not wait for it.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, SecretStr

from mf import cli
from mf.config import Config
from mf.errors import ConfigError, DataError, reported
from mf.evaluation.config import GateConfig
from mf.flags import Parser, add_flags, add_shared_flags, given
from mf.parameters import OR_SOLVERS_OWN, chosen_solver
from mf.progress import Silence
from mf.ranking.config import DEFAULT_RANKING, RANKING_HELP, Ranking, RankingConfig
from mf.ranking.config import configure as configure_ranking
from mf.ratings.config import CLICKS_WITHOUT_RANKING, IngestConfig, SplitConfig
from mf.ratings.names import MOVIE, RATING, RATINGS_PARQUET, USER
from mf.solvers import SOLVER_HELP, SOLVERS, check_warm, configure, for_processes, processes_line
from mf.solvers.config import DEFAULT_SOLVER, INIT_FROM, ORIGINAL
from mf.supabase.config import ExportConfig
from mf.sweep.config import Choices, SweepConfig
from mf.terminal import Printable, printable

if TYPE_CHECKING:
    import pyarrow as pa

    from mf.checkpoint import CheckpointFile
    from mf.model_directory import TrainedModel

PROG, MODULE = "mf", "python -m mf"
REFUSED = 3  # exit status where the gate refuses to publish
# Defaults of this command in place of a solver's own: it keeps the original trainer's.
ORIGINAL_SOLVER = "adam"
PRESETS = {ORIGINAL_SOLVER: ORIGINAL}


class TrainerConfig(Config):
    """Input and output of ``python -m mf``."""

    ratings_csv: str = Field(
        "data/ratings.csv",
        description="ratings, CSV, JSON lines or Parquet, also compressed: a file, a folder or a glob (ratings-*.csv), "
        "local or gs://bucket/…",
    )
    val_size: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the ratings for validation (early stopping, best epoch); 0: train on all ratings",
    )
    test_csv: str = Field("", description="file of test ratings, scored once after training")
    output_dir: Path = Field(Path("output"), description="model directory to write")
    checkpoint: Path | None = Field(
        None,
        description="checkpoint file, saved after every epoch; resumed from if it exists, deleted at the end",
    )
    init_from: str = Field("", description=INIT_FROM)
    ranking: Ranking = Field(DEFAULT_RANKING, description=f"model that orders lists; {RANKING_HELP}")
    ranking_options: str = Field(
        "", description='options of the ranking model, as JSON such as {"factors": 32}; docs/parameters.md lists them'
    )
    use_cuda: bool = Field(False, description="train on a GPU if one is available")
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="processes that share the training: of the cores, or with --use_cuda a GPU each",
    )
    supabase_url: str = Field(
        "", description="URL of the Supabase project; giving it also publishes the model there; default: SUPABASE_URL"
    )
    supabase_key: SecretStr | None = Field(
        None, description="secret key of the project; prefer the environment variable; default: SUPABASE_KEY"
    )
    import_table: str = Field(
        "ratings",
        description="Supabase table of ratings, read if a project is configured and no --ratings_csv is given",
    )
    publish: bool = Field(
        False,
        description="publish the model to the Supabase project in SUPABASE_URL if it is good enough, judged on the "
        "ratings of --test_csv or else on the validation part",
    )


def main(argv: Sequence[str], prog: str = MODULE) -> None:
    """Runs a command, or with flags alone the original trainer; a user's mistake is one line and exit status 2."""
    first = argv[0] if argv else ""
    with reported():
        # The entry point mf has commands only.
        if prog == PROG or first in COMMANDS or first == "--version":
            cli.run_command(argv, prog, COMMANDS)
        else:
            train_once(argv)


def run() -> None:
    """The entry point ``mf``."""
    _run(PROG)


def _run(prog: str) -> None:
    warnings.showwarning = _show_warning
    sys.stdout = Printable(sys.stdout)
    try:
        main(sys.argv[1:], prog)
    except KeyboardInterrupt:
        sys.exit("stopped")


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print("warning:", printable(str(message)), file=sys.stderr)


def train_command(argv: Sequence[str], prog: str) -> None:
    """Trains a model on a file or a table of ratings, and publishes it with --publish."""
    train_once(argv, prog)


COMMANDS: dict[str, cli.Command] = {"train": train_command, **cli.COMMANDS}


def trainer_parser(prog: str = MODULE) -> Parser:
    """The flags of ``python -m mf``, with the original trainer's defaults, or of the command ``train``."""
    is_original = prog == MODULE
    commands = "; ".join(f"{name}: {(command.__doc__ or '').rstrip('.')}" for name, command in COMMANDS.items())
    parser = Parser(
        prog,
        "Train a model on a file or a table of ratings, with the defaults of the original trainer. Commands: "
        f"{commands}. {MODULE} COMMAND --help shows a command's flags."
        if is_original
        else train_command.__doc__,
    )
    best = f"{DEFAULT_SOLVER}, or adam where one of its own options is given"
    parser.add_argument(
        "--solver",
        choices=SOLVERS,
        default=ORIGINAL_SOLVER if is_original else "",
        help=f"algorithm; {SOLVER_HELP} (default: {ORIGINAL_SOLVER if is_original else best})",
    )
    add_flags(parser, TrainerConfig, "ratings, model, Supabase")
    configs = {name: solver.config for name, solver in SOLVERS.items()}
    add_shared_flags(
        parser,
        configs,
        "solver options; a default that names solvers: only these have the option",
        PRESETS if is_original else {},
    )
    add_flags(parser, SweepConfig, "sweep over solver and options (docs/sweeps.md)")
    add_flags(parser, IngestConfig, "columns of the ratings file or table", leave_out=TrainerConfig.model_fields)
    add_flags(parser, ExportConfig, "publishing", leave_out=["rows_per_request", "clients"])
    add_flags(parser, GateConfig, "limits that a published model must keep")
    return parser


def train_once(argv: Sequence[str], prog: str = MODULE) -> None:
    """Reads ratings, trains, writes a model directory and, with ``--publish``, publishes it."""
    namespace = trainer_parser(prog).parse_args(argv)
    trainer = TrainerConfig.of(**given(namespace, TrainerConfig))
    options = given(namespace, *(solver.config for solver in SOLVERS.values()))
    is_original, any_solver = prog == MODULE, not namespace.solver
    if not is_original:
        namespace.solver, why = _best_solver(namespace.solver, trainer, options)
        if why:
            print(why)
    presets = PRESETS if is_original else {}
    solver = configure(namespace.solver, {**presets.get(namespace.solver, {}), **options}, prefix="--")
    asked, solver = solver, for_processes(solver, trainer.processes)
    seed = solver.model_dump()["seed"]
    ranking = _ranking(trainer, seed)
    division = SplitConfig.of(val_size=trainer.val_size, test_size=0, seed=seed)
    _check_writable(f"--output_dir {trainer.output_dir}", trainer.output_dir)
    checkpoint = _checkpoint(trainer.checkpoint) if trainer.checkpoint else None
    source = _source(namespace, trainer)
    views = ExportConfig.of(**given(namespace, ExportConfig))
    gate = GateConfig.of(**given(namespace, GateConfig))
    if trainer.init_from:
        check_warm(namespace.solver)
    publishing = trainer.publish or "supabase_url" in given(namespace, TrainerConfig)
    sweep = SweepConfig.of(**given(namespace, SweepConfig))
    choices = Choices.of(
        namespace.solver, solver, options, ranking, json.loads(trainer.ranking_options or "{}"), any_solver=any_solver
    )
    if sweep.wanted:
        _check_sweep(sweep, trainer, choices, source, publishing)

    from mf.checkpoint import say_at_once
    from mf.evaluation.baselines import BesideBaselines
    from mf.ingest import ingest
    from mf.plan import Plan
    from mf.publish import NOTHING_HELD_OUT, publish, remove_report
    from mf.ratings.batches import Batches
    from mf.ratings.schema import check_ratings_differ, read_ratings
    from mf.ratings.split import PARTS, split, split_file
    from mf.supabase.find import find_target
    from mf.sweep.journal import JOURNAL
    from mf.train import pick_device
    from mf.warm_start import EarlierModel

    target = find_target(trainer.supabase_url, trainer.supabase_key) if publishing else None

    if not source.may_have_ratings and ranking is None:
        raise ConfigError(CLICKS_WITHOUT_RANKING)
    init_from = trainer.init_from if source.may_have_ratings else ""
    earlier = EarlierModel.find(init_from, lambda: find_target(trainer.supabase_url, trainer.supabase_key))

    with tempfile.TemporaryDirectory(prefix="mf-") as scratch, Silence.watched():
        work = Path(scratch)
        provenance = ingest(
            source, work / RATINGS_PARQUET, work / "rejects.csv",
            url=trainer.supabase_url, key=trainer.supabase_key,
        )  # fmt: skip
        print(provenance.summary())
        if not provenance.has_ratings:
            checkpoint = None
            print(_unused_without_ratings(namespace, trainer))
        ratings, _ = read_ratings(work / RATINGS_PARQUET)
        if target:
            # Before the training: a wrong key or an incompatible migration must not show up an hour later.
            target.check(ratings[USER], ratings[MOVIE], views)
        check_ratings_differ(ratings, provenance.source)
        test = _test_part(trainer.test_csv, source, work, ratings.slice(0, 0)) if trainer.test_csv else None
        many = trainer.processes if trainer.processes > 1 else 0
        parts: Sequence[pa.Table | Path]
        if many:  # processes, which read files; meanwhile this one holds no training ratings
            parts = files = [work / f"{name}-part.parquet" for name in PARTS]
            split_file(work / RATINGS_PARQUET, files, division)
        else:
            parts = split(ratings, division)
        del ratings
        device, device_line = pick_device(trainer.use_cuda, gpus=many if trainer.use_cuda else 0)
        print(f"{device_line}, by {many} processes" if many else device_line)
        if provenance.has_ratings and (change := processes_line(asked, trainer.processes)):
            print(change)
        part, held_out = ("validation", Batches(parts[1]).table()) if test is None else ("test", test)
        judge_by_validation = target is not None and test is None
        if target and not len(held_out) and not gate.force_publish:
            print(f"{NOTHING_HELD_OUT}: the model will be written to {trainer.output_dir}/ and not published")
        plan = Plan(solver, ranking, sweep, choices, checkpoint=checkpoint, journal=trainer.output_dir / JOURNAL)
        model, _ = plan.train(
            *parts[:2],
            device=device, say=say_at_once, earlier=earlier, provenance=provenance,
            lists_from_validation=not judge_by_validation, processes=trainer.processes,
        )  # fmt: skip
        train_part, validation_part = (Batches(part).table() for part in parts[:2])
        test_line = _score(model, train_part, validation_part, test) if test is not None else ""
        kept = [] if is_original else [work / RATINGS_PARQUET]  # mf recommend leaves out what a user has rated
        (trainer.output_dir / RATINGS_PARQUET).unlink(missing_ok=True)  # of an earlier model
        model.save(trainer.output_dir, also=[*sorted(work.glob("*rejects.csv")), *kept])
        if test is None:
            (trainer.output_dir / "test_rejects.csv").unlink(missing_ok=True)
        plan.clean_up()
    if len(held_out) and model.module:
        beside = BesideBaselines.of(model, train_part, held_out)
        print(beside.line(part))
        if not beside.better:
            print(f"not better than the baselines{_advice(namespace)}")
    if model.ranking:
        print(f"lists     {model.ranking.summary()}")
    print(f"{model.summary()}, in {trainer.output_dir}/")
    if test_line:
        print(test_line)
    if target:
        with Silence.watched():
            outcome = publish(
                model, target, train_part, held_out, None if judge_by_validation else validation_part,
                directory=trainer.output_dir, views=views, gate=gate, provenance=provenance,
            )  # fmt: skip
        if outcome.export is None:
            print(outcome.decision, file=sys.stderr)
            sys.exit(REFUSED)
        print(outcome.decision)
        print(outcome.export.summary())
    else:
        remove_report(trainer.output_dir)


def _best_solver(solver: str, trainer: TrainerConfig, options: Mapping[str, Any]) -> tuple[str, str]:
    """The solver, as the pipeline and the library choose it, and a line for the log."""
    own = {name: value for name, value in options.items() if name in OR_SOLVERS_OWN}
    others = {name: value for name, value in options.items() if name not in own}
    return chosen_solver({"solver": solver, "solver_options": others, "init_from": trainer.init_from, **own})


def _check_sweep(
    sweep: SweepConfig, trainer: TrainerConfig, choices: Choices, source: IngestConfig, publishing: bool
) -> None:
    """Refuses a sweep that does not fit the other flags, or without Optuna."""
    processes = {"processes": trainer.processes}
    sweep.check(val_size=trainer.val_size, init_from=bool(trainer.init_from), processes=processes)
    choices.tried(sweep.trial_objective if source.may_have_ratings else "ndcg")
    if publishing and not trainer.test_csv:
        raise ConfigError(
            "trials: found no --test_csv to judge the model on before it is published, expected one: the best of the "
            "trials is chosen on the validation part"
        )
    from mf.sweep.search import check_optuna

    check_optuna()


def _advice(namespace: argparse.Namespace) -> str:
    """The command that trains a good model, with the flags of this one that still apply."""
    if namespace.solver == DEFAULT_SOLVER:
        return ": the ratings may be too few to learn more from"
    # Not the options of another solver, nor a secret.
    options = given(namespace, TrainerConfig, IngestConfig, ExportConfig, GateConfig)
    options |= {name: vars(namespace)[name] for name in ("factors", "seed") if name in namespace}
    words = ["python", "-m", "mf", "--solver", DEFAULT_SOLVER]
    for name, value in options.items():
        if name not in ("supabase_key", "init_from", "checkpoint") and value is not False:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return f"; for a good model: {shlex.join(words)}"


def _score(model: "TrainedModel", train_part: "pa.Table", validation_part: "pa.Table", test: "pa.Table") -> str:
    """Scores ``test``, adds the figure to the model's metrics and returns the line to print: the RMSE or, of a model of
    clicks, the NDCG."""
    if model.module is None:
        from mf.evaluation.evaluate import evaluate  # takes a second to import

        ranking = evaluate(train_part, test, model, validation=validation_part).ranking
        model.metrics["test_ndcg"] = ranking.model["ndcg"] if ranking.model else None
        return f"test {ranking.line().removeprefix('lists  ')}"
    import numpy as np
    from sklearn.metrics import root_mean_squared_error

    predicted = model.predict(test[USER], test[MOVIE])
    # float64: scikit-learn would sum millions of squares in float32.
    actual = test[RATING].to_numpy().astype(np.float64)
    model.metrics["test_rmse"] = float(root_mean_squared_error(actual, predicted.astype(np.float64)))
    return f"test RMSE {model.metrics['test_rmse']:.4f}"


def _unused_without_ratings(namespace: argparse.Namespace, trainer: TrainerConfig) -> str:
    """The line that says what a run without ratings leaves out, and which of the given flags it does not use."""
    flags = given(namespace, *(solver.config for solver in SOLVERS.values()))
    unused = [f"--{name}" for name in flags if name != "seed"]
    unused += ["--solver"] if namespace.solver != ORIGINAL_SOLVER else []
    unused += [f"--{name}" for name in ("init_from", "checkpoint") if getattr(trainer, name)]
    options = json.loads(trainer.ranking_options or "{}")
    unused += [name for name in ("rho", "taste", "relevance_threshold") if name in options]
    line = "no ratings, so no star model, no epochs and no RMSE: the ranking model is trained"
    return f"{line}; not used: {', '.join(unused)}" if unused else line


def _test_part(file: str, source: IngestConfig, work: Path, train_part: "pa.Table") -> "pa.Table":
    """Test ratings from ``file``, read with the options of ``source``."""
    import pyarrow as pa

    from mf.ingest import ingest
    from mf.ratings.schema import has_ratings, read_ratings

    # A table's column names do not apply to a file.
    same = {"max_reject_fraction", "ignore_ratings"} if source.import_table else None
    config = IngestConfig.of(**{**source.model_dump(include=same), "ratings_csv": file})
    text_ids = [name for name in (USER, MOVIE) if not pa.types.is_integer(train_part.schema.field(name).type)]
    print(ingest(config, work / "test.parquet", work / "test_rejects.csv", text_ids=text_ids).summary())
    test, _ = read_ratings(work / "test.parquet")
    if has_ratings(train_part) and not has_ratings(test):
        raise DataError(f"{file}: found no ratings, expected some as in the training ratings")
    for position, name in enumerate((USER, MOVIE)):
        found, expected = test.schema.field(name).type, train_part.schema.field(name).type
        if pa.types.is_integer(found) and not pa.types.is_integer(expected):
            # Text ids of a small file may all look like integers.
            test = test.set_column(position, name, test[name].cast(expected))
        elif found != expected:
            raise DataError(f"{file}: {name} is {found}, expected {expected} as in the training ratings")
    return test


def _ranking(trainer: TrainerConfig, seed: int) -> RankingConfig | None:
    """The options of the ranking model; ``None`` with ``--ranking none``."""
    try:
        options = json.loads(trainer.ranking_options or "{}")
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise ConfigError(
            f'--ranking_options: expected JSON such as {{"factors": 32}}, found {trainer.ranking_options!r}'
        )
    return configure_ranking(trainer.ranking, options, {"seed": seed})


def _checkpoint(path: Path) -> "CheckpointFile":
    from mf.checkpoint import CheckpointFile

    if path.is_dir():
        raise ConfigError(f"--checkpoint {path}: found a directory, expected a file")
    _check_writable(f"--checkpoint {path}", path.parent)
    return CheckpointFile(path)


def _check_writable(flag: str, directory: Path) -> None:
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"{flag}: {existing} is a file, expected a directory")
    try:
        # Writing is the only reliable check on a mounted bucket.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ConfigError(f"{flag}: cannot write to {existing} ({error.strerror})") from None


def _source(namespace: argparse.Namespace, trainer: TrainerConfig) -> IngestConfig:
    """The table with ``--import_table``, or if Supabase is configured and no file is given; else the file."""
    options = given(namespace, IngestConfig)
    variables = ("SUPABASE_URL", "SUPABASE_DB_URL", "SUPABASE_DB_URL_SECRET")
    configured = bool(trainer.supabase_url or any(os.environ.get(name) for name in variables))
    if "ratings_csv" in options and "import_table" in options:
        raise ConfigError("found both --ratings_csv and --import_table, expected one of them")
    if "import_table" in options or ("ratings_csv" not in options and configured):
        options["import_table"] = trainer.import_table
    else:
        options["ratings_csv"] = trainer.ratings_csv
    return IngestConfig.of(**options)


if __name__ == "__main__":
    _run(MODULE)
