import argparse
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, SecretStr, ValidationError, model_validator

from mf.config import Config
from mf.errors import ConfigError
from mf.flags import add_flags, choices, given, plain_type


class Example(Config):
    size: int = Field(4, ge=1, description="how large, in 100% of cases")
    rate: float | None = Field(None, gt=0, description="how fast")
    most: int | None = Field(None, description="how many; default: a tenth of the rows")
    kind: Literal["plain", "fancy"] = Field("plain", description="which one")
    fast: bool = Field(False, description="hurry")
    out: Path = Field(Path("out"), description="where to")
    key: SecretStr | None = Field(None, description="the key")
    note: str = Field("", description="anything")

    @model_validator(mode="after")
    def _not_thirteen(self) -> "Example":
        if self.size == 13:
            raise ValueError("size 13 brings bad luck")
        return self


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("example")
    add_flags(parser, Example, "options", leave_out=["note"])
    return parser


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": 0}, "size: Input should be greater than or equal to 1 (given: 0)"),
        ({"kind": "a\nb"}, r"kind: Input should be 'plain' or 'fancy' (given: 'a\nb')"),
        ({"size": 2.5}, "size: Input should be a valid integer, got a number with a fractional part (given: 2.5)"),
        ({"rate": float("nan")}, "rate: Input should be a finite number (given: nan)"),
        ({"rate": float("inf")}, "rate: Input should be a finite number (given: inf)"),
        ({"kind": "odd"}, "kind: Input should be 'plain' or 'fancy' (given: 'odd')"),
        ({"size": 13}, "size 13 brings bad luck"),
        ({"supabase_kei": "sb_secret_abc"}, "supabase_kei: Extra inputs are not permitted"),
    ],
)
def test_an_invalid_value_is_a_one_line_error(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        Example.of(**values)
    assert str(error.value) == said


@pytest.mark.parametrize("name", ["size", "most"])
def test_a_whole_float_is_an_integer(name: str) -> None:
    """KFP passes every number as a float."""

    class Sized(Config):
        size: int = 4
        most: int | None = None

    value = Sized.of(**{name: 16.0}).model_dump()[name]
    assert (value, type(value)) == (16, int)
    with pytest.raises(ConfigError, match=rf"^{name}: .*fractional part \(given: 16.5\)$"):
        Sized.of(**{name: 16.5})


def test_a_missing_value_is_named() -> None:
    class Needy(Config):
        size: int

    with pytest.raises(ConfigError, match=r"^size: Field required$"):
        Needy.of()


def test_a_config_is_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Example().size = 5  # type: ignore[misc]


def test_no_text_of_a_config_shows_a_key() -> None:
    config = Example.of(key="sb_secret_abc")
    for text in (repr(config), str(config), config.model_dump_json(), str(config.model_dump())):
        assert "sb_secret_abc" not in text


def test_flags_are_made_from_the_fields_and_only_what_is_given_comes_back() -> None:
    assert given(parser().parse_args([]), Example) == {}
    words = ["--size", "3", "--rate", "0.5", "--kind", "fancy", "--fast", "--out", "there", "--key", "k"]
    assert given(parser().parse_args(words), Example) == {
        "size": 3, "rate": 0.5, "kind": "fancy", "fast": True, "out": Path("there"), "key": SecretStr("k")
    }  # fmt: skip
    assert given(argparse.Namespace(size=1, solver="adam"), Example) == {"size": 1}


def test_help_says_what_a_flag_means_its_values_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--size N how large, in 100% of cases (default: 4)" in text
    assert "--rate X how fast (default: none)" in text
    assert "--most N how many (default: a tenth of the rows)" in text
    assert "--kind plain|fancy which one (default: plain)" in text
    assert "--out PATH where to (default: out)" in text
    assert "--note" not in text


def test_a_fields_plain_type_and_choices() -> None:
    types = {name: plain_type(field) for name, field in Example.model_fields.items()}
    assert types == {
        "size": int, "rate": float, "most": int, "kind": str, "fast": bool, "out": Path, "key": SecretStr, "note": str
    }  # fmt: skip
    allowed = {name: choices(field) for name, field in Example.model_fields.items()}
    assert allowed.pop("kind") == ("plain", "fancy")
    assert set(allowed.values()) == {None}
