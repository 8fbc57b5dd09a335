"""Base of the typed, strict configurations; flags, pipeline parameters and docs are generated from their fields."""

import difflib
from collections.abc import Iterable
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from mf.errors import ConfigError
from mf.leaks import hidden

# Error types whose input is not shown, since it may be a secret key: a misspelled name, an address, a field with a
# pattern.
NOT_SHOWN = ("missing", "extra_forbidden", "string_pattern_mismatch", "address", "secret_name")

# What other libraries call our options.
SYNONYMS = {
    "random_state": "seed", "n_factors": "factors", "n_components": "factors", "num_factors": "factors",
    "n_epochs": "epochs", "n_iter": "epochs", "iterations": "epochs", "max_iter": "epochs", "learning_rate": "lr",
    "lr_all": "lr", "regularization": "l2", "reg_all": "l2", "use_gpu": "use_cuda", "device": "use_cuda",
    "validation_fraction": "val_size", "item_column": "movie_column", "user_col": "user_column",
    "item_col": "movie_column", "rating_col": "rating_column", "n_trials": "trials", "y": "rating_column",
    "userid": "user", "user_id": "user", "userids": "user", "itemid": "movie", "item": "movie", "movie_id": "movie",
    "n": "k", "topn": "k", "top_n": "k", "filter_already_liked_items": "exclude_seen", "filter_items": "without_ids",
    "items": "only_ids",
}  # fmt: skip


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


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """``; did you mean lr?`` for a misspelled name, or the name that another library has; empty where none is near."""
    names = set(known)
    spellings = {synonym: own for synonym, own in SYNONYMS.items() if own in names} | {one: one for one in names}
    near = difflib.get_close_matches(name.replace("-", "_").lower(), sorted(spellings), n=1, cutoff=0.62)
    return f"; did you mean {prefix}{spellings[near[0]]}?" if near else ""


def _sentence(error: ErrorDetails) -> str:
    name = ".".join(str(part) for part in error["loc"])
    shown = name and error["type"] not in NOT_SHOWN
    given = f" (given: {hidden(repr(error['input']))})" if shown else ""
    message = error["msg"].removeprefix("Value error, ")
    return f"{name}: {message}{given}" if name else message
