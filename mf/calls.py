"""Calls of the library: errors for wrong arguments, in the names that the library has."""

import functools
import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from mf.config import did_you_mean
from mf.errors import ConfigError, MfError

P = ParamSpec("P")
R = TypeVar("R")
# Flags of the command line whose option has another name in the library.
KEYWORDS = {
    "ratings_csv": "ratings",
    "supabase_url": "target",
    "supabase_key": "key",
    "force_publish": "force=True",
}
_FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9_]*)")


def public(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator of a public function: wrong arguments are a ``ConfigError`` that names the nearest one, and errors
    name options as keywords (``user_column``), not as flags (``--user_column``)."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ConfigError(_misfit(function.__name__, signature, args, kwargs) or str(error)) from None
        try:
            return function(*args, **kwargs)
        except MfError as error:
            error.args = tuple(in_keywords(str(one)) for one in error.args)
            if isinstance(error, ConfigError):
                error.faults = tuple(in_keywords(fault) for fault in error.faults)
            raise

    return call


def in_keywords(text: str) -> str:
    """``text`` with flags of the command line as keywords of the library."""
    return _FLAG.sub(lambda flag: KEYWORDS.get(flag[1], flag[1]), text)


def path_of(value: Any, name: str) -> Path:
    """A path given as text or as a path.

    Raises:
        ConfigError: it is neither.
    """
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"{name}: found {type(value).__name__}, expected a path")
    return Path(value)


def _misfit(name: str, signature: inspect.Signature, args: Any, kwargs: Any) -> str:
    """What does not fit: unknown keywords, too many arguments by position, or missing ones."""
    parameters = {key: one for key, one in signature.parameters.items() if key != "self"}
    known = {key for key, one in parameters.items() if one.kind is not one.VAR_KEYWORD}
    unknown = [key for key in kwargs if key not in known]
    if unknown and len(known) == len(parameters):
        return "; ".join(f"{name}: unknown argument {key}{did_you_mean(key, known)}" for key in unknown)
    by_position = [key for key, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD]
    given = len(args) - ("self" in signature.parameters)
    if given > len(by_position):
        return (
            f"{name}: found {given} arguments by position, expected at most {len(by_position)} "
            f"({', '.join(by_position)}): ratings and pairs are one table, options are named"
        )
    missing = [key for key in by_position[given:] if parameters[key].default is inspect.Parameter.empty]
    missing = [key for key in missing if key not in kwargs]
    return f"{name}: expected the argument {', '.join(missing)}" if missing else ""
