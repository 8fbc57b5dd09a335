"""Compiling the pipeline to the YAML document that Vertex AI runs."""

import inspect
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from kfp import compiler

from mf.errors import ConfigError
from mf.files import written_aside
from pipelines.parameters import Definitions, parse
from pipelines.settings import Settings
from pipelines.training import NAME, build, machines_of
from pipelines.vertex import machines

DEFAULT_COMPILED = Path(__file__).parents[1] / "build" / f"{NAME}.yaml"


def compile_pipeline(settings: Settings, file: Path) -> None:
    """Writes the pipeline to ``file``, atomically; the same code and settings give the same bytes.

    Raises:
        ConfigError: the settings have a default or a machine that is not valid.
    """
    text = compiled(settings)
    with written_aside(file) as aside:
        aside.write_text(text)


def compiled(settings: Settings) -> str:
    """The YAML document that ``compile_pipeline`` writes."""
    known = definitions()
    try:
        defaults = parse(settings.defaults(), known, machine_check(settings))
    except ConfigError as error:
        raise ConfigError(f"the settings: {error}") from None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{NAME}.yaml"
        compiler.Compiler().compile(build(settings, defaults), str(file))
        return file.read_text()


def machine_check(settings: Settings) -> Callable[[Mapping[str, Any]], None]:
    """A check of a run's parameters against the machines and GPUs of Vertex AI, for ``parse``."""
    return lambda parameters: machines.check(machines_of(settings), parameters, settings.region)


def definitions() -> Definitions:
    """The parameters of the pipeline in this code, in the order of its signature."""
    pipeline = build(Settings())
    found = json_format.MessageToDict(pipeline.pipeline_spec.root.input_definitions)["parameters"]
    return {name: found[name] for name in inspect.signature(pipeline.pipeline_func).parameters}


def definitions_in(file: Path) -> Definitions:
    """The parameters of a compiled pipeline.

    Raises:
        ConfigError: the file is missing or is not a compiled pipeline.
    """
    found: Definitions = _read(file)["root"]["inputDefinitions"]["parameters"]
    return found


def check_current(settings: Settings, file: Path) -> None:
    """Refuses a compiled pipeline that is out of date with this code and ``settings``.

    Raises:
        ConfigError: naming the first difference; or the file is missing.
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
        raise ConfigError(f"{file}: no such file, expected a compiled pipeline: run `make compile`") from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(f"{file} is not a compiled pipeline: run `make compile`") from None
    return found


def _parse(text: str) -> Any:
    """``yaml.safe_load`` by libyaml, in a tenth of the time."""
    return yaml.load(text, Loader=yaml.CSafeLoader)


def _difference(found: Any, now: Any, path: tuple[str, ...] = ()) -> str:
    """The first difference of two documents, with both values unless one is long."""
    if isinstance(found, dict) and isinstance(now, dict):
        for key in sorted(found.keys() | now.keys()):
            if found.get(key) != now.get(key):
                return _difference(found.get(key), now.get(key), (*path, key))
    shown = [repr(value) for value in (found, now)]
    values = f" is {shown[0]}, now {shown[1]}" if max(map(len, shown)) < 100 else " differs"
    return f", {'.'.join(path)}{values}" if path else ""
