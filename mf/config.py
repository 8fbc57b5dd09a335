"""One typed, strict object a step. A field carries its unit and meaning; flags, the pipeline's parameters and the docs
are made from it."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from mf.errors import ConfigError

# The rejected input is shown, but not where a key may have been pasted: under a misspelled name, for an address, for
# what has a pattern.
NOT_SHOWN = ("missing", "extra_forbidden", "string_pattern_mismatch", "address")


class Config(BaseModel):
    """Base of every configuration: immutable, numbers are finite, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Validates ``values``.

        Raises:
            ConfigError: naming every field that is not valid, what was given and what is expected.
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
    given = f" (given: {error['input']!r})" if shown else ""
    message = error["msg"].removeprefix("Value error, ")
    return f"{name}: {message}{given}" if name else message
