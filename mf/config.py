"""One typed, strict object a step. A field carries its unit and meaning; flags, the pipeline's parameters and the docs
are made from it."""

import argparse
import types
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from mf.errors import ConfigError


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
            # The rejected input is shown for a field that there is: a model-level message already says what it saw, and
            # what stands under a misspelled name may be a key.
            shown = name and first["type"] not in ("missing", "extra_forbidden")
            given = f" (given: {first['input']!r})" if shown else ""
            message = first["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{name}: {message}{given}" if name else message) from None


def plain_type(field: FieldInfo) -> type:
    """The type of a field without its ``| None``."""
    annotation: Any = field.annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is typing.Literal:
        return str
    return annotation  # type: ignore[no-any-return]


def choices(field: FieldInfo) -> tuple[str, ...] | None:
    """The values that a ``Literal`` field allows, else ``None``."""
    if typing.get_origin(field.annotation) is typing.Literal:
        return typing.get_args(field.annotation)
    return None


_METAVARS = {int: "N", float: "X", Path: "DIR", SecretStr: "KEY"}


def add_flags(
    parser: argparse.ArgumentParser, config: type[Config], title: str, leave_out: Collection[str] = ()
) -> None:
    """Adds one flag for every field of ``config`` but those to ``leave_out``. A flag that is not given stays out of the
    parsed namespace, so that what was given can be told from a default."""
    group = parser.add_argument_group(title)
    for name, field in config.model_fields.items():
        if name in leave_out:
            continue
        kind = plain_type(field)
        default = "none" if field.default is None else field.default
        text = f"{field.description} (default: {default if default != '' else 'none'})".replace("%", "%%")
        if kind is bool:
            group.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS, help=field.description)
        else:
            group.add_argument(
                f"--{name}",
                type=kind,
                choices=choices(field),
                default=argparse.SUPPRESS,
                help=text,
                metavar="|".join(choices(field) or ()) or _METAVARS.get(kind, "TEXT"),
            )


def given(namespace: argparse.Namespace, config: type[Config]) -> dict[str, Any]:
    """The fields of ``config`` that stand in ``namespace``."""
    return {k: v for k, v in vars(namespace).items() if k in config.model_fields}
