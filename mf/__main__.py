"""The command line: ``python -m mf`` trains once, ``python -m mf schema`` prints the database's migration,
``python -m mf runs`` looks after what was published."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import Field, SecretStr
from sklearn.metrics import root_mean_squared_error

from mf.checkpoint import CheckpointFile, reporter
from mf.config import Config
from mf.errors import ConfigError, DataError, reported
from mf.flags import Parser, add_flags, add_shared_flags, given
from mf.ratings.config import IngestConfig, SplitConfig
from mf.ratings.ingest import ingest
from mf.ratings.schema import MOVIE, RATING, USER, read_ratings
from mf.ratings.split import split
from mf.ratings.table import reader
from mf.solvers import SOLVERS, check_warm, configure
from mf.supabase import runs
from mf.supabase.config import ExportConfig, SchemaConfig
from mf.supabase.destination import Destination
from mf.supabase.schema import migration
from mf.train import DEFAULT_SOLVER, SOLVER_HELP, pick_device, train
from mf.warm_start import INIT_FROM, EarlierModel


class TrainerConfig(Config):
    """What the one-shot trainer reads and writes."""

    ratings_csv: str = Field(
        "data/ratings.csv", description="file of ratings, plain or gzip: a path or gs://bucket/object"
    )
    val_size: float = Field(0.1, ge=0, lt=1, description="share of the ratings held out to steer training; 0: none")
    test_csv: str = Field("", description="file of ratings that are scored once, after training")
    output_dir: Path = Field(Path("output"), description="model directory to write")
    checkpoint: Path | None = Field(
        None,
        description="file for the state after every epoch: a run that finds one there goes on from it, and a run that "
        "ends well removes it",
    )
    init_from: str = Field("", description=INIT_FROM)
    use_cuda: bool = Field(False, description="train on the GPU when there is one")
    supabase_url: str = Field(
        "", description="Supabase project; on the command line it also says to publish there. Else SUPABASE_URL"
    )
    supabase_key: SecretStr | None = Field(None, description="its secret key; better left to SUPABASE_KEY")
    import_table: str = Field(
        "ratings", description="table of ratings, read when there is a Supabase project and no --ratings_csv"
    )
    publish: bool = Field(False, description="publish the embeddings to the Supabase project of SUPABASE_URL")


def main(argv: Sequence[str]) -> None:
    """Runs the command that ``argv`` names; a mistake of the user's ends in one line and exit status 2."""
    with reported():
        if list(argv[:1]) == ["schema"]:
            print_schema(argv[1:])
        elif list(argv[:1]) == ["runs"]:
            runs.main(argv[1:])
        else:
            train_once(argv)


def print_schema(argv: Sequence[str]) -> None:
    """``python -m mf schema``: the SQL that makes a Supabase project ready."""
    parser = Parser("python -m mf schema", "Prints the migration for a Supabase project.")
    add_flags(parser, SchemaConfig, "the database")
    print(migration(SchemaConfig.of(**given(parser.parse_args(argv), SchemaConfig))), end="")


def trainer_parser() -> Parser:
    """The flags of ``python -m mf``."""
    parser = Parser(
        "python -m mf",
        "Trains on a file or a table of ratings, once. To print the migration: python -m mf schema. To show what was "
        "published, bring an earlier run back or drop old ones: python -m mf runs list|rollback|prune.",
    )
    parser.add_argument(
        "--solver", choices=SOLVERS, default=DEFAULT_SOLVER, help=f"{SOLVER_HELP} (default: {DEFAULT_SOLVER})"
    )
    add_flags(parser, TrainerConfig, "ratings, model, Supabase")
    add_shared_flags(parser, SOLVERS, "the solver's options; where a default names solvers, only those use it")
    add_flags(parser, IngestConfig, "the columns of a file or a table", leave_out=TrainerConfig.model_fields)
    add_flags(parser, ExportConfig, "what is published", leave_out=["rows_per_request", "clients"])
    return parser


def train_once(argv: Sequence[str]) -> None:
    """``python -m mf``: reads ratings, trains, writes a model directory and publishes it when that was asked for."""
    namespace = trainer_parser().parse_args(argv)
    trainer = TrainerConfig.of(**given(namespace, TrainerConfig))
    solver = configure(namespace.solver, given(namespace, *SOLVERS.values()), prefix="--")
    division = SplitConfig.of(val_size=trainer.val_size, test_size=0, seed=solver.model_dump()["seed"])
    _check_writable(f"--output_dir {trainer.output_dir}", trainer.output_dir)
    checkpoint = _checkpoint(trainer.checkpoint) if trainer.checkpoint else None
    source = _source(namespace, trainer)
    views = ExportConfig.of(**given(namespace, ExportConfig))
    if trainer.init_from:
        check_warm(namespace.solver)
    publish = trainer.publish or "supabase_url" in given(namespace, TrainerConfig)
    destination = Destination.find(trainer.supabase_url, trainer.supabase_key) if publish else None

    earlier = EarlierModel.asked_for(
        trainer.init_from, lambda: Destination.find(trainer.supabase_url, trainer.supabase_key)
    )

    with tempfile.TemporaryDirectory(prefix="mf-") as scratch:
        work = Path(scratch)
        with reader(source, trainer.supabase_url, trainer.supabase_key) as read_table:
            provenance = ingest(source, work / "ratings.parquet", work / "rejects.csv", read_table=read_table)
        print(provenance.summary())
        parts = split(read_ratings(work / "ratings.parquet")[0], division)
        if destination:
            # Before the training, so that a wrong key or a migration that does not fit is not found out an hour later.
            destination.check(parts.train[USER], parts.train[MOVIE], views)
        test = _test_part(trainer.test_csv, source, work, parts.train) if trainer.test_csv else None
        device, where = pick_device(trainer.use_cuda)
        print(where)
        report = reporter(checkpoint)
        model = train(
            parts.train, parts.validation, solver,
            device=device, callbacks=[report], checkpoint=checkpoint, earlier=earlier, provenance=provenance,
        )  # fmt: skip
        if test is not None:
            predicted = model.predict(test[USER], test[MOVIE])
            # In float64: scikit-learn would otherwise sum millions of squares in float32.
            actual = test[RATING].to_numpy().astype(np.float64)
            model.metrics["test_rmse"] = float(root_mean_squared_error(actual, predicted.astype(np.float64)))
        model.save(trainer.output_dir, also=sorted(work.glob("*rejects.csv")))
        if test is None:
            (trainer.output_dir / "test_rejects.csv").unlink(missing_ok=True)
        if checkpoint:
            checkpoint.remove()
    print(f"{model.summary()}, in {trainer.output_dir}/")
    if test is not None:
        print(f"test RMSE {model.metrics['test_rmse']:.4f}")
    if destination:
        print(destination.export(trainer.output_dir, views).summary())


def _test_part(file: str, source: IngestConfig, work: Path, seen: pa.Table) -> pa.Table:
    """The ratings of ``file``, read as those of ``source`` were."""
    # The names of a table's columns say nothing of a file's.
    read_alike = {} if source.import_table else source.model_dump()
    config = IngestConfig.of(**{**read_alike, "ratings_csv": file})
    print(ingest(config, work / "test.parquet", work / "test_rejects.csv").summary())
    test, _ = read_ratings(work / "test.parquet")
    for position, name in enumerate((USER, MOVIE)):
        found, expected = test.schema.field(name).type, seen.schema.field(name).type
        if pa.types.is_integer(found) and not pa.types.is_integer(expected):
            # Ids that are text may all look like integers in a smaller file, and were read as the text they are.
            test = test.set_column(position, name, test[name].cast(expected))
        elif found != expected:
            raise DataError(f"{file}: {name} is {found}, expected {expected} as in the ratings to train on")
    return test


def _checkpoint(path: Path) -> CheckpointFile:
    if path.is_dir():
        raise ConfigError(f"--checkpoint {path}: it is a directory, expected a file")
    _check_writable(f"--checkpoint {path}", path.parent)
    return CheckpointFile(path)


def _check_writable(flag: str, directory: Path) -> None:
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"{flag}: {there} is a file, expected a directory")
    try:
        # A mounted bucket tells only when it is tried.
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ConfigError(f"{flag}: cannot write to {there} ({error.strerror})") from None


def _source(namespace: argparse.Namespace, trainer: TrainerConfig) -> IngestConfig:
    """The table when it is asked for, or when Supabase is configured and no file is named; else the file."""
    named = given(namespace, IngestConfig)
    variables = ("SUPABASE_URL", "SUPABASE_DB_URL", "SUPABASE_DB_URL_SECRET")
    configured = bool(trainer.supabase_url or any(os.environ.get(name) for name in variables))
    if "ratings_csv" in named and "import_table" in named:
        raise ConfigError("--ratings_csv and --import_table are both given, expected one of them")
    if "import_table" in named or ("ratings_csv" not in named and configured):
        named["import_table"] = trainer.import_table
    else:
        named["ratings_csv"] = trainer.ratings_csv
    return IngestConfig.of(**named)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("stopped")
