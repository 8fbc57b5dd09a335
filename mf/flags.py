"""Flags made from configs, and the parser of every command line here."""

import argparse
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
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


_METAVARS = {int: "N", float: "X", Path: "PATH", SecretStr: "KEY"}


def add_flags(
    parser: argparse.ArgumentParser, config: type[Config], title: str, leave_out: Collection[str] = ()
) -> None:
    """Adds one flag for every field of ``config`` but those to ``leave_out``. A flag that is not given stays out of the
    parsed namespace, so that what was given can be told from a default."""
    group = parser.add_argument_group(title)
    for name, field in config.model_fields.items():
        if name not in leave_out:
            _add_flag(group, name, field, f"{field.description} (default: {_shown(field.default)})")


def add_shared_flags(parser: argparse.ArgumentParser, configs: Mapping[str, type[Config]], title: str) -> None:
    """Adds one flag for every field that any of ``configs`` has, as ``add_flags`` does; which of them have it shows
    where their defaults stand."""
    group = parser.add_argument_group(title)
    for name, fields in shared_fields(configs).items():
        default = by_owner({owner: field.default for owner, field in fields.items()}, configs)
        _add_flag(group, name, next(iter(fields.values())), f"{meaning(fields)} (default: {default})")


def shared_fields(configs: Mapping[str, type[Config]]) -> dict[str, dict[str, FieldInfo]]:
    """Every field of ``configs`` by its name, and then by the names of the configs that have it."""
    fields: dict[str, dict[str, FieldInfo]] = {}
    for owner, config in configs.items():
        for name, field in config.model_fields.items():
            fields.setdefault(name, {})[owner] = field
    return fields


def meaning(fields: Mapping[str, FieldInfo]) -> str:
    """The description that fields of one name share, else each with those whose it is: "vb: …; gibbs: …"."""
    owners: dict[str, list[str]] = {}
    for owner, field in fields.items():
        owners.setdefault(str(field.description), []).append(owner)
    if len(owners) == 1:
        return next(iter(owners))
    return "; ".join(f"{', '.join(of)}: {description}" for description, of in owners.items())


def by_owner(values: Mapping[str, Any], owners: Collection[str]) -> str:
    """``values``, by owner, as "adam 2048, sgd 65536"; as "64" when all ``owners`` have that one."""
    shown = {owner: _shown(value) for owner, value in values.items()}
    if len(shown) == len(owners) and len({*shown.values()}) == 1:
        return next(iter(shown.values()))
    return ", ".join(f"{owner} {value}" for owner, value in shown.items())


def given(namespace: argparse.Namespace, *configs: type[Config]) -> dict[str, Any]:
    """The fields of any of ``configs`` that stand in ``namespace``."""
    return {k: v for k, v in vars(namespace).items() if any(k in config.model_fields for config in configs)}


def _shown(value: Any) -> str:
    return "none" if value in (None, "") else str(value)


def _add_flag(group: argparse._ArgumentGroup, name: str, field: FieldInfo, text: str) -> None:
    kind = plain_type(field)
    if kind is bool:
        group.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS, help=field.description)
        return
    group.add_argument(
        f"--{name}",
        type=kind,
        choices=choices(field),
        default=argparse.SUPPRESS,
        help=text.replace("%", "%%"),
        metavar="|".join(choices(field) or ()) or _METAVARS.get(kind, "TEXT"),
    )
