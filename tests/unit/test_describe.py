"""Every option of a step is a parameter of the pipeline, and every parameter is described, in one text."""

import re
from pathlib import Path

import pytest

from mf.config import Config
from mf.evaluation.config import GateConfig
from mf.flags import default_text
from mf.parameters import OR_SOLVERS_OWN, SOLVER_PARAMETERS
from mf.ranking import RankingConfig
from mf.ratings.config import IngestConfig, SplitConfig
from mf.solvers import SOLVERS
from mf.supabase.config import ExportConfig
from pipelines import describe
from pipelines.compiled import Definitions, definitions

DOCUMENT = Path(__file__).parents[2] / "docs/parameters.md"
# Config fields that are no parameters of the pipeline, and why.
NO_PARAMETERS = dict.fromkeys(
    ["rows_per_request", "clients"], "how an export sends its rows changes nothing of what is published"
)


@pytest.fixture(scope="module")
def defined() -> Definitions:
    return definitions()


def test_every_parameter_carries_its_description_into_the_compiled_pipeline(defined: Definitions) -> None:
    for name, parameter in defined.items():
        assert parameter.get("description") == describe.description(name), name
        assert len(parameter["description"].split()) > 2, name


@pytest.mark.parametrize("config", [IngestConfig, SplitConfig, GateConfig, ExportConfig])
def test_every_option_of_a_step_is_a_parameter(defined: Definitions, config: type[Config]) -> None:
    assert {*config.model_fields} - {*defined} - {*NO_PARAMETERS} == set()


def test_a_description_is_the_fields_own_unless_the_pipeline_has_another() -> None:
    for name, owner in (("max_reject_fraction", IngestConfig), ("factors", SOLVERS["sgd"].config)):
        assert describe.description(name) == owner.model_fields[name].description
    assert describe.description("test_size") != SplitConfig.model_fields["test_size"].description


@pytest.mark.parametrize("option", OR_SOLVERS_OWN)
def test_an_option_that_is_left_to_the_solver_says_what_each_solver_does(option: str) -> None:
    _, _, own = describe.description(option).partition("; -1: the solver's own default (")
    for solver in SOLVERS.values():
        if field := solver.config.model_fields.get(option):
            assert re.search(rf"\b{solver.name}(, \w+)* {re.escape(default_text(field, field.default))}[;)]", own)
        else:
            assert solver.name not in own


@pytest.mark.parametrize("solver", SOLVERS)
def test_solver_options_lists_each_solvers_own_options_with_their_defaults(solver: str) -> None:
    _, _, listed = describe.description("solver_options").partition(f"{solver}: ")
    shown = dict(one.split() for one in listed.partition(";")[0].split(", "))
    defaults = {name: field.default for name, field in SOLVERS[solver].config.model_fields.items()}
    assert shown.keys() == defaults.keys() - {*SOLVER_PARAMETERS}
    for name, text in shown.items():
        assert text in (("none", "derived") if defaults[name] is None else (str(defaults[name]),))


def test_ranking_options_lists_the_options_of_the_ranking_model_with_their_defaults() -> None:
    _, _, listed = describe.description("ranking_options").partition("as JSON: ")
    shown = dict(one.split() for one in listed.partition(";")[0].split(", "))
    defaults = {name: field.default for name, field in RankingConfig.model_fields.items()}
    assert shown.keys() == defaults.keys() - {"relevance_threshold", "seed"}
    for name, text in shown.items():
        assert text == ("derived" if defaults[name] is None else str(defaults[name]))


def test_a_parameter_that_nothing_describes_is_an_error() -> None:
    def pipeline(colour: str) -> None: ...

    with pytest.raises(KeyError, match="colour"):
        describe.described(pipeline)


def sections() -> dict[str, list[list[str]]]:
    """The rows of the document's tables as cells, by heading."""
    tables: dict[str, list[list[str]]] = {}
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("#"):
            rows = tables.setdefault(line.lstrip("# "), [])
        elif line.startswith("| `"):
            rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return tables


def test_the_document_is_what_the_command_prints_now(defined: Definitions) -> None:
    assert DOCUMENT.read_text() == describe.document(defined), "run python -m pipelines parameters > docs/parameters.md"


def test_the_document_has_every_flag_parameter_and_option_with_its_default(defined: Definitions) -> None:
    tables = sections()
    assert all(len(row) == 3 for rows in tables.values() for row in rows)
    flags = {flag: default for flag, default, _ in tables["Flags of `python -m mf`"]}
    assert flags["--ratings_csv"] == "data/ratings.csv"
    assert (flags["--use_cuda"], flags["--lr"]) == ("off", "adam 0.001; sgd 0.05")
    assert [row[0] for row in tables["Parameters of the pipeline"]] == [*defined]
    for solver in SOLVERS:
        shown = {name: default for name, default, _ in tables[solver]}
        fields = SOLVERS[solver].config.model_fields
        assert shown == {name: default_text(field, field.default) for name, field in fields.items()}
    shown = {name: default for name, default, _ in tables["Options of the ranking model"]}
    fields = RankingConfig.model_fields
    assert shown == {name: default_text(field, field.default) for name, field in fields.items()}
