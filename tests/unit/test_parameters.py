import pytest

from mf.errors import ConfigError
from mf.solvers import SOLVERS, configure
from pipelines.compiled import definitions
from pipelines.describe import SOLVER_OPTIONS
from pipelines.parameters import complete, parse, with_defaults

DEFINITIONS = definitions()


def test_values_get_the_types_that_the_pipeline_asks_for() -> None:
    values = parse(["epochs=20", "lr=1", "columns=5", "hnsw_index=true"], DEFINITIONS)
    assert values == {"epochs": 20, "lr": 1.0, "columns": "5", "hnsw_index": True}
    assert [type(value) for value in values.values()] == [int, float, str, bool]


def test_a_value_may_hold_an_equals_sign_and_may_be_empty() -> None:
    assert parse(["columns=a=b="], DEFINITIONS) == {"columns": "a=b="}
    assert parse(["columns="], DEFINITIONS) == {"columns": ""}


def test_nothing_given_is_nothing() -> None:
    assert parse([], DEFINITIONS) == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("epochs", "parameter 'epochs': expected name=value"),
        ("epoch=20", f"the pipeline has no parameter 'epoch'; it has {', '.join(sorted(DEFINITIONS))}"),
        ("epochs=1.5", "parameter epochs: expected a whole number, found '1.5'"),
        ("epochs=", "parameter epochs: expected a whole number, found ''"),
        ("lr=fast", "parameter lr: expected a finite number, found 'fast'"),
        ("lr=nan", "parameter lr: expected a finite number, found 'nan'"),
        ("lr=-inf", "parameter lr: expected a finite number, found '-inf'"),
        ("epochs=-3", "epochs: Input should be greater than or equal to 1 (given: -3)"),
        ("hnsw_index=yes", "parameter hnsw_index: expected true or false, found 'yes'"),
        ("split=sideways", "split: Input should be 'random', 'time' or 'leave_last' (given: 'sideways')"),
        ("val_size=0.95", "val_size 0.95 and test_size 0.1 leave nothing to train on; their sum must be below 1"),
        ("clip_grad=0", "clip_grad: Input should be greater than 0 (given: 0.0)"),
        ("factors=-1", "factors: Input should be greater than or equal to 1 (given: -1)"),
        ("solver=magic", "solver: found 'magic', expected one of adam, sgd, vb, gibbs"),
        (
            "rank=8",
            "rank: not an option of solver adam; its options are " + ", ".join(SOLVERS["adam"].config.model_fields),
        ),
        (
            "solver=vb",
            "lr: not an option of solver vb; its options are " + ", ".join(SOLVERS["vb"].config.model_fields),
        ),
        ("movie_export_table=user_embeddings", "movie_export_table and user_export_table are both 'user_embeddings'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(given: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(["lr=0.1", given], DEFINITIONS)
    assert str(error.value) == said


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_can_be_chosen_and_takes_its_own_options(solver: str) -> None:
    assert parse([f"solver={solver}", "epochs=30"], DEFINITIONS) == {"solver": solver, "epochs": 30}


def test_the_sentinel_says_nothing_even_of_an_option_that_the_solver_does_not_use() -> None:
    given = ["solver=vb", "clip_grad=-1", "schedule=", "rank=8"]
    assert parse(given, DEFINITIONS) == {"solver": "vb", "clip_grad": -1.0, "schedule": "", "rank": 8}


@pytest.mark.parametrize("option", SOLVER_OPTIONS)
def test_the_sentinel_is_the_default_and_no_value_that_an_option_can_have(option: str) -> None:
    sentinel = DEFINITIONS[option]["defaultValue"]
    assert sentinel in ("", -1)
    for solver in SOLVERS:
        with pytest.raises(ConfigError, match=f"^{option}: "):
            configure(solver, {option: sentinel})


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("columns=sb_secret_hunter2", "parameter columns"),
        ("epochs=sb_secret_hunter2", "parameter epochs"),
        ("supabase_key=sb_secret_hunter2", "parameter supabase_key"),
        ("supabase_url=https://u:hunter2@h.co", "parameter supabase_url"),
        ("sb_secret_hunter2", "a parameter"),
    ],
)
def test_what_looks_like_a_secret_is_refused_before_anything_shows_it(given: str, name: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse([given], DEFINITIONS)
    assert str(error.value).startswith(f"{name} looks like a")
    assert "hunter2" not in str(error.value)


def test_a_parameter_without_a_default_must_be_given() -> None:
    needed = {**DEFINITIONS, "place": {"parameterType": "STRING"}}
    with pytest.raises(ConfigError, match=r"^parameter place has no default: give place=value$"):
        parse([], needed)
    assert parse(["place="], needed) == {"place": ""}


def test_what_is_not_given_is_what_the_pipeline_has() -> None:
    everything = complete({"epochs": 3}, DEFINITIONS)
    assert [*everything] == [*DEFINITIONS]
    assert (everything["epochs"], everything["train_cpu"]) == (3, "8")


def test_defaults_can_be_others_than_the_signature_shows() -> None:
    @with_defaults({"b": 20})
    def pipeline(a: int = 1, b: int = 2, c: str = "") -> tuple[int, int, str]:
        return a, b, c

    assert pipeline() == (1, 20, "")
    assert pipeline(c="x", a=3) == (3, 20, "x")
