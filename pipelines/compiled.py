"""The one file that Vertex AI runs."""

import inspect
import tempfile
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from kfp import compiler

from mf.errors import ConfigError
from mf.files import written_aside
from pipelines.parameters import Definitions, complete, parse
from pipelines.settings import Settings
from pipelines.training import NAME, build
from pipelines.vertex import machines

DEFAULT_COMPILED = Path(__file__).parents[1] / "build" / f"{NAME}.yaml"


def compile_pipeline(settings: Settings, file: Path) -> None:
    """Writes the pipeline to ``file``; the same code and settings give the same bytes.

    Raises:
        ConfigError: the settings give a parameter a default that it cannot have.
    """
    text = compiled(settings)
    with written_aside(file) as aside:
        aside.write_text(text)


def compiled(settings: Settings) -> str:
    """The pipeline as ``compile_pipeline`` writes it."""
    known = definitions()
    try:
        defaults = parse(settings.defaults(), known)
        machines.check(complete(defaults, known), settings.region)
    except ConfigError as error:
        raise ConfigError(f"the settings: {error}") from None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{NAME}.yaml"
        compiler.Compiler().compile(build(settings, defaults), str(file))
        return file.read_text()


def definitions() -> Definitions:
    """The parameters of the pipeline as this code has it, in the order of its signature."""
    pipeline = build(Settings())
    found = json_format.MessageToDict(pipeline.pipeline_spec.root.input_definitions)["parameters"]
    return {name: found[name] for name in inspect.signature(pipeline.pipeline_func).parameters}


def definitions_in(file: Path) -> Definitions:
    """The parameters of a compiled pipeline.

    Raises:
        ConfigError: there is none, or the file is something else.
    """
    found: Definitions = _read(file)["root"]["inputDefinitions"]["parameters"]
    return found


def check_current(settings: Settings, file: Path) -> None:
    """Refuses a compiled pipeline that is not what this code and ``settings`` compile to now.

    Raises:
        ConfigError: naming the first difference; or there is no compiled pipeline.
    """
    now = compiled(settings)
    if not file.exists() or file.read_bytes() != now.encode():
        where = _difference(_read(file), _parse(now))
        raise ConfigError(f"{file} is not what this code and these settings compile to{where}: run `make compile`")


def _read(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = _parse(file.read_text())
        found["root"]["inputDefinitions"]["parameters"].items()
    except FileNotFoundError:
        raise ConfigError(f"{file}: no compiled pipeline there: run `make compile`") from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(f"{file} is no compiled pipeline: run `make compile`") from None
    return found


def _parse(text: str) -> Any:
    """As ``yaml.safe_load``, in a tenth of its time: libyaml does it."""
    return yaml.load(text, Loader=yaml.CSafeLoader)


def _difference(found: Any, now: Any, path: tuple[str, ...] = ()) -> str:
    """Where two documents differ first; with both values, unless one is a whole text or table."""
    if isinstance(found, dict) and isinstance(now, dict):
        for key in sorted(found.keys() | now.keys()):
            if found.get(key) != now.get(key):
                return _difference(found.get(key), now.get(key), (*path, key))
    shown = [repr(value) for value in (found, now)]
    values = f" is {shown[0]}, now {shown[1]}" if max(map(len, shown)) < 100 else " differs"
    return f", {'.'.join(path)}{values}" if path else ""
