"""Parameters as a person gives them, ``epochs=20``, checked against the pipeline before anything starts."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from mf.errors import ConfigError
from mf.solvers import configure
from mf.train import options_given
from pipelines.describe import CONFIGS, FOR_ALL_SOLVERS, SOLVER_OPTIONS

TYPES: dict[str, tuple[Callable[[str], Any], str]] = {
    "NUMBER_INTEGER": (int, "a whole number"),
    "NUMBER_DOUBLE": (float, "a finite number"),
    "BOOLEAN": ({"true": True, "false": False}.__getitem__, "true or false"),
    "STRING": (str, "a text"),
}


def parse(given: Iterable[str], definitions: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """``["epochs=20", "lr=0.01"]`` as values of the types that the pipeline asks for.

    Args:
        given: ``name=value`` each.
        definitions: ``root.inputDefinitions.parameters`` of the compiled pipeline.

    Raises:
        ConfigError: a parameter that the pipeline does not have or that the chosen solver does not use, or a value that
            is not of its type or that cannot be.
    """
    values = {}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"parameter {name!r}: expected name=value")
        if name not in definitions:
            raise ConfigError(f"the pipeline has no parameter {name!r}; it has {', '.join(sorted(definitions))}")
        kind, what = TYPES[definitions[name]["parameterType"]]
        try:
            values[name] = kind(text)
            if kind is float and not math.isfinite(values[name]):
                raise ValueError
        except (KeyError, ValueError):
            raise ConfigError(f"parameter {name}: expected {what}, found {text!r}") from None
    _check({name: defined["defaultValue"] for name, defined in definitions.items()} | values)
    return values


def _check(values: dict[str, Any]) -> None:
    """Refuses here what a step would refuse when its turn came."""
    options = options_given(**{name: values[name] for name in SOLVER_OPTIONS})
    configure(values["solver"], {name: values[name] for name in FOR_ALL_SOLVERS} | options, tuned=True)
    for config in CONFIGS:
        config.of(**{name: value for name, value in values.items() if name in config.model_fields})
