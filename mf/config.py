"""Base of the typed, strict configurations; flags, pipeline parameters and docs are generated from their fields."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from mf.errors import ConfigError

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
            ConfigError: names the first bad field, the value found and the one expected.
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
