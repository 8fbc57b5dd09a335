"""The pipeline's command line, one function per command. The Makefile calls it."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mf.config import did_you_mean
from mf.errors import ConfigError, reported
from mf.flags import Parser
from pipelines import describe
from pipelines.compiled import DEFAULT_COMPILED, compile_pipeline, definitions
from pipelines.parameters import parse
from pipelines.settings import DEFAULT_FILE, PREFIX, Settings, overrides, words
from pipelines.training import NAME

HOME = Path(__file__).parents[1] / ".mf"
LOCAL = ("ratings_csv", "import_table", "supabase_url")  # parameters that a run on this machine sets itself


def compile_command(parser: Parser, argv: Sequence[str]) -> None:
    """Writes the pipeline for Vertex AI: one YAML document."""
    _settings_flag(parser)
    _file_flag(parser)
    options = parser.parse_args(argv)
    compile_pipeline(_settings(options), options.file)
    print(f"wrote {options.file}")


def submit_command(parser: Parser, argv: Sequence[str]) -> None:
    """Runs the compiled pipeline on Vertex AI."""
    _settings_flag(parser)
    _file_flag(parser)
    _parameter_flag(parser)
    parser.add_argument("--wait", action="store_true", help="follow the run to its end; exit with 1 when it fails")
    options = parser.parse_args(argv)
    from pipelines.vertex.submit import follow, submit

    job = submit(_settings(options), options.file, options.param)
    if options.wait and not follow(job):
        sys.exit(1)


def schedule_command(parser: Parser, argv: Sequence[str]) -> None:
    """Schedules the compiled pipeline on Vertex AI; a schedule of the same name is replaced."""
    _settings_flag(parser)
    _file_flag(parser)
    _parameter_flag(parser)
    _name_flag(parser)
    parser.add_argument("--cron", required=True, help='five fields of cron; "0 3 * * *" is every day at 03:00')
    parser.add_argument("--tz", default="UTC", help="time zone of --cron, for example Europe/Berlin (default: UTC)")
    options = parser.parse_args(argv)
    from pipelines.vertex.schedules import schedule

    settings, given = _settings(options), options.param
    # So that every run is compared with the one before on ratings that neither was trained on.
    if "split" not in settings.parameters and not any(pair.startswith("split=") for pair in given):
        given = ["split=hash", *given]
    schedule(settings, options.file, given, options.cron, options.tz, options.name)


def schedules_command(parser: Parser, argv: Sequence[str]) -> None:
    """Lists the schedules of the project and region."""
    _settings_flag(parser)
    options = parser.parse_args(argv)
    from pipelines.vertex.schedules import schedules

    schedules(_settings(options))


def pause_command(parser: Parser, argv: Sequence[str]) -> None:
    """Pauses a schedule until it is resumed."""
    from pipelines.vertex.schedules import pause

    pause(*_schedule_named(parser, argv))


def resume_command(parser: Parser, argv: Sequence[str]) -> None:
    """Resumes a paused schedule."""
    from pipelines.vertex.schedules import resume

    resume(*_schedule_named(parser, argv))


def unschedule_command(parser: Parser, argv: Sequence[str]) -> None:
    """Deletes a schedule."""
    from pipelines.vertex.schedules import unschedule

    unschedule(*_schedule_named(parser, argv))


def doctor_command(parser: Parser, argv: Sequence[str]) -> None:
    """Checks everything that a run on Vertex AI needs; prints the command for each missing thing."""
    _settings_flag(parser)
    options = parser.parse_args(argv)
    from pipelines.vertex import doctor

    if not doctor.examine(options.settings, os.environ):
        sys.exit(1)


def run_command(parser: Parser, argv: Sequence[str]) -> None:
    """Runs the pipeline on this machine, against an embedded Supabase or, with --supabase_url, the user's project."""
    _source_flags(parser, "table to read instead of a file, of the embedded Supabase or of the project")
    parser.add_argument("--fresh", action="store_true", help="read the file again, also if an earlier run has read it")
    parser.add_argument("--supabase_url", default="", help="the user's own project; needs --ratings or --import_table")
    options = parser.parse_args(argv)
    if options.ratings and options.import_table:
        raise ConfigError("--ratings and --import_table are both given, expected one of them")
    from pipelines.laptop import sources
    from pipelines.laptop.own import own_source
    from pipelines.laptop.run import run, run_own

    parameters = _local_parameters(options.param)
    if options.supabase_url:
        own = own_source(options.supabase_url, options.ratings, options.import_table)
        run_own(own, parameters, options.home, options.fresh)
        return
    if options.import_table:
        source = sources.table_source(options.import_table, parameters, options.home)
    elif options.ratings:
        source = sources.file_source(options.ratings, parameters)
    else:
        source = sources.sample_source(options.home)
    run(source, parameters, options.home, options.fresh)


def seed_command(parser: Parser, argv: Sequence[str]) -> None:
    """Fills a table of the embedded Supabase from a file of ratings (default: the sample)."""
    _source_flags(parser, "table to replace (default: ratings)", default="ratings")
    options = parser.parse_args(argv)
    from pipelines.laptop.seed import seed_table

    print(seed_table(options.import_table, options.ratings, _local_parameters(options.param), options.home))


def demo_command(parser: Parser, argv: Sequence[str]) -> None:
    """Serves the demo page with the sample's recommendations until Ctrl-C."""
    _home_flag(parser)
    options = parser.parse_args(argv)
    from pipelines.laptop.demo import demo

    demo(options.home)


def images_command(parser: Parser, argv: Sequence[str]) -> None:
    """Builds and pushes the images of the steps, and writes their digests to a file beside the settings."""
    _settings_flag(parser)
    parser.add_argument(
        "--cpu_only", action="store_true", help="build one image for all steps; the train step has no GPU"
    )
    parser.add_argument("--base_image", default="", help="base image (default: the Dockerfile's)")
    parser.add_argument("--torch_index", default="", help="URL of a package index with CPU builds of torch")
    options = parser.parse_args(argv)
    from pipelines import settings
    from pipelines.vertex.images import make_images

    images = make_images(
        _settings(options),
        cpu_only=options.cpu_only,
        base_image=options.base_image,
        torch_index=options.torch_index,
    )
    print(f"\nwrote {settings.write_images(options.settings, images)}")


def parameters_command(parser: Parser, argv: Sequence[str]) -> None:
    """Prints docs/parameters.md: all flags, parameters and solver options, with their defaults."""
    parser.parse_args(argv)
    print(describe.document(definitions()), end="")


COMMANDS = {
    "images": images_command,
    "compile": compile_command,
    "submit": submit_command,
    "schedule": schedule_command,
    "schedules": schedules_command,
    "pause": pause_command,
    "resume": resume_command,
    "unschedule": unschedule_command,
    "doctor": doctor_command,
    "run": run_command,
    "seed-table": seed_command,
    "demo": demo_command,
    "parameters": parameters_command,
}


def main(argv: Sequence[str]) -> None:
    """Runs the command that ``argv`` names; a user's mistake is one line on stderr and exit status 2."""
    with reported():
        if argv and argv[0] in ("-h", "--help"):
            print("usage: python -m pipelines COMMAND [flags]\n")
            for name, described in COMMANDS.items():
                print(f"  {name:<10}  {described.__doc__}")
            print("\npython -m pipelines COMMAND --help shows a command's flags.")
            return
        if not argv or argv[0] not in COMMANDS:
            hint = did_you_mean(argv[0], COMMANDS) if argv else ""
            raise ConfigError(f"expected one of the commands {', '.join(COMMANDS)}{hint}")
        command = COMMANDS[argv[0]]
        command(Parser(f"python -m pipelines {argv[0]}", command.__doc__), argv[1:])


def _settings_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--settings", type=Path, default=DEFAULT_FILE, help="settings file")


def _file_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--file", type=Path, default=DEFAULT_COMPILED, help="compiled pipeline")


def _name_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default=NAME, help=f"name of the schedule (default: {NAME})")


def _settings(options: argparse.Namespace) -> Settings:
    settings = Settings.load(options.settings)
    # A misspelled variable changes nothing, and is missing from this line.
    if names := [f"{PREFIX}{name.upper()}" for name in overrides(os.environ)]:
        print(f"overriding {options.settings}: {', '.join(names)}")
    return settings


def _schedule_named(parser: Parser, argv: Sequence[str]) -> tuple[Settings, str]:
    _settings_flag(parser)
    _name_flag(parser)
    options = parser.parse_args(argv)
    return _settings(options), options.name


def _source_flags(parser: argparse.ArgumentParser, table: str, default: str = "") -> None:
    parser.add_argument("--ratings", type=Path, help="file of ratings (default: the sample)")
    parser.add_argument("--import_table", default=default, help=table)
    _home_flag(parser)
    _parameter_flag(parser)


def _home_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--home",
        type=lambda text: Path(text).resolve(),
        default=HOME,
        help="folder of the local databases and of the steps' outputs",
    )


def _parameter_flag(parser: argparse.ArgumentParser) -> None:
    where = "a parameter of the pipeline (docs/parameters.md)"
    parser.add_argument("--param", action="append", default=[], metavar="NAME=VALUE", help=where)
    parser.add_argument(
        "--params", dest="param", action=_Words, metavar="TEXT", help="several, split into words as in a shell"
    )


def _local_parameters(given: Sequence[str]) -> dict[str, Any]:
    parameters = parse(given, definitions())
    for name in LOCAL:
        if name in parameters:
            raise ConfigError(f"parameter {name}: a run on this machine sets it itself, from RATINGS or IMPORT_TABLE")
    return parameters


class _Words(argparse.Action):
    """Adds the words of a text to a list, split as a shell splits them."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, text: Any, flag: str | None = None) -> None:
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *words(text, "--params")])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("stopped")
