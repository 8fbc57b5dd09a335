"""The pipeline's parameters as a person meets them: in the console and in the README, from one text."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mf.config import Config
from mf.evaluation.config import GateConfig
from mf.flags import by_owner, default_text, meaning, plain_type, shared_fields
from mf.ratings.config import IngestConfig, SplitConfig
from mf.solvers import SOLVER_HELP, SOLVERS
from mf.supabase.config import ExportConfig
from mf.warm_start import INIT_FROM

STEPS = ("ingest", "split", "train", "evaluate", "export")
OWN = {
    "ratings_csv": "File of ratings, plain or gzip: gs://bucket/object; when empty, import_table is read",
    "import_table": "Supabase table of ratings, read when ratings_csv is empty",
    "supabase_url": "Supabase project to import from and publish to, https://PROJECT.supabase.co",
    "test_size": "Share of all rows, above 0, held out to score once; leave_last: one of each user, whatever it is",
    "solver": f"How the model is fitted: {SOLVER_HELP}",
    "init_from": INIT_FROM,
    "seed": "Seed of the split and of all that the solver draws at random",
    "relevance_threshold": "Rating from which a movie of the test part counts as liked; -1: three quarters up the "
    "range of the training ratings, as 4 is of 1 to 5",
    "train_accelerator_type": "GPU of the train step: NVIDIA_TESLA_T4, NVIDIA_L4, NVIDIA_TESLA_A100 and others",
    "train_accelerator_count": "GPUs of the train step, of which a training uses one",
    **{f"{step}_cpu": f"CPU cores of the {step} step" for step in STEPS},
    **{f"{step}_memory": f"Memory of the {step} step, for example 16G" for step in STEPS},
}
CONFIGS: tuple[type[Config], ...] = (IngestConfig, SplitConfig, GateConfig, ExportConfig)
SOLVER_FIELDS = shared_fields({name: solver.config for name, solver in SOLVERS.items()})
# Parameters with a value that holds for all solvers, and those whose default is each solver's own.
FOR_ALL_SOLVERS = ("factors", "seed")
SOLVER_OPTIONS = tuple(name for name in SOLVER_FIELDS if name not in FOR_ALL_SOLVERS)


def description(parameter: str) -> str:
    """What a pipeline parameter means: its config field's own words, but where the pipeline has others; of a solver's
    option also which solvers use it, and the default of each.

    Raises:
        KeyError: nothing describes it.
    """
    if parameter in OWN:
        text = OWN[parameter]
    elif parameter in SOLVER_FIELDS:
        text = meaning(SOLVER_FIELDS[parameter])
        if parameter in SOLVER_OPTIONS:
            text += f"; {_solvers_own(parameter)}"
    else:
        fields = {name: field for config in reversed(CONFIGS) for name, field in config.model_fields.items()}
        text = str(fields[parameter].description)
    return text if text.startswith(tuple(SOLVERS)) else text[0].upper() + text[1:]


def _solvers_own(option: str) -> str:
    fields = SOLVER_FIELDS[option]
    defaults = {solver: default_text(field, field.default) for solver, field in fields.items()}
    sentinel = "empty" if plain_type(next(iter(fields.values()))) is str else "-1"
    return f"{sentinel}: the solver's own ({by_owner(defaults, SOLVERS)})"


def described(pipeline: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the descriptions to the docstring, where KFP looks for them."""
    names = inspect.signature(pipeline).parameters
    lines = "\n".join(f"    {name}: {description(name)}." for name in names)
    pipeline.__doc__ = f"{pipeline.__doc__}\n\nArgs:\n{lines}\n"
    return pipeline


def table(definitions: Mapping[str, Mapping[str, Any]]) -> str:
    """The parameters of a compiled pipeline as a table in Markdown, in the order of the pipeline's signature."""
    rows = ["| parameter | default | meaning |", "|---|---|---|"]
    for name, defined in definitions.items():
        default = defined["defaultValue"]
        if defined["parameterType"] == "NUMBER_INTEGER":
            default = int(default)
        elif defined["parameterType"] == "BOOLEAN":
            default = str(default).lower()
        rows.append(f"| `{name}` | {f'`{default}`' if default != '' else ''} | {defined['description']} |")
    return "\n".join(rows) + "\n"
