"""Compiling the pipeline to the YAML that Vertex AI or Kubeflow Pipelines runs."""

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
from mf.parameters import check_nodes
from pipelines.addresses import check_ratings_csv
from pipelines.kubeflow import gpus as kubeflow_gpus
from pipelines.parameters import Definitions, parse
from pipelines.settings import Settings
from pipelines.training import NAME, build, machines_of
from pipelines.vertex import machines

BUILD = Path(__file__).parents[1] / "build"


def default_file(target: str) -> Path:
    """Where `make compile` writes the pipeline for a target, vertex or kubeflow."""
    return BUILD / (f"{NAME}.yaml" if target == "vertex" else f"{NAME}-{target}.yaml")


def compile_pipeline(settings: Settings, file: Path) -> None:
    """Writes the pipeline to ``file``, atomically; the same code and settings give the same bytes.

    Settings that name nothing of the user's own compile too, with images that no registry has.

    Raises:
        ConfigError: the settings have a default, a machine or an image that is not valid.
    """
    if settings.is_begun:
        settings.check_images()
    text = compiled(settings)
    with written_aside(file) as aside:
        aside.write_text(text)


def compiled(settings: Settings) -> str:
    """The YAML that ``compile_pipeline`` writes: one document for Vertex AI, two for Kubeflow."""
    known = definitions(settings.target)
    try:
        defaults = parse(settings.defaults(), known, target_check(settings))
    except ConfigError as error:
        raise ConfigError(f"the settings: {error}") from None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{NAME}.yaml"
        compiler.Compiler().compile(build(settings, defaults), str(file))
        return file.read_text()


def target_check(settings: Settings) -> Callable[[Mapping[str, Any]], None]:
    """A check of a run's parameters for ``parse``, against what the target has: machines, GPUs, buckets."""

    def check(parameters: Mapping[str, Any]) -> None:
        faults: list[str] = []
        for one in (_check_machines, _check_file, _check_nodes):
            try:
                one(settings, parameters)
            except ConfigError as error:
                faults += error.faults
        if faults:
            raise ConfigError(*faults)

    return check


def _check_machines(settings: Settings, parameters: Mapping[str, Any]) -> None:
    if settings.target == "kubeflow":
        kubeflow_gpus.check(parameters, has_gpu=settings.has_gpu)
    else:
        steps = machines_of(settings)
        machines.check(steps, parameters, settings.region, has_gpu=settings.has_gpu, cuda=settings.cuda)


def _check_file(settings: Settings, parameters: Mapping[str, Any]) -> None:
    check_ratings_csv(parameters["ratings_csv"], settings.target)


def _check_nodes(settings: Settings, parameters: Mapping[str, Any]) -> None:
    check_nodes(parameters, settings.train_nodes)


def definitions(target: str = "vertex") -> Definitions:
    """The parameters of the pipeline in this code, in the order of its signature."""
    pipeline = build(Settings.of(target=target))
    found = json_format.MessageToDict(pipeline.pipeline_spec.root.input_definitions)["parameters"]
    return {name: found[name] for name in inspect.signature(pipeline.pipeline_func).parameters}


def definitions_in(file: Path) -> Definitions:
    """The parameters of a compiled pipeline.

    Raises:
        ConfigError: the file is missing or is not a compiled pipeline.
    """
    found: Definitions = _read(file)[0]["root"]["inputDefinitions"]["parameters"]
    return found


def check_current(settings: Settings, file: Path) -> None:
    """Refuses a compiled pipeline that is out of date with this code and ``settings``.

    Raises:
        ConfigError: naming the first difference; or the file is missing, or compiled for another target.
    """
    now = compiled(settings)
    if file.exists() and file.read_bytes() == now.encode():
        return
    found = _read(file)
    target = "vertex" if len(found) == 1 else "kubeflow"
    if target != settings.target:
        raise ConfigError(
            f"{file} is compiled for {target}, and the settings have the target {settings.target}: run "
            f"`make compile TARGET={settings.target}`"
        )
    expected = _parse(now)
    where = next((_difference(old, new) for old, new in zip(found, expected, strict=True) if old != new), "")
    raise ConfigError(f"{file} is not what this code and these settings compile to{where}: run `make compile`")


def _read(file: Path) -> list[dict[str, Any]]:
    """The documents of a compiled pipeline: the pipeline, and for Kubeflow the settings of its pods."""
    try:
        found = _parse(file.read_text())
        found[0]["root"]["inputDefinitions"]["parameters"].items()
        if [*map(set, found[1:])] not in ([], [{"platforms"}]):
            raise ValueError
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file, expected a compiled pipeline: run `make compile`") from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(f"{file} is not a compiled pipeline: run `make compile`") from None
    return found


def _parse(text: str) -> list[dict[str, Any]]:
    """``yaml.safe_load_all`` by libyaml, in a tenth of the time."""
    return [*yaml.load_all(text, Loader=yaml.CSafeLoader)]


def _difference(found: Any, now: Any, path: tuple[str, ...] = ()) -> str:
    """The first difference of two documents, with both values unless one is long."""
    if isinstance(found, dict) and isinstance(now, dict):
        for key in sorted(found.keys() | now.keys()):
            if found.get(key) != now.get(key):
                return _difference(found.get(key), now.get(key), (*path, key))
    shown = [repr(value) for value in (found, now)]
    values = f" is {shown[0]}, now {shown[1]}" if max(map(len, shown)) < 100 else " differs"
    return f", {'.'.join(path)}{values}" if path else ""
