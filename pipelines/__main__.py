"""The pipeline's command line, one function per command. The Makefile calls it."""

import argparse
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mf.config import did_you_mean
from mf.errors import ConfigError, MfError, one_line, reported
from mf.flags import Parser
from pipelines import describe
from pipelines.compiled import compile_pipeline, default_file, definitions
from pipelines.follow import NOT_FOLLOWED, NOT_STARTED
from pipelines.parameters import parse
from pipelines.settings import DEFAULT_FILE, PREFIX, Settings, overrides, target_of, words
from pipelines.training import NAME

HOME = Path(__file__).parents[1] / ".mf"
LOCAL = ("ratings_csv", "import_table", "supabase_url")  # parameters that a run on this machine sets itself


def compile_command(parser: Parser, argv: Sequence[str]) -> None:
    """Writes the pipeline: one YAML document for Vertex AI, two for Kubeflow."""
    _settings_flag(parser)
    _file_flag(parser)
    options = parser.parse_args(argv)
    settings = _settings(options)
    file = _file(options, settings)
    compile_pipeline(settings, file)
    print(f"wrote {file}")
    if not settings.is_begun:
        print(
            f"{options.settings} names no registry of images yet, so this file can be read and not run: docs/vertex.md",
            file=sys.stderr,
        )


def submit_command(parser: Parser, argv: Sequence[str]) -> None:
    """Runs the compiled pipeline on Vertex AI or Kubeflow; exit status 4: the run was not started."""
    _settings_flag(parser)
    _file_flag(parser)
    _parameter_flag(parser)
    parser.add_argument("--wait", action="store_true", help="follow the run to its end, as the command watch does")
    options = parser.parse_args(argv)
    settings = _settings(options)
    place = _place(settings)
    with _ending_with(NOT_STARTED):
        run = place.submit(settings, _file(options, settings), options.param)
    if options.wait and (status := place.follow(run, settings)):
        sys.exit(status)


def watch_command(parser: Parser, argv: Sequence[str]) -> None:
    """Follows a run to its end; exit status 5: stopped following before its end, 6: the run failed."""
    _settings_flag(parser)
    parser.add_argument("--job", required=True, help="id or resource name of the run, as the command submit prints it")
    options = parser.parse_args(argv)
    settings = _settings(options)
    place = _place(settings)
    with _ending_with(NOT_FOLLOWED):
        run = place.find(settings, options.job)
    if status := place.follow(run, settings):
        sys.exit(status)


def schedule_command(parser: Parser, argv: Sequence[str]) -> None:
    """Schedules the compiled pipeline on Vertex AI; a schedule of the same name is replaced."""
    _settings_flag(parser)
    _file_flag(parser)
    _parameter_flag(parser)
    _name_flag(parser)
    parser.add_argument("--cron", required=True, help='five fields of cron; "0 3 * * *" is every day at 03:00')
    parser.add_argument("--tz", default="UTC", help="time zone of --cron, for example Europe/Berlin (default: UTC)")
    options = parser.parse_args(argv)
    settings, given = _settings(options), options.param
    # So that every run is compared with the one before on ratings that neither was trained on.
    if "split" not in settings.parameters and not any(pair.startswith("split=") for pair in given):
        given = ["split=hash", *given]
    schedules = _schedules(settings)
    schedules.schedule(settings, _file(options, settings), given, options.cron, options.tz, options.name)


def schedules_command(parser: Parser, argv: Sequence[str]) -> None:
    """Lists the schedules of the project and region."""
    _settings_flag(parser)
    options = parser.parse_args(argv)
    settings = _settings(options)
    _schedules(settings).schedules(settings)


def pause_command(parser: Parser, argv: Sequence[str]) -> None:
    """Pauses a schedule until it is resumed."""
    settings, name = _schedule_named(parser, argv)
    _schedules(settings).pause(settings, name)


def resume_command(parser: Parser, argv: Sequence[str]) -> None:
    """Resumes a paused schedule."""
    settings, name = _schedule_named(parser, argv)
    _schedules(settings).resume(settings, name)


def unschedule_command(parser: Parser, argv: Sequence[str]) -> None:
    """Deletes a schedule."""
    settings, name = _schedule_named(parser, argv)
    _schedules(settings).unschedule(settings, name)


def doctor_command(parser: Parser, argv: Sequence[str]) -> None:
    """Checks everything that a run on Vertex AI or Kubeflow needs; prints what to do about each missing thing."""
    _settings_flag(parser)
    options = parser.parse_args(argv)
    environ = {**os.environ, **_target(options)}
    target = "kubeflow" if target_of(options.settings, environ) == "kubeflow" else "vertex"
    if not importlib.import_module(f"pipelines.{target}.doctor").examine(options.settings, environ):
        sys.exit(1)


def run_command(parser: Parser, argv: Sequence[str]) -> None:
    """Runs the pipeline on this machine, against an embedded Supabase or, with --supabase_url, the user's project."""
    _source_flags(parser, "table to read instead of a file, of the embedded Supabase or of the project")
    parser.add_argument("--fresh", action="store_true", help="read the file again, also if an earlier run has read it")
    parser.add_argument("--supabase_url", default="", help="the user's own project; needs --ratings or --import_table")
    options = parser.parse_args(argv)
    _check_one_source(options)
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
    """Serves the demo page until Ctrl-C: recommendations from the sample, a file, or a table."""
    _source_flags(parser, "table to read instead of a file, of the embedded Supabase or of the project")
    parser.add_argument("--supabase_url", default="", help="the user's own project, of which --import_table is read")
    options = parser.parse_args(argv)
    _check_one_source(options)
    if options.supabase_url and options.ratings:
        raise ConfigError("--supabase_url is for --import_table: the demo of a file stays on this machine")
    parameters = _local_parameters(options.param)
    from mf.local.tools import default_cache, supabase_js
    from pipelines.laptop.demo import data, demo

    bundle = supabase_js(default_cache())  # first, because it needs the network and training takes time
    if options.supabase_url:
        shown = data.project_data(options.supabase_url, options.import_table, parameters, options.home)
    elif options.import_table:
        shown = data.table_data(options.import_table, parameters, options.home)
    elif options.ratings:
        shown = data.file_data(options.ratings, parameters, options.home)
    else:
        shown = data.sample_data(options.home)
    demo(shown, bundle, parameters, options.home)


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
    "watch": watch_command,
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


@contextmanager
def _ending_with(status: int) -> Iterator[None]:
    """Exits with ``status`` for an error of the block that is not a user's mistake."""
    try:
        yield
    except ConfigError:
        raise
    except MfError as error:
        print("error:", one_line(str(error)), file=sys.stderr)
        sys.exit(status)


def _settings_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--settings", type=Path, default=DEFAULT_FILE, help="settings file")
    parser.add_argument(
        "--target", choices=("vertex", "kubeflow"), help="vertex or kubeflow (default: the setting target)"
    )


def _file_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--file", type=Path, help="compiled pipeline (default: build/mf-training….yaml)")


def _file(options: argparse.Namespace, settings: Settings) -> Path:
    file: Path = options.file or default_file(settings.target)
    return file


def _place(settings: Settings) -> Any:
    """The module with ``submit``, ``follow`` and ``find`` for the target of the settings."""
    return importlib.import_module(f"pipelines.{settings.target}.submit")


def _schedules(settings: Settings) -> Any:
    """The module with the commands on schedules for the target of the settings."""
    return importlib.import_module(f"pipelines.{settings.target}.schedules")


def _name_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default=NAME, help=f"name of the schedule (default: {NAME})")


def _settings(options: argparse.Namespace) -> Settings:
    settings = Settings.load(options.settings, {**os.environ, **_target(options)})
    # A misspelled variable changes nothing, and is missing from this line.
    if names := [f"{PREFIX}{name.upper()}" for name in overrides(os.environ)]:
        print(f"overriding {options.settings}: {', '.join(names)}")
    return settings


def _target(options: argparse.Namespace) -> dict[str, str]:
    """The flag --target as the variable that overrides the setting."""
    return {f"{PREFIX}TARGET": options.target} if options.target else {}


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


def _check_one_source(options: argparse.Namespace) -> None:
    if options.ratings and options.import_table:
        raise ConfigError("--ratings and --import_table are both given, expected one of them")


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
