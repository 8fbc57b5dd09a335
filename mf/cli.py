"""The commands of ``mf`` beside ``train``: evaluate, recommend, schema, runs, local."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

import mf
from mf.config import Config, did_you_mean
from mf.errors import ConfigError, needs_extra
from mf.flags import Parser, add_flags, given
from mf.progress import Silence
from mf.ratings.config import IngestConfig
from mf.terminal import printable

FILES = "columns of files of ratings"
NOT_OF_FILES = ("ratings_csv", "import_table", "key_columns", "rated_since", "rated_before")  # fields of IngestConfig

# Everything else is imported by the command that needs it: PyTorch alone takes a second and a half.
if TYPE_CHECKING:
    from mf.library import Model


class ModelConfig(Config):
    """A model directory and the ratings of its users."""

    model: Path = Field(Path("output"), description="model directory")
    ratings_csv: str = Field(
        "", description="file of the users' ratings; default: those that mf train wrote to the model directory"
    )


class EvaluateConfig(ModelConfig):
    """Options of ``mf evaluate``."""

    test_csv: str = Field("", description="file of test ratings, which the model was not trained on")
    k: int = Field(10, ge=1, le=1000, description="length of the lists that are scored")


class RecommendConfig(ModelConfig):
    """Options of ``mf recommend``."""

    k: int = Field(10, ge=1, le=1000, description="length of the list")
    include_seen: bool = Field(False, description="list movies that the user has rated, too")
    titles_csv: str = Field(
        "", description="file of movie titles (movieId, title); default: movies.csv beside the file of ratings"
    )


def evaluate_command(argv: Sequence[str], prog: str) -> None:
    """Scores a model on test ratings, beside baselines."""
    parser = Parser(prog, evaluate_command.__doc__)
    add_flags(parser, EvaluateConfig, "model and ratings")
    add_flags(parser, IngestConfig, FILES, leave_out=NOT_OF_FILES)
    namespace = parser.parse_args(argv)
    config = EvaluateConfig.of(**given(namespace, EvaluateConfig))
    if not config.test_csv:
        raise ConfigError(f"expected --test_csv and a file of test ratings, found none (see {prog} --help)")
    reading = _reading(namespace)
    with Silence.watched():
        evaluation = _model(config, reading).evaluate(config.test_csv, k=config.k, **reading)
        print(evaluation.headline())
        print(evaluation.log_line())


def recommend_command(argv: Sequence[str], prog: str) -> None:
    """Lists the movies that a model recommends to a user."""
    parser = Parser(prog, recommend_command.__doc__)
    parser.add_argument("user", metavar="USER", help="id of the user")
    add_flags(parser, RecommendConfig, "model and list")
    add_flags(parser, IngestConfig, FILES, leave_out=NOT_OF_FILES)
    namespace = parser.parse_args(argv)
    config = RecommendConfig.of(**given(namespace, RecommendConfig))
    titles_csv = config.titles_csv
    if titles_csv and not titles_csv.startswith("gs://") and not Path(titles_csv).is_file():
        raise ConfigError(f"--titles_csv {titles_csv}: no such file, expected a file of movie titles")
    model = _model(config, _reading(namespace))
    from mf.ratings.titles import read_titles, titles_beside

    source = model.provenance.source if model.provenance else ""
    titles = read_titles(config.titles_csv) if config.titles_csv else titles_beside(source)
    user = _id(namespace.user, model)
    if not model.knows(user):
        print(f"user {user} is unknown to the model: the list is the one of a new user")
    for one in model.recommend(user, config.k, exclude_seen=not config.include_seen):
        stars = "" if one.predicted_rating is None else f"{one.predicted_rating:.2f}  "
        why = "" if one.because is None else f"  (because of {_title(titles, one.because)})"
        print(f"  {stars}{_title(titles, one.movie_id)}{why}")


def schema_command(argv: Sequence[str], prog: str) -> None:
    """Prints the migration for a Supabase project."""
    from mf.supabase.config import SchemaConfig
    from mf.supabase.schema import migration

    parser = Parser(prog, schema_command.__doc__)
    add_flags(parser, SchemaConfig, "the database")
    print(migration(SchemaConfig.of(**given(parser.parse_args(argv), SchemaConfig))), end="")


def runs_command(argv: Sequence[str], prog: str) -> None:
    """Lists published runs, restores an earlier one, deletes old ones."""
    from mf.supabase import runs

    runs.main(argv, prog)


def local_command(argv: Sequence[str], prog: str) -> None:
    """Runs an embedded Supabase until Ctrl-C."""
    with needs_extra("local", "the embedded Supabase"):
        from mf.local.__main__ import main as local
    sys.exit(local(argv, prog))


Command = Callable[[Sequence[str], str], None]
COMMANDS: dict[str, Command] = {
    "evaluate": evaluate_command,
    "recommend": recommend_command,
    "schema": schema_command,
    "runs": runs_command,
    "local": local_command,
}


def run_command(argv: Sequence[str], prog: str, commands: Mapping[str, Command]) -> None:
    """Runs the one of ``commands`` that ``argv`` begins with.

    Raises:
        ConfigError: there is no such command.
    """
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help", "help"):
        print(command_help(prog, commands))
    elif name == "--version":
        print(f"mf {mf.__version__}")
    elif name not in commands:
        name = name.partition("=")[0]  # the value may be a secret key
        hint = f"; {prog} train takes flags" if name.startswith("-") else did_you_mean(name, commands)
        raise ConfigError(f"found {name}, expected one of {', '.join(commands)}{hint}")
    else:
        commands[name](argv[1:], f"{prog} {name}")


def command_help(prog: str, commands: Mapping[str, Command]) -> str:
    """The commands, one a line."""
    lines = [f"  {name:<10} {command.__doc__}" for name, command in commands.items()]
    options = ["  --version  show the version", f"\n{prog} COMMAND --help shows a command's flags."]
    return "\n".join([f"usage: {prog} COMMAND [flags]\n", *lines, *options])


def _reading(namespace: argparse.Namespace) -> dict[str, Any]:
    """The options of reading files of ratings that were given."""
    return {name: value for name, value in given(namespace, IngestConfig).items() if name not in NOT_OF_FILES}


def _model(config: ModelConfig, reading: Mapping[str, Any]) -> "Model":
    from mf.library import load

    return load(config.model, config.ratings_csv, **reading) if config.ratings_csv else load(config.model)


def _title(titles: Mapping[str, str], movie: Any) -> str:
    """The title or the id, printable."""
    return printable(titles.get(str(movie), str(movie)))


def _id(text: str, model: "Model") -> Any:
    """An id of the command line as the model has it."""
    import pyarrow as pa

    try:
        return int(text) if pa.types.is_integer(model.users.type) else text
    except ValueError:
        raise ConfigError(f"user {text!r}: expected an integer, like the model's user ids") from None
