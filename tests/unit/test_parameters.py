import pytest

from mf.errors import ConfigError
from pipelines.parameters import parse

DEFINITIONS = {
    "epochs": {"parameterType": "NUMBER_INTEGER"},
    "lr": {"parameterType": "NUMBER_DOUBLE"},
    "columns": {"parameterType": "STRING"},
}


def test_values_get_the_types_that_the_pipeline_asks_for() -> None:
    values = parse(["epochs=20", "lr=1", "columns=5"], DEFINITIONS)
    assert values == {"epochs": 20, "lr": 1.0, "columns": "5"}
    assert [type(value) for value in values.values()] == [int, float, str]


def test_a_value_may_hold_an_equals_sign_and_may_be_empty() -> None:
    assert parse(["columns=a=b="], DEFINITIONS) == {"columns": "a=b="}
    assert parse(["columns="], DEFINITIONS) == {"columns": ""}


def test_nothing_given_is_nothing() -> None:
    assert parse([], DEFINITIONS) == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("epochs", "parameter 'epochs': expected name=value"),
        ("epoch=20", "the pipeline has no parameter 'epoch'; it has columns, epochs, lr"),
        ("epochs=1.5", "parameter epochs: expected a whole number, found '1.5'"),
        ("epochs=", "parameter epochs: expected a whole number, found ''"),
        ("lr=fast", "parameter lr: expected a finite number, found 'fast'"),
        ("lr=nan", "parameter lr: expected a finite number, found 'nan'"),
        ("lr=-inf", "parameter lr: expected a finite number, found '-inf'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(given: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(["lr=0.1", given], DEFINITIONS)
    assert str(error.value) == said
