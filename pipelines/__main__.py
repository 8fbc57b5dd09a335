"""The pipeline's command line: compile, submit, run, seed-table, parameters. The Makefile calls it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mf.errors import ConfigError, reported
from mf.flags import Parser
from pipelines import describe
from pipelines.compiled import DEFAULT_COMPILED, compile_pipeline, definitions, definitions_in
from pipelines.parameters import parse
from pipelines.settings import DEFAULT_FILE, Settings

HOME = Path(__file__).parents[1] / ".mf"
LOCAL = ("ratings_csv", "import_table", "supabase_url")  # parameters that a run on this machine sets itself


def compile_command(parser: Parser, argv: Sequence[str]) -> None:
    """Writes the pipeline for Vertex AI: one YAML document."""
    _vertex_flags(parser)
    options = parser.parse_args(argv)
    compile_pipeline(Settings.load(options.settings), options.file)
    print(f"wrote {options.file}")


def submit_command(parser: Parser, argv: Sequence[str]) -> None:
    """Runs the compiled pipeline on Vertex AI."""
    _vertex_flags(parser)
    _parameter_flag(parser)
    options = parser.parse_args(argv)
    from pipelines.vertex import submit

    print(submit(Settings.load(options.settings), options.file, parse(options.param, definitions_in(options.file))))


def run_command(parser: Parser, argv: Sequence[str]) -> None:
    """Runs the pipeline on this machine, against an embedded Supabase."""
    _source_flags(parser, "table of the embedded Supabase to read instead of a file")
    options = parser.parse_args(argv)
    if options.ratings and options.import_table:
        raise ConfigError("--ratings and --import_table are both given, expected one of them")
    from pipelines import laptop, sources

    parameters = _local_parameters(options.param)
    if options.import_table:
        source = sources.table(options.import_table, parameters, options.home)
    elif options.ratings:
        source = sources.file(options.ratings, parameters)
    else:
        source = sources.sample(options.home)
    laptop.run(source, parameters, options.home)


def seed_command(parser: Parser, argv: Sequence[str]) -> None:
    """Fills a table of the embedded Supabase from a file of ratings, or from the sample."""
    _source_flags(parser, "the table to make anew", default="ratings")
    options = parser.parse_args(argv)
    from pipelines import sources

    print(sources.seed(options.import_table, options.ratings, _local_parameters(options.param), options.home))


def parameters_command(parser: Parser, argv: Sequence[str]) -> None:
    """Prints the pipeline's parameters as a table in Markdown."""
    parser.parse_args(argv)
    print(describe.table(definitions()), end="")


COMMANDS = {
    "compile": compile_command,
    "submit": submit_command,
    "run": run_command,
    "seed-table": seed_command,
    "parameters": parameters_command,
}


def main(argv: Sequence[str]) -> None:
    """Runs the command that ``argv`` names; a mistake of the user's ends in one line and exit status 2."""
    with reported():
        if not argv or argv[0] not in COMMANDS:
            raise ConfigError(f"expected one of the commands {', '.join(COMMANDS)}")
        command = COMMANDS[argv[0]]
        command(Parser(f"python -m pipelines {argv[0]}", command.__doc__), argv[1:])


def _vertex_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--settings", type=Path, default=DEFAULT_FILE, help="settings file")
    parser.add_argument("--file", type=Path, default=DEFAULT_COMPILED, help="the compiled pipeline")


def _source_flags(parser: argparse.ArgumentParser, table: str, default: str = "") -> None:
    parser.add_argument("--ratings", type=Path, help="file of ratings; the sample without it")
    parser.add_argument("--import_table", default=default, help=table)
    parser.add_argument(
        "--home",
        type=lambda text: Path(text).resolve(),
        default=HOME,
        help="folder of the local databases and of what the steps write",
    )
    _parameter_flag(parser)


def _parameter_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--param", action="append", default=[], help="name=value, of the pipeline's parameters")


def _local_parameters(given: Sequence[str]) -> dict[str, Any]:
    parameters = parse(given, definitions())
    for name in LOCAL:
        if name in parameters:
            raise ConfigError(f"parameter {name}: a run on this machine sets it itself, from RATINGS or IMPORT_TABLE")
    return parameters


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("stopped")
