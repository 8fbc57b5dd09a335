import json
from typing import Any

import pytest

from mf.errors import ConfigError
from mf.flags import Parser
from mf.parameters import (
    OR_SOLVERS_OWN,
    SOLVERS_OWN,
    check,
    check_gpus,
    check_nodes,
    chosen_solver,
    evaluate_config,
    ranking_config,
    solver_config,
)
from mf.ranking import RankingConfig
from mf.solvers import SOLVERS, configure
from pipelines.__main__ import _parameter_flag
from pipelines.compiled import compiled, definitions, target_check
from pipelines.parameters import complete, parse, with_defaults
from pipelines.settings import Settings

DEFINITIONS = definitions()


def test_values_get_the_types_that_the_pipeline_asks_for() -> None:
    values = parse(["epochs=20", "lr=1", "columns=5", "hnsw_index=true"], DEFINITIONS)
    assert values == {"epochs": 20, "lr": 1.0, "columns": "5", "hnsw_index": True}
    assert [type(value) for value in values.values()] == [int, float, str, bool]


def test_entries_of_a_table_are_given_one_by_one_or_as_json() -> None:
    alike = (
        ["solver_options.patience=1", "solver_options.schedule=constant", "solver_options.clip_grad=null"],
        ['solver_options={"patience": 1, "schedule": "constant", "clip_grad": null}'],
        ['solver_options={"patience": 1}', "solver_options.schedule=constant", "solver_options.clip_grad=null"],
    )
    for given in alike:
        options = {"patience": 1, "schedule": "constant", "clip_grad": None}
        assert parse(given, DEFINITIONS) == {"solver_options": options}


def test_an_entry_is_added_to_the_default_of_its_table() -> None:
    table = {**DEFINITIONS["solver_options"], "defaultValue": {"patience": 1, "l2": 0.1}}
    known = {**DEFINITIONS, "solver_options": table}
    assert parse(["solver_options.l2=0.2"], known) == {"solver_options": {"patience": 1, "l2": 0.2}}
    assert parse(["solver_options={}"], known) == {"solver_options": {}}


def test_a_whole_float_is_an_integer_as_kfp_hands_it_over() -> None:
    parameters = complete({"solver": "gibbs", "solver_options": {"rank": 16.0, "burn_in": 5.0}}, DEFINITIONS)
    config = solver_config(parameters).model_dump()
    assert (config["rank"], config["burn_in"], config["epochs"]) == (16, 5, 120)
    assert {type(config[name]) for name in ("rank", "burn_in", "factors", "seed")} == {int}


def test_the_ranking_model_takes_its_own_options_and_the_runs_seed_and_threshold() -> None:
    assert ranking_config(complete({}, DEFINITIONS)) == RankingConfig()
    given = {"seed": 5, "relevance_threshold": "-1", "ranking_options": {"factors": 16.0, "recency": True}}
    config = ranking_config(complete(given, DEFINITIONS))
    assert config == RankingConfig(factors=16, recency=True, seed=5, relevance_threshold=-1)
    assert type(config.factors) is int
    given["ranking_options"] = {"relevance_threshold": 4, "seed": 1}
    assert ranking_config(complete(given, DEFINITIONS)) == RankingConfig(relevance_threshold=4, seed=1)
    assert ranking_config(complete({"ranking": "none"}, DEFINITIONS)) is None


def test_a_value_may_hold_an_equals_sign_and_may_be_empty() -> None:
    assert parse(["columns=a=b="], DEFINITIONS) == {"columns": "a=b="}
    assert parse(["columns="], DEFINITIONS) == {"columns": ""}


def test_nothing_given_is_nothing() -> None:
    assert parse([], DEFINITIONS) == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "epochs",
            "parameter 'epochs': expected name=value; put quotes around a value with a blank: "
            "PARAMS='movie_column=\"Book Title\"'",
        ),
        ("epoch=20", f"the pipeline has no parameter 'epoch'; it has {', '.join(sorted(DEFINITIONS))}"),
        ("epochs=1.5", "parameter epochs: expected a whole number, found '1.5'"),
        ("epochs=", "parameter epochs: expected a whole number, found ''"),
        ("lr=fast", "parameter lr: expected a finite number, found 'fast'"),
        ("lr=nan", "parameter lr: expected a finite number, found 'nan'"),
        ("lr=-inf", "parameter lr: expected a finite number, found '-inf'"),
        ("epochs=-3", "epochs: Input should be greater than or equal to 1 (given: -3)"),
        ("hnsw_index=yes", "parameter hnsw_index: expected true or false, found 'yes'"),
        ("split=sideways", "split: Input should be 'random', 'hash', 'time' or 'leave_last' (given: 'sideways')"),
        ("val_size=0.95", "val_size 0.95 and test_size 0.1 leave nothing to train on; their sum must be below 1"),
        ("solver_options.clip_grad=0", "solver_options.clip_grad: Input should be greater than 0 (given: 0)"),
        ("solver_options.lr=0.2", "solver_options.lr: lr is set to 0.1 as a parameter"),
        ("solver_options.seed=1", "solver_options.seed: seed is set to 0 as a parameter"),
        (
            "solver_options=[1]",
            "parameter solver_options: expected JSON such as {\"rank\": 16} (for one entry: name.rank=16), found '[1]'",
        ),
        (
            "solver_options={",
            "parameter solver_options: expected JSON such as {\"rank\": 16} (for one entry: name.rank=16), found '{'",
        ),
        ("epochs.x=1", f"the pipeline has no parameter 'epochs.x'; it has {', '.join(sorted(DEFINITIONS))}"),
        (
            "relevance_threshold=high",
            "relevance_threshold: Input should be a valid number, unable to parse string as a number (given: 'high')",
        ),
        ("test_size=0", "test_size: found 0, expected more than 0: a model without a test RMSE cannot be published"),
        ("import_table=", "ratings_csv and import_table are both empty: set one of them"),
        ("supabase_url=h.co", "supabase_url: the address is not of the form https://PROJECT.supabase.co"),
        ("min_users=-1", "min_users: Input should be greater than or equal to 0 (given: -1)"),
        ("factors=-1", "factors: Input should be greater than or equal to 1 (given: -1)"),
        ("solver=magic", "solver: found 'magic', expected one of adam, sgd, vb, gibbs"),
        (
            "solver_options.rank=8",
            "solver_options.rank: not an option of solver adam; its options are "
            + ", ".join(SOLVERS["adam"].config.model_fields),
        ),
        (
            "solver=vb",
            "lr: not an option of solver vb; its options are " + ", ".join(SOLVERS["vb"].config.model_fields),
        ),
        ("ranking=best", "ranking: found 'best', expected one of ease, none"),
        (
            "ranking_options.rank=8",
            "ranking_options.rank: not an option of the ranking model; its options are "
            + ", ".join(RankingConfig.model_fields),
        ),
        ("ranking_options.rho=-1", "ranking_options.rho: Input should be greater than or equal to 0 (given: -1)"),
        (
            "max_ndcg_regression=-0.1",
            "max_ndcg_regression: Input should be greater than or equal to 0 (given: -0.1)",
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


@pytest.mark.parametrize(
    ("given", "solver", "line"),
    [
        ([], "vb", ""),
        (["epochs=3", "factors=8", "solver_options.rank=4"], "vb", ""),
        (["lr=0.01", "batch_size=512"], "adam", "solver adam, since lr and batch_size are set"),
        (["init_from=published"], "adam", "solver adam, since init_from is set"),
        (["solver_options.dropout=0.1"], "adam", "solver adam, since solver_options.dropout is set"),
        (["lr=0.01", "solver=sgd"], "sgd", ""),
    ],
)
def test_without_a_solver_it_is_the_best_one_that_has_the_options(given: list[str], solver: str, line: str) -> None:
    everything = complete(parse(given, DEFINITIONS), DEFINITIONS)
    assert chosen_solver(everything) == (solver, line)
    assert isinstance(solver_config(everything), SOLVERS[solver].config)


def test_an_option_that_the_given_solver_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^lr: not an option of solver vb; "):
        parse(["solver=vb", "lr=0.01"], DEFINITIONS)


def test_every_fault_is_named_in_one_error() -> None:
    given = ["epochs=many", "epoch=3", "val_size=1", "split=sideways", "solver=vb", "init_from=published"]
    given += ["solver_options.l2=1", "solver_options.dropout=1", "max_rmse=-1", "movie_export_table=mf_x"]
    given += ["ranking_options.factors=0", "ranking_options.rho=many", "relevance_threshold=high"]
    with pytest.raises(ConfigError) as error:
        parse(given, DEFINITIONS, lambda everything: check_gpus(everything, {"NVIDIA_TESLA_T4": [1]}))
    named = [fault.partition(":")[0].partition(";")[0] for fault in error.value.faults]
    assert named == [
        "parameter epochs",
        "the pipeline has no parameter 'epoch'",
        "split",
        "val_size",
        "solver_options.l2",
        "solver_options.dropout",
        "ranking_options.factors",
        "ranking_options.rho",
        "relevance_threshold",
        "max_rmse",
        "movie_export_table",
        "init_from",
        "train_accelerator_type",
    ]
    assert str(error.value) == f"13 values are not valid: {'; '.join(error.value.faults)}"


def test_what_several_gpus_cannot_do_is_refused_before_anything_is_spent() -> None:
    given = {"solver": "adam", "solver_options": {"clip_grad": 1.0}, "ratings_csv": "gs://bucket/r.csv"}
    check(complete(given, DEFINITIONS))
    with pytest.raises(ConfigError, match="clip_grad: found 1 with 2 processes, expected none"):
        check(complete({**given, "train_accelerator_count": 2}, DEFINITIONS))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"trials": 20}, "train_nodes: found 2 with trials, expected 1: a trial is trained by one process"),
        (
            {"solver": "adam", "solver_options": {"clip_grad": 1.0}},
            "clip_grad: found 1 with 2 processes, expected none",
        ),
    ],
)
def test_what_several_machines_cannot_do_is_refused_before_anything_is_spent(given: dict[str, Any], said: str) -> None:
    parameters = complete({**given, "ratings_csv": "gs://bucket/r.csv"}, DEFINITIONS)
    check(parameters, lambda everything: check_nodes(everything, 1))
    with pytest.raises(ConfigError, match=said):
        check(parameters, lambda everything: check_nodes(everything, 2))
    settings = Settings.of(project="my-project", region="europe-west4", train_nodes=2)
    words = [f"{name}={value if isinstance(value, int | str) else json.dumps(value)}" for name, value in given.items()]
    with pytest.raises(ConfigError, match=said):
        parse(words, DEFINITIONS, target_check(settings))
    with pytest.raises(ConfigError, match=f"the settings: .*{said}"):
        compiled(settings.model_copy(update={"parameters": given}))


def test_options_of_a_ranking_model_that_is_not_trained_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^ranking_options: found rho, expected none of them with ranking=none$"):
        parse(["ranking=none", "ranking_options.rho=1"], DEFINITIONS)


@pytest.mark.parametrize("option", OR_SOLVERS_OWN)
def test_the_sentinel_leaves_an_option_to_the_solver_and_is_no_value_of_it(option: str) -> None:
    assert DEFINITIONS[option]["defaultValue"] == SOLVERS_OWN
    for solver in SOLVERS:
        own = solver_config(complete({"solver": solver}, DEFINITIONS)).model_dump()
        if option in own:
            assert own[option] == configure(solver, {}).model_dump()[option]
        with pytest.raises(ConfigError, match=f"^{option}: "):
            configure(solver, {option: SOLVERS_OWN})


def test_a_threshold_of_minus_1_is_a_threshold_and_an_empty_one_is_derived() -> None:
    assert evaluate_config(parse(["relevance_threshold=-1"], DEFINITIONS)).relevance_threshold == -1
    assert evaluate_config(complete({}, DEFINITIONS)).relevance_threshold is None


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
    assert (everything["epochs"], everything["split"]) == (3, "random")


def test_defaults_can_be_others_than_the_signature_shows() -> None:
    @with_defaults({"b": 20})
    def pipeline(a: int = 1, b: int = 2, c: str = "") -> tuple[int, int, str]:
        return a, b, c

    assert pipeline() == (1, 20, "")
    assert pipeline(c="x", a=3) == (3, 20, "x")


def test_params_are_split_as_a_shell_splits_words() -> None:
    parser = Parser("example", None)
    _parameter_flag(parser)
    text = """movie_column="Book Title" columns='a,$x;b' user_column=it\\'s solver_options='{"patience": 1}'"""
    given = parser.parse_args(["--param", "epochs=3", f"--params={text}"]).param
    assert parse(given, DEFINITIONS) == {
        "epochs": 3,
        "movie_column": "Book Title",
        "columns": "a,$x;b",
        "user_column": "it's",
        "solver_options": {"patience": 1},
    }
    with pytest.raises(ConfigError, match=r"^--params: no closing quotation, expected words as in a shell$"):
        parser.parse_args(["--params=columns='a"])


def test_the_first_step_refuses_what_the_pipeline_is_not_compiled_for() -> None:
    none, one = ({"train_accelerator_type": "NVIDIA_L4", "train_accelerator_count": count} for count in (0, 1))
    check_gpus(none, {})
    check_gpus(one, {"NVIDIA_L4": [1]})
    with pytest.raises(ConfigError, match=r"^train_accelerator_count: found 1, and the pipeline was compiled"):
        check_gpus(one, {})
    with pytest.raises(ConfigError, match=r"^train_accelerator_count: found 0 in a run of a pipeline that was"):
        check_gpus(none, {"NVIDIA_L4": [1]})


@pytest.mark.parametrize("name", ["solver_options", "ranking_options"])
@pytest.mark.parametrize("value", [[], "rank=16", None, 3.0])
def test_options_that_are_no_table_are_refused_by_the_first_step_too(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}: expected JSON such as {{.rank.: 16}}, found "):
        check({**complete({}, DEFINITIONS), name: value})
