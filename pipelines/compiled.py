"""The one file that Vertex AI runs."""

import inspect
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from kfp import compiler

from mf.errors import ConfigError
from mf.files import written_aside
from pipelines.settings import Settings
from pipelines.training import NAME, build

# Parameter name to what KFP says of it: parameterType, defaultValue, description.
Definitions = dict[str, dict[str, Any]]

DEFAULT_COMPILED = Path(__file__).parents[1] / "build" / f"{NAME}.yaml"


def compile_pipeline(settings: Settings, file: Path) -> None:
    """Writes the pipeline to ``file``; the same code and settings give the same bytes."""
    with written_aside(file) as aside:
        # The compiler wants the ending.
        yaml_file = aside.with_name(f"{aside.name}.yaml")
        compiler.Compiler().compile(build(settings), str(yaml_file))
        yaml_file.rename(aside)


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
    try:
        found: Definitions = yaml.safe_load(file.read_text())["root"]["inputDefinitions"]["parameters"]
    except FileNotFoundError:
        raise ConfigError(f"{file}: no compiled pipeline there: run `make compile`") from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError):
        raise ConfigError(f"{file} is no compiled pipeline: run `make compile`") from None
    return found
