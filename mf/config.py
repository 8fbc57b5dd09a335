"""Base of the typed, strict configurations; flags, pipeline parameters and docs are generated from their fields."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from mf.errors import ConfigError
from mf.leaks import hidden

# Error types whose input is not shown, since it may be a secret key: a misspelled name, an address, a field with a
# pattern.
NOT_SHOWN = ("missing", "extra_forbidden", "string_pattern_mismatch", "address", "secret_name")


class Config(BaseModel):
    """Base of all configurations: immutable, finite numbers, unknown keys refused.

    A whole float is an integer (16.0 is 16): KFP passes all numbers as floats. 16.5 is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def of(cls, **values: Any) -> Self:
        """A validated configuration.

        Raises:
            ConfigError: names every invalid field, the value found and the one expected.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first: dict[tuple[int | str, ...], ErrorDetails] = {}
            for one in error.errors(include_url=False):
                # A field that takes several types has an error for each of them; the first says enough.
                first.setdefault(one["loc"][:1], one)
            raise ConfigError(*map(_sentence, first.values())) from None


def _sentence(error: ErrorDetails) -> str:
    name = ".".join(str(part) for part in error["loc"])
    shown = name and error["type"] not in NOT_SHOWN
    given = f" (given: {hidden(repr(error['input']))})" if shown else ""
    message = error["msg"].removeprefix("Value error, ")
    return f"{name}: {message}{given}" if name else message
