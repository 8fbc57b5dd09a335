"""Descriptions of the pipeline's parameters, for the console and for ``docs/parameters.md``."""

import argparse
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from mf.config import Config
from mf.evaluation.config import GateConfig
from mf.flags import by_owner, default_text, meaning, shared_fields
from mf.flags import description as field_description
from mf.parameters import OR_SOLVERS_OWN, SOLVER_PARAMETERS, SOLVERS_OWN
from mf.ranking import RankingConfig
from mf.ranking.config import RANKING_HELP
from mf.ratings.config import IngestConfig, SplitConfig
from mf.solvers import SOLVER_HELP, SOLVERS
from mf.solvers.config import DEFAULT_SOLVER, INIT_FROM
from mf.supabase.config import ExportConfig
from mf.sweep.config import SweepConfig
from pipelines.vertex.machines import gpus_in

DOCUMENT = "docs/parameters.md"
SOLVER_FIELDS = shared_fields({name: solver.config for name, solver in SOLVERS.items()})
RANKING_SHARED = ("relevance_threshold", "seed")  # options of the ranking model that parameters of the pipeline set
CONFIGS: tuple[type[Config], ...] = (IngestConfig, SplitConfig, SweepConfig, GateConfig, ExportConfig)
# Descriptions that the pipeline has in place of the fields' own.
OWN = {
    "ratings_csv": "CSV, JSON lines or Parquet, also compressed: gs://bucket/object, gs://bucket/folder/ or a glob, "
    "s3://bucket/object; empty: import_table is read",
    "import_table": "Supabase table of ratings, read if ratings_csv is empty",
    "supabase_url": "Supabase project to import from and publish to, https://PROJECT.supabase.co",
    "test_size": "share of the ratings, above 0 and below 1, held out to be scored once; leave_last: one per user",
    "solver": f"algorithm; {SOLVER_HELP}; empty: {DEFAULT_SOLVER}, or adam if lr, batch_size, "
    "init_from or an option is set that only adam has",
    "ranking": f"model that orders lists; {RANKING_HELP}",
    "init_from": INIT_FROM,
    "refit": "fit the accepted model once more to all ratings, also the validation and the test part, and publish that",
    "seed": "seed of the split and of the random numbers of solver and ranking model, a whole number from 0",
    "relevance_threshold": "rating from which a movie counts as liked, by the ranking model and in the test part; "
    "empty: three quarters up the range of the training ratings, such as 4 of 1 to 5",
    "train_accelerator_type": f"GPU of the train step: {', '.join(gpus_in(''))}; on Kubeflow nvidia.com/gpu",
    "train_accelerator_count": "number of GPUs of the train step, from 1; each trains a share of the users",
}


def description(parameter: str) -> str:
    """The description of a pipeline parameter: that of its configuration field, unless the pipeline has another.

    Raises:
        KeyError: nothing describes it.
    """
    if parameter == "solver_options":
        return f"other options of the solver, as JSON: {_options_by_solver()}; {DOCUMENT} describes them"
    if parameter == "ranking_options":
        options = _options(RankingConfig, RANKING_SHARED)
        return (
            f"options of the ranking model, as JSON: {options}; {_listed(RANKING_SHARED, '')} too, otherwise the "
            f"pipeline's; {DOCUMENT} describes them"
        )
    if parameter in OWN:
        return OWN[parameter]
    if parameter in SOLVER_FIELDS:
        text = meaning(SOLVER_FIELDS[parameter])
        if parameter in OR_SOLVERS_OWN:
            defaults = {
                solver: default_text(field, field.default) for solver, field in SOLVER_FIELDS[parameter].items()
            }
            text += f"; {SOLVERS_OWN}: the solver's own default ({by_owner(defaults, SOLVERS)})"
        return text
    fields = {name: field for config in reversed(CONFIGS) for name, field in config.model_fields.items()}
    return str(fields[parameter].description)


def described(pipeline: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the descriptions to the docstring, where KFP looks for them."""
    names = inspect.signature(pipeline).parameters
    lines = "\n".join(f"    {name}: {description(name)}" for name in names)
    pipeline.__doc__ = f"{pipeline.__doc__}\n\nArgs:\n{lines}\n"
    return pipeline


def document(definitions: Mapping[str, Mapping[str, Any]]) -> str:
    """``docs/parameters.md``: the flags of ``python -m mf``, the pipeline's parameters, the options of the solvers and
    of the ranking model."""
    # Imported here because compiling needs none of the command line.
    from mf.__main__ import trainer_parser

    solvers = "\n".join(f"### {name}\n\n{_option_table(solver.config)}" for name, solver in SOLVERS.items())
    return f"""\
# Flags and parameters

<!-- Generated: python -m pipelines parameters > {DOCUMENT} -->

## Flags of `python -m mf`

Flags are also accepted with hyphens. A flag that the chosen solver does not use is refused.

{_flag_table(trainer_parser())}
## Parameters of the pipeline

Give them to a run with `PARAMS`, which is split into words as in a shell; the console takes `solver_options` and
`ranking_options` as JSON:

```sh
make run RATINGS=ratings.csv PARAMS='epochs=20 solver_options.l2=0.1'
make submit PARAMS='solver=gibbs solver_options.rank=16 movie_column="Book Title"'
```

All of them are checked before anything is spent: by `make submit` before it sends anything, and by the first step.
Their defaults, and the CPU and memory of each step, can be changed in `pipelines/settings.toml`.

{_parameter_table(definitions)}
## Options of the solvers

Of these, {_listed(SOLVER_PARAMETERS)} are parameters of the pipeline; the others are entries
of its parameter `solver_options`. `python -m mf` has other defaults for adam, see its flags.

{solvers}
## Options of the ranking model

Entries of the pipeline's parameter `ranking_options` and of the flag of that name. {_listed(RANKING_SHARED)}
are those of the run unless they are given here. [ranking.md](ranking.md) says where each enters.

{_option_table(RankingConfig)}"""


def _options_by_solver() -> str:
    """Names and defaults of the options that are entries of ``solver_options``, short enough for the console."""
    return "; ".join(f"{solver.name}: {_options(solver.config, SOLVER_PARAMETERS)}" for solver in SOLVERS.values())


def _options(config: type[Config], leave_out: Collection[str]) -> str:
    """Names and defaults of a config's fields."""
    fields = {name: field for name, field in config.model_fields.items() if name not in leave_out}
    return ", ".join(f"{name} {_short_default(field)}" for name, field in fields.items())


def _short_default(field: FieldInfo) -> str:
    """The default, or "derived" for one that depends on the ratings."""
    text = default_text(field, field.default)
    return "derived" if field.default is None and text != "none" else text


def _flag_table(parser: argparse.ArgumentParser) -> str:
    rows = []
    for action in parser._actions:
        text, _, default = (action.help or "").replace("%%", "%").partition(" (default: ")
        if action.dest != "help":
            default = default.removesuffix(")") or ("off" if action.nargs == 0 else "")
            rows.append((f"`{action.option_strings[0]}`", _code(default), text))
    return _table("flag", rows)


def _parameter_table(definitions: Mapping[str, Mapping[str, Any]]) -> str:
    """The parameters of a compiled pipeline, in the order of its signature."""
    rows = []
    for name, defined in definitions.items():
        default = defined["defaultValue"]
        if defined["parameterType"] == "NUMBER_INTEGER":
            default = int(default)
        elif defined["parameterType"] == "BOOLEAN":
            default = str(default).lower()
        rows.append((f"`{name}`", _code(default), defined["description"]))
    return _table("parameter", rows)


def _option_table(config: type[Config]) -> str:
    fields = config.model_fields.items()
    return _table(
        "option",
        [(f"`{name}`", default_text(field, field.default), field_description(field)) for name, field in fields],
    )


def _table(heading: str, rows: Iterable[tuple[str, str, str]]) -> str:
    lines = [f"| {heading} | default | meaning |", "|---|---|---|"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _code(text: Any) -> str:
    return f"`{text}`" if text != "" else ""


def _listed(names: Iterable[str], quote: str = "`") -> str:
    *first, last = [f"{quote}{name}{quote}" for name in names]
    return f"{', '.join(first)} and {last}"
