"""Flags made from a config, and the parser of every command line here."""

import argparse
import re
import types
import typing
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from mf.config import Config
from mf.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Takes ``--ratings_csv`` also as ``--ratings-csv`` and ``--ratingscsv``, and says what is wrong in one line."""

    def __init__(self, prog: str, description: str | None) -> None:
        # An abbreviation would mean something else on the day that another flag begins as it does.
        super().__init__(prog, description=description, allow_abbrev=False)

    def parse_args(self, argv: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        known = {re.sub("[-_]", "", flag): flag for flag in self._option_string_actions}
        spelled = (re.fullmatch(r"(--[\w-]+)(=.*)?", word, re.DOTALL) for word in argv)
        words = [
            known.get(re.sub("[-_]", "", match[1]), match[1]) + (match[2] or "") if match else word
            for match, word in zip(spelled, argv, strict=True)
        ]
        namespace, unknown = self.parse_known_args(words)
        if unknown:
            # Names only: the value behind a misspelled flag may be a key.
            flags = [word.partition("=")[0] for word in unknown if word.startswith("-")]
            self.error(f"unknown flag {flags[0]}" if flags else "a value that belongs to no flag")
        return namespace

    def error(self, message: str) -> NoReturn:
        # argparse would show the value here, and what is given to a flag that takes none may be a key.
        message = re.sub("ignored explicit argument .*", "it takes no value", message, flags=re.DOTALL)
        raise ConfigError(f"{message} (see {self.prog} --help)")


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
