"""Every choice of a step is a parameter of the pipeline, and every parameter says what it means, in one text."""

import re
from pathlib import Path

import pytest

from mf.config import Config
from mf.flags import default_text
from mf.ratings.config import IngestConfig, SplitConfig
from mf.solvers import SOLVERS
from mf.supabase.config import ExportConfig
from pipelines import describe
from pipelines.compiled import Definitions, definitions

README = Path(__file__).parents[2] / "README.md"
# Config fields that are no parameters of the pipeline, and why.
CONFIGS = [IngestConfig, SplitConfig, *(solver.config for solver in SOLVERS.values()), ExportConfig]
NO_PARAMETERS = dict.fromkeys(
    ["rows_per_request", "clients"], "how an export sends its rows changes nothing of what is published"
)


@pytest.fixture(scope="module")
def defined() -> Definitions:
    return definitions()


def test_every_parameter_carries_its_description_into_the_compiled_pipeline(defined: Definitions) -> None:
    for name, parameter in defined.items():
        assert parameter.get("description") == f"{describe.description(name)}.", name
        assert len(parameter["description"].split()) > 2, name


@pytest.mark.parametrize("config", CONFIGS)
def test_every_option_of_a_step_is_a_parameter(defined: Definitions, config: type[Config]) -> None:
    assert {*config.model_fields} - {*defined} - {*NO_PARAMETERS} == set()


def test_a_description_is_the_options_own_unless_the_pipeline_has_another() -> None:
    assert describe.description("max_reject_fraction") == (
        "Largest share of bad rows, 0 to 1; with more the import fails"
    )
    assert describe.description("factors") == "Length of the user and movie vectors"
    assert describe.description("solver").startswith("How the model is fitted: adam: ")


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solvers_option_tells_what_it_is_when_it_is_left_alone(solver: str) -> None:
    for option in describe.SOLVER_OPTIONS:
        fields = SOLVERS[solver].config.model_fields
        _, _, own = describe.description(option).partition("the solver's own (")
        if option in fields:
            default = re.escape(default_text(fields[option], fields[option].default))
            assert re.search(rf"\b{solver}(, \w+)* {default}[;)]", own), option
        else:
            assert solver not in own


def test_a_solvers_option_names_the_value_that_leaves_it_to_the_solver() -> None:
    assert "; -1: the solver's own (adam N/2000 rounded to a power of two" in describe.description("batch_size")
    assert "; empty: the solver's own (adam one_cycle" in describe.description("schedule")


def test_what_solvers_mean_apart_is_told_apart() -> None:
    assert describe.description("lr").startswith(
        "adam: learning rate; the peak of a one_cycle schedule; sgd: learning rate,"
    )


def test_a_parameter_that_nothing_describes_is_an_error() -> None:
    def pipeline(colour: str) -> None: ...

    with pytest.raises(KeyError, match="colour"):
        describe.described(pipeline)


def test_the_table_shows_each_parameter_with_its_default() -> None:
    one = {"description": "How many.", "defaultValue": 10.0, "parameterType": "NUMBER_INTEGER"}
    two = {"description": "Where.", "defaultValue": "", "parameterType": "STRING"}
    assert describe.table({"epochs": one, "place": two}) == (
        "| parameter | default | meaning |\n|---|---|---|\n| `epochs` | `10` | How many. |\n| `place` |  | Where. |\n"
    )


def test_no_cell_of_the_table_breaks_its_row(defined: Definitions) -> None:
    lines = describe.table(defined).splitlines()
    assert len(lines) == len(defined) + 2
    assert {line.count("|") for line in lines} == {4}


def test_the_readme_shows_the_table_as_the_code_has_it(defined: Definitions) -> None:
    _, _, after = README.read_text().partition("<!-- parameters -->\n")
    shown, end, _ = after.partition("<!-- /parameters -->")
    assert end, "README.md lacks the lines <!-- parameters --> and <!-- /parameters -->"
    assert shown.strip() == describe.table(defined).strip(), "paste what `python -m pipelines parameters` prints"
