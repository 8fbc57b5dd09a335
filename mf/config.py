"""One typed, strict object a step. A field carries its unit and meaning; flags, the pipeline's parameters and the docs
are made from it."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from mf.errors import ConfigError

# The rejected input is shown, but not where a key may have been pasted: under a misspelled name, for an address, for
# what has a pattern.
NOT_SHOWN = ("missing", "extra_forbidden", "string_pattern_mismatch", "address", "secret_name")


class Config(BaseModel):
    """Base of every configuration: immutable, numbers are finite, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Validates ``values``.

        Raises:
            ConfigError: naming the first field that cannot be, what was given and what is expected.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in first["loc"])
            shown = name and first["type"] not in NOT_SHOWN
            given = f" (given: {first['input']!r})" if shown else ""
            message = first["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{name}: {message}{given}" if name else message) from None
