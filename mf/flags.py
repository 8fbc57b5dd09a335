"""Command line parser, with flags generated from the fields of configs."""

import argparse
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from mf.config import Config, did_you_mean
from mf.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Argument parser with one-line errors; accepts ``--ratings-csv`` and ``--ratingscsv`` for ``--ratings_csv``."""

    def __init__(self, prog: str, description: str | None) -> None:
        # An abbreviation would change its meaning when another flag with that beginning is added.
        super().__init__(prog, description=description, allow_abbrev=False)

    def parse_args(self, argv: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        known = {re.sub("[-_]", "", flag): flag for flag in self._option_string_actions}
        spelled = (re.fullmatch(r"(--[\w-]+)(=.*)?", word, re.DOTALL) for word in argv)
        words = [
            known.get(re.sub("[-_]", "", match[1]), match[1]) + (match[2] or "") if match else word
            for match, word in zip(spelled, argv, strict=True)
        ]
        # argparse takes -1,0 for a flag.
        for i in reversed(range(1, len(words))):
            if re.fullmatch(r"-[0-9.][^=]*,.*", words[i], re.DOTALL) and words[i - 1].startswith("--"):
                words[i - 1 : i + 1] = [f"{words[i - 1]}={words[i]}"]
        namespace, unknown = self.parse_known_args(words)
        if unknown:
            # Names only: the value after a misspelled flag may be a secret key.
            flags = [word.partition("=")[0] for word in unknown if word.startswith("-")]
            if not flags:
                file = next((word for word in unknown if Path(word).is_file()), "")
                files = [flag for flag in self._option_string_actions if flag.endswith("_csv")]
                self.error(
                    f"found the file {file} without a flag, expected {' or '.join(files)} before it"
                    if file and files
                    else "found a value without a flag"
                )
            names = [flag.removeprefix("--") for flag in self._option_string_actions if flag.startswith("--")]
            self.error(f"unknown flag {flags[0]}{did_you_mean(flags[0].lstrip('-'), names, '--')}")
        return namespace

    def error(self, message: str) -> NoReturn:
        # argparse would print the value that was given to a flag without a value, and it may be a secret key.
        message = re.sub("ignored explicit argument .*", "it takes no value", message, flags=re.DOTALL)
        # Python 3.11 puts each choice in quotes, 3.13 does not.
        message = re.sub(r"(?<=\(choose from ).*(?=\)$)", lambda choices: choices[0].replace("'", ""), message)
        if choice := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            message += did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2]))
        raise ConfigError(f"{message} (see {self.prog} --help)")


def plain_type(field: FieldInfo) -> type:
    """A field's type without ``| None``; text for a ``Literal``."""
    annotation: Any = field.annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is typing.Literal:
        return str
    return annotation  # type: ignore[no-any-return]


def choices(field: FieldInfo) -> tuple[str, ...] | None:
    """The allowed values of a ``Literal`` field, else ``None``."""
    if typing.get_origin(field.annotation) is typing.Literal:
        return typing.get_args(field.annotation)
    return None


_RULE = "; default: "  # precedes the rule for a default that is derived from the data
_METAVARS = {int: "N", float: "X", Path: "PATH", SecretStr: "KEY"}


def add_flags(
    parser: argparse.ArgumentParser, config: type[Config], title: str, leave_out: Collection[str] = ()
) -> None:
    """Adds one flag per field of ``config``, except those in ``leave_out``.

    Flags that are absent from the command line are absent from the parsed namespace: defaults stay with the config."""
    group = parser.add_argument_group(title)
    for name, field in config.model_fields.items():
        if name not in leave_out:
            _add_flag(group, name, field, f"{description(field)} (default: {default_text(field, field.default)})")


def add_shared_flags(
    parser: argparse.ArgumentParser,
    configs: Mapping[str, type[Config]],
    title: str,
    presets: Mapping[str, Mapping[str, Any]],
) -> None:
    """Adds one flag per field of any of ``configs``, as ``add_flags``. The default shows which of them have the field.

    Args:
        presets: defaults to show in place of a config's own, by the config's name.
    """
    group = parser.add_argument_group(title)
    for name, fields in shared_fields(configs).items():
        defaults = {
            owner: default_text(field, presets.get(owner, {}).get(name, field.default))
            for owner, field in fields.items()
        }
        text = f"{meaning(fields)} (default: {by_owner(defaults, configs)})"
        _add_flag(group, name, next(iter(fields.values())), text)


def shared_fields(configs: Mapping[str, type[Config]]) -> dict[str, dict[str, FieldInfo]]:
    """The fields of all ``configs``: field name to config name to field."""
    fields: dict[str, dict[str, FieldInfo]] = {}
    for owner, config in configs.items():
        for name, field in config.model_fields.items():
            fields.setdefault(name, {})[owner] = field
    return fields


def description(field: FieldInfo) -> str:
    """A field's description, without the rule of its default."""
    return str(field.description).partition(_RULE)[0]


def default_text(field: FieldInfo, value: Any) -> str:
    """A default value as text; for an empty one the rule that stands in the description, else "none"."""
    if value in (None, ""):
        return str(field.description).partition(_RULE)[2] or "none"
    return str(value)


def meaning(fields: Mapping[str, FieldInfo]) -> str:
    """One description for fields of the same name; different ones follow their configs' names: "vb: …; gibbs: …"."""
    owners: dict[str, list[str]] = {}
    for owner, field in fields.items():
        owners.setdefault(description(field), []).append(owner)
    if len(owners) == 1:
        return next(iter(owners))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in owners.items())


def by_owner(values: Mapping[str, Any], owners: Collection[str]) -> str:
    """Values by config name, "adam 2048; sgd, vb 64"; "64" when all ``owners`` have one and they agree."""
    groups: dict[str, list[str]] = {}
    for owner, value in values.items():
        groups.setdefault(str(value), []).append(owner)
    if len(groups) == 1 and len(values) == len(owners):
        return next(iter(groups))
    return "; ".join(f"{', '.join(names)} {value}" for value, names in groups.items())


def given(namespace: argparse.Namespace, *configs: type[Config]) -> dict[str, Any]:
    """The parsed values of fields of ``configs``."""
    return {k: v for k, v in vars(namespace).items() if any(k in config.model_fields for config in configs)}


def _add_flag(group: argparse._ArgumentGroup, name: str, field: FieldInfo, text: str) -> None:
    kind = plain_type(field)
    if kind is bool:
        group.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS, help=description(field))
        return
    group.add_argument(
        f"--{name}",
        type=kind,
        choices=choices(field),
        default=argparse.SUPPRESS,
        help=text.replace("%", "%%"),
        metavar="|".join(choices(field) or ()) or _METAVARS.get(kind, "TEXT"),
    )
