"""The flat parameters of a pipeline run, and each step's configuration built from them.

A pipeline hands its parameters over one by one, as numbers and texts that cannot be absent, and the keys of a
``Parameters`` are their names. Each builder takes the parameters that it needs and leaves the others alone, so a step
may give its own inputs and the first step may give everything. The solvers and the ranking model are imported where
they are needed: with them comes PyTorch, for which the steps that do not train would wait seconds.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mf.config import Config
from mf.errors import ConfigError
from mf.evaluation.config import EvaluateConfig, GateConfig
from mf.ratings.config import CLICKS_WITHOUT_RANKING, NONE, IngestConfig, SplitConfig
from mf.supabase.config import ExportConfig
from mf.supabase.credentials import address_problem, project_url
from mf.sweep.config import Choices, SweepConfig

if TYPE_CHECKING:
    from mf.ranking import RankingConfig

Parameters = Mapping[str, Any]
RUN = "run"  # key of ``record_run`` in an artifact's metadata

# Solver options that are parameters of their own; all others are entries of the parameter solver_options.
ALWAYS_SET = ("factors", "seed")
SOLVERS_OWN = -1  # the value of the three below that leaves the option to the solver; none of them can be -1
OR_SOLVERS_OWN = ("epochs", "batch_size", "lr")
SOLVER_PARAMETERS = (*ALWAYS_SET, *OR_SOLVERS_OWN)
BEST_SOLVER = ""  # the value of solver that leaves the choice to ``chosen_solver``
# What the log says of a run without ratings. A step cannot know which parameters were set.
UNUSED_WITHOUT_RATINGS = (
    "without ratings there is no star model: solver, solver_options, factors, epochs, batch_size, lr, init_from, "
    "relevance_threshold, max_regression and max_rmse are not used, nor rho, taste and relevance_threshold of "
    "ranking_options; every test row is relevant"
)
WITHOUT_GPU = (
    "and the pipeline was compiled without a GPU: set train_accelerator_count under [parameters] in "
    "pipelines/settings.toml and compile again, for a pipeline that trains on GPUs"
)


def check(parameters: Parameters, *more: Callable[[Parameters], object]) -> None:
    """Validates the parameters of all steps.

    Args:
        parameters: every parameter of the pipeline.
        more: further checks of ``parameters``, each of which raises a ``ConfigError``.

    Raises:
        ConfigError: naming every fault.
    """
    for name in ("solver_options", "ranking_options"):
        if not isinstance(parameters[name], Mapping):
            raise ConfigError(f'{name}: expected JSON such as {{"rank": 16}}, found {parameters[name]!r}')
    checks = (
        ingest_config,
        split_config,
        solver_config,
        ranking_config,
        evaluate_config,
        gate_config,
        export_config,
        _check_supabase_url,
        _check_init_from,
        _check_clicks,
        _check_processes,
        _check_sweep,
        *more,
    )
    faults: list[str] = []
    for one in checks:
        try:
            one(parameters)
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(*dict.fromkeys(faults))  # the seed belongs to two configurations


def ingest_config(parameters: Parameters) -> IngestConfig:
    """Where ratings come from: ``ratings_csv`` if it is set, else ``import_table``."""
    values = _fields(IngestConfig, parameters)
    if values["ratings_csv"]:
        values["import_table"] = ""
    elif not values["import_table"]:
        raise ConfigError("ratings_csv and import_table are both empty: set one of them")
    return IngestConfig.of(**values)


def split_config(parameters: Parameters) -> SplitConfig:
    """How ratings are split, with a test part."""
    config = SplitConfig.of(**_fields(SplitConfig, parameters))
    if not config.test_size:
        raise ConfigError("test_size: found 0, expected more than 0: a model without a test RMSE cannot be published")
    return config


def chosen_solver(parameters: Parameters) -> tuple[str, str]:
    """The solver, and a line for the log if it is neither given nor the best one.

    Without ``solver`` it is the best one, but adam where ``lr``, ``batch_size``, ``init_from`` or an option is set that
    the best one does not have.
    """
    from mf.solvers import SOLVERS
    from mf.solvers.config import DEFAULT_SOLVER

    if given := parameters["solver"]:
        return str(given), ""
    unset = {"lr": SOLVERS_OWN, "batch_size": SOLVERS_OWN, "init_from": ""}
    names = [name for name, value in unset.items() if parameters.get(name, value) != value]
    best, adam = (SOLVERS[solver].config.model_fields.keys() for solver in (DEFAULT_SOLVER, "adam"))
    names += [f"solver_options.{name}" for name in parameters["solver_options"] if name in adam - best]
    if names:
        return "adam", f"solver adam, since {' and '.join(names)} {'is' if len(names) == 1 else 'are'} set"
    return DEFAULT_SOLVER, ""


def solver_config(parameters: Parameters) -> Config:
    """The options of the solver: its own defaults, the parameters that are set, and ``solver_options``.

    Raises:
        ConfigError: an option is not one of the solver's, is not valid or is given both ways.
    """
    from mf.solvers import configure

    options = parameters["solver_options"]
    own = {name: parameters[name] for name in ALWAYS_SET}
    own |= {name: parameters[name] for name in OR_SOLVERS_OWN if parameters[name] != SOLVERS_OWN}
    if twice := [name for name in own if name in options]:
        raise ConfigError(*(f"solver_options.{name}: {name} is set to {own[name]:g} as a parameter" for name in twice))
    try:
        return configure(chosen_solver(parameters)[0], {**own, **options})
    except ConfigError as error:
        of_options = tuple(f"{name}:" for name in options)
        faults = (f"solver_options.{fault}" if fault.startswith(of_options) else fault for fault in error.faults)
        raise ConfigError(*faults) from None


def ranking_config(parameters: Parameters) -> "RankingConfig | None":
    """The options of the ranking model, ``None`` for ranking=none. ``ranking_options`` override the pipeline's ``seed``
    and ``relevance_threshold``.

    Raises:
        ConfigError: naming every fault.
    """
    from mf.ranking import configure

    shared = {"seed": parameters["seed"], "relevance_threshold": parameters["relevance_threshold"] or None}
    return configure(parameters["ranking"], parameters["ranking_options"], shared)


def sweep_config(parameters: Parameters) -> SweepConfig:
    """How many trials there are, for how long, and what they are compared by."""
    return SweepConfig.of(**_fields(SweepConfig, parameters))


def sweep_choices(parameters: Parameters) -> Choices:
    """What a sweep may choose from: all that the parameters leave open.

    Raises:
        ConfigError: as ``solver_config`` and ``ranking_config``.
    """
    # The pipeline always sets the factors and the seed, and they are not searched.
    options = {name: parameters[name] for name in ALWAYS_SET}
    options |= {name: parameters[name] for name in OR_SOLVERS_OWN if parameters[name] != SOLVERS_OWN}
    return Choices.of(
        chosen_solver(parameters)[0],
        solver_config(parameters),
        {**options, **parameters["solver_options"]},
        ranking_config(parameters),
        parameters["ranking_options"],
        any_solver=parameters["solver"] == BEST_SOLVER,
    )


def evaluate_config(parameters: Parameters) -> EvaluateConfig:
    """How a model is evaluated. An empty ``relevance_threshold`` is derived from the ratings."""
    return EvaluateConfig.of(relevance_threshold=parameters["relevance_threshold"] or None)


def gate_config(parameters: Parameters) -> GateConfig:
    """The limits within which a model is published."""
    return GateConfig.of(**_fields(GateConfig, parameters))


def export_config(parameters: Parameters) -> ExportConfig:
    """How a model is published."""
    return ExportConfig.of(**_fields(ExportConfig, parameters))


def record_run(parameters: Parameters, started: datetime) -> dict[str, Any]:
    """One entry of an artifact's metadata, with the parameters and the start of the run, for the report. It is text,
    since a platform may change numbers and nested values there. Values that are no parameters are left out."""
    kept = {
        name: value
        for name, value in parameters.items()
        if isinstance(value, str | int | float) or name.endswith("_options")
    }
    return {RUN: json.dumps({"parameters": kept, "started": started.isoformat()})}


def run_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """``parameters`` (None: left to the solver) and ``started`` of ``record_run``; empty where there is no record."""
    if RUN not in metadata:
        return {}
    run = json.loads(metadata[RUN])
    unset = {name: None for name in OR_SOLVERS_OWN if run["parameters"].get(name) == SOLVERS_OWN}
    return {"parameters": run["parameters"] | unset, "started": datetime.fromisoformat(run["started"])}


def check_gpus(parameters: Parameters, gpus: Mapping[str, Collection[int]]) -> None:
    """Refuses GPUs of the train step that no machine has.

    Args:
        parameters: ``train_accelerator_type`` and ``train_accelerator_count`` are among them.
        gpus: every type of GPU that there is, with the counts in which a machine has it; empty: the pipeline was
            compiled without a GPU.

    Raises:
        ConfigError: naming the types or the counts that there are.
    """
    kind, count = parameters["train_accelerator_type"], parameters["train_accelerator_count"]
    if not gpus:
        if count:
            raise ConfigError(f"train_accelerator_count: found {count:g}, {WITHOUT_GPU}")
        return
    if not count:
        raise ConfigError(
            "train_accelerator_count: found 0 in a run of a pipeline that was compiled with a GPU: set it to 0 under "
            "[parameters] in pipelines/settings.toml and compile again, for a pipeline that trains on CPUs"
        )
    if kind not in gpus:
        part = re.sub(r"\W+", "_", str(kind).strip()).upper()
        near = [name for name in gpus if part and part in name]
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"train_accelerator_type: found {kind!r}, expected one of {', '.join(gpus)}{meant}")
    if count not in gpus[kind]:
        counts = ", ".join(f"{one:g}" for one in gpus[kind])
        raise ConfigError(f"train_accelerator_count: found {count:g}, a machine has {counts} of {kind}")


def check_nodes(parameters: Parameters, train_nodes: int) -> None:
    """Refuses what several machines that share a training cannot do: a sweep, and adam's ``clip_grad``.

    Raises:
        ConfigError: naming every fault.
    """
    if train_nodes > 1:
        sweep_config(parameters).check_processes("train_nodes", train_nodes)
        _check_processes(parameters, train_nodes)


def _check_supabase_url(parameters: Parameters) -> None:
    # Empty on a machine of one's own: the environment has it.
    if parameters["supabase_url"] and (problem := address_problem(project_url(parameters["supabase_url"]))):
        raise ConfigError(f"supabase_url: the address {problem}")


def check_lists(parameters: Parameters) -> None:
    """Checks that a run without ratings has a ranking model.

    Raises:
        ConfigError: it has none.
    """
    if parameters["ranking"] == "none":
        raise ConfigError(CLICKS_WITHOUT_RANKING)


def _check_clicks(parameters: Parameters) -> None:
    if parameters["rating_column"] == NONE:
        check_lists(parameters)


def _check_init_from(parameters: Parameters) -> None:
    from mf.solvers import SOLVERS, check_warm

    solver, _ = chosen_solver(parameters)
    if parameters["init_from"] and solver in SOLVERS:
        check_warm(solver)


def _check_processes(parameters: Parameters, train_nodes: int = 1) -> None:
    from mf.solvers import for_processes

    gpus = int(parameters.get("train_accelerator_count", 0))
    for_processes(solver_config(parameters), train_nodes * (gpus or 1))


def _check_sweep(parameters: Parameters) -> None:
    sweep = sweep_config(parameters)
    gpus = {"train_accelerator_count": parameters.get("train_accelerator_count", 0)}
    sweep.check(val_size=parameters["val_size"], init_from=bool(parameters["init_from"]), processes=gpus)
    if not sweep.wanted:
        return
    try:
        choices = sweep_choices(parameters)
    except ConfigError:  # another check names it
        return
    choices.tried(sweep.trial_objective if parameters["rating_column"] != NONE else "ndcg")


def _fields(config: type[Config], parameters: Parameters) -> dict[str, Any]:
    return {name: parameters[name] for name in config.model_fields if name in parameters}
