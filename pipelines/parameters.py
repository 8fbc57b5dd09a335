"""Parameters as a person gives them, ``epochs=20``, checked against the pipeline before anything starts."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mf.errors import ConfigError
from mf.solvers import configure
from mf.train import options_given
from pipelines import leaks
from pipelines.describe import CONFIGS, FOR_ALL_SOLVERS, SOLVER_OPTIONS

# Parameter name to what KFP says of it: parameterType, defaultValue, description.
Definitions = dict[str, dict[str, Any]]

TYPES: dict[str, tuple[Callable[[str], Any], str]] = {
    "NUMBER_INTEGER": (int, "a whole number"),
    "NUMBER_DOUBLE": (float, "a finite number"),
    "BOOLEAN": ({"true": True, "false": False}.__getitem__, "true or false"),
    "STRING": (str, "a text"),
}


def parse(given: Iterable[str], definitions: Definitions) -> dict[str, Any]:
    """``["epochs=20", "lr=0.01"]`` as values of the types that the pipeline asks for.

    Args:
        given: ``name=value`` each.
        definitions: ``root.inputDefinitions.parameters`` of the compiled pipeline.

    Raises:
        ConfigError: a parameter that the pipeline does not have or that the chosen solver does not use, one that it
            needs and that is missing, or a value that is not of its type, that cannot be or that looks like a secret.
    """
    values = dict(_parsed(pair, definitions) for pair in given)
    missing = [name for name, value in complete(values, definitions).items() if value is None]
    if missing:
        raise ConfigError(f"parameter {missing[0]} has no default: give {missing[0]}=value")
    _check(complete(values, definitions))
    return values


def complete(values: Mapping[str, Any], definitions: Definitions) -> dict[str, Any]:
    """All parameters of the pipeline: ``values``, else their defaults, else ``None``."""
    return {name: values.get(name, defined.get("defaultValue")) for name, defined in definitions.items()}


def with_defaults(values: Mapping[str, Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives parameters of a pipeline's function other defaults than its signature shows; every parameter has one."""

    def changed(pipeline: Callable[..., Any]) -> Callable[..., Any]:
        defaults = {name: parameter.default for name, parameter in inspect.signature(pipeline).parameters.items()}
        pipeline.__defaults__ = tuple({**defaults, **values}.values())
        return pipeline

    return changed


def _parsed(pair: str, definitions: Definitions) -> tuple[str, Any]:
    name, equals, text = pair.partition("=")
    # First of all: every other error shows what was given.
    leaks.refuse(f"parameter {name}" if equals else "a parameter", pair)
    if not equals:
        raise ConfigError(f"parameter {name!r}: expected name=value")
    if name not in definitions:
        raise ConfigError(f"the pipeline has no parameter {name!r}; it has {', '.join(sorted(definitions))}")
    kind, what = TYPES[definitions[name]["parameterType"]]
    try:
        value = kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError
    except (KeyError, ValueError):
        raise ConfigError(f"parameter {name}: expected {what}, found {text!r}") from None
    return name, value


def _check(values: dict[str, Any]) -> None:
    """Refuses here what a step would refuse when its turn came."""
    options = options_given(**{name: values[name] for name in SOLVER_OPTIONS})
    configure(values["solver"], {name: values[name] for name in FOR_ALL_SOLVERS} | options)
    for config in CONFIGS:
        config.of(**{name: value for name, value in values.items() if name in config.model_fields})
