"""Parameters as they are typed, ``epochs=20``, validated against the pipeline before anything starts."""

import functools
import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mf.errors import ConfigError
from mf.parameters import check
from pipelines import leaks

# Parameter name to KFP's definition of it: parameterType, defaultValue, description.
Definitions = dict[str, dict[str, Any]]


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _table(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


TYPES: dict[str, tuple[Callable[[str], Any], str]] = {
    "NUMBER_INTEGER": (int, "a whole number"),
    "NUMBER_DOUBLE": (_number, "a finite number"),
    "BOOLEAN": ({"true": True, "false": False}.__getitem__, "true or false"),
    "STRING": (str, "a text"),
    "STRUCT": (_table, 'JSON such as {"rank": 16} (for one entry: name.rank=16)'),
}


def parse(
    given: Iterable[str], definitions: Definitions, *more: Callable[[Mapping[str, Any]], object]
) -> dict[str, Any]:
    """``["epochs=20", "solver_options.rank=16"]`` as values of the types that the pipeline has.

    Args:
        given: ``name=value`` each, or ``name.key=value`` for an entry of a table.
        definitions: ``root.inputDefinitions.parameters`` of the compiled pipeline.
        more: further checks of all parameters of the run (``mf.parameters.check``).

    Raises:
        ConfigError: naming every fault: a parameter that the pipeline does not have, a value of another type or out of
            range, and what a step would refuse. A value that looks like a secret is refused on its own.
    """
    given = [*given]
    for pair in given:
        # Before all else, because every other error shows the value.
        name, equals, _ = pair.partition("=")
        leaks.refuse(f"parameter {name}" if equals else "a parameter", pair)
    values: dict[str, Any] = {}
    faults: list[str] = []
    for pair in given:
        try:
            name, value = _parsed(pair, definitions, values)
        except ConfigError as error:
            faults += error.faults
        else:
            values[name] = value
    everything = complete(values, definitions)
    faults += [f"parameter {name} has no default: give {name}=value" for name, v in everything.items() if v is None]
    try:
        check(everything, *more)
    except ConfigError as error:
        faults += error.faults
    if faults:
        raise ConfigError(*faults)
    return values


def complete(values: Mapping[str, Any], definitions: Definitions) -> dict[str, Any]:
    """All parameters of the pipeline: ``values``, else their defaults, else ``None``."""
    return {name: values.get(name, defined.get("defaultValue")) for name, defined in definitions.items()}


def with_defaults(values: Mapping[str, Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Replaces the defaults of a pipeline function's parameters, each of which has one."""

    def changed(pipeline: Callable[..., Any]) -> Callable[..., Any]:
        defaults = {name: parameter.default for name, parameter in inspect.signature(pipeline).parameters.items()}
        pipeline.__defaults__ = tuple({**defaults, **values}.values())
        return pipeline

    return changed


def without(values: Mapping[str, Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Fixes parameters of a pipeline function to ``values``, so that the pipeline has no such parameters."""

    def changed(pipeline: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(pipeline)
        left = [one for name, one in signature.parameters.items() if name not in values]

        @functools.wraps(pipeline)
        def shorter(*given: Any) -> Any:
            return pipeline(**values, **{one.name: value for one, value in zip(left, given, strict=True)})

        shorter.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        return shorter

    return changed


def _parsed(pair: str, definitions: Definitions, before: Mapping[str, Any]) -> tuple[str, Any]:
    """The name and the value of one parameter; an entry of a table is added to what the table has ``before``."""
    name, equals, text = pair.partition("=")
    if not equals:
        raise ConfigError(
            f"parameter {name!r}: expected name=value; put quotes around a value with a blank: "
            "PARAMS='movie_column=\"Book Title\"'"
        )
    table, dot, key = name.partition(".")
    if dot and definitions.get(table, {}).get("parameterType") == "STRUCT":
        return table, {**complete(before, definitions)[table], key: _entry(text)}
    if name not in definitions:
        raise ConfigError(f"the pipeline has no parameter {name!r}; it has {', '.join(sorted(definitions))}")
    kind, expected = TYPES[definitions[name]["parameterType"]]
    try:
        return name, kind(text)
    except (KeyError, ValueError):
        raise ConfigError(f"parameter {name}: expected {expected}, found {text!r}") from None


def _entry(text: str) -> Any:
    """A value as JSON if it is JSON, such as 16, 0.1, true and null, else as a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
