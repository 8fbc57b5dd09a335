"""Sweeps: what a trial's figure is, the first trial, failures, time, resuming, what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from google.cloud.aiplatform_v1.types import HyperparameterTuningJob
from google.protobuf import json_format

import mf
from mf.__main__ import main
from mf.config import Config
from mf.errors import ConfigError, DataError, MfError, TrainingError
from mf.evaluation.config import EvaluateConfig
from mf.evaluation.evaluate import evaluate
from mf.evaluation.judge import judge
from mf.parameters import check
from mf.ranking import RankingConfig
from mf.ratings.schema import MOVIE, RATING, USER
from mf.solvers import SOLVERS, configure
from mf.solvers.config import ORIGINAL
from mf.sweep import space
from mf.sweep.config import LISTS, SEARCHED, Choices, SweepConfig
from mf.sweep.objective import Objective
from mf.sweep.search import Found, search
from mf.train import train
from pipelines.compiled import definitions
from pipelines.parameters import complete

CPU = torch.device("cpu")
SMALL = {"factors": 8, "seed": 0}
QUICK: dict[str, dict[str, Any]] = {
    "adam": {"epochs": 3}, "sgd": {"epochs": 3}, "vb": {"epochs": 3}, "gibbs": {"epochs": 6, "burn_in": 2},
}  # fmt: skip


def planted(ratings: int = 6000, seed: int = 0) -> pa.Table:
    """Ratings of 150 users and 80 movies: a plane of rank 2 and noise, in half stars."""
    rng = np.random.default_rng(seed)
    pairs = rng.choice(150 * 80, ratings, replace=False)
    users, movies = pairs // 80, pairs % 80
    p, q = rng.normal(size=(150, 2)), rng.normal(size=(80, 2))
    stars = 3 + 0.3 * rng.normal(size=80)[movies] + 0.6 * (p[users] * q[movies]).sum(1) + rng.normal(0, 0.3, ratings)
    return pa.table({USER: users, MOVIE: movies, RATING: (stars * 2).round().clip(1, 10).astype(np.float32) / 2})


RATINGS = planted()
TRAIN, VALIDATION = RATINGS.slice(0, 5000), RATINGS.slice(5000)


def choices(solver: str = "sgd", *, ranking: bool = True, any_solver: bool = False, **options: Any) -> Choices:
    given = {**SMALL, **QUICK[solver], **options}
    lists = RankingConfig(factors=8) if ranking else None
    return Choices.of(solver, configure(solver, given), given, lists, {"factors": 8}, any_solver=any_solver)


def swept(what: Choices, trials: int = 4, seed: int = 0, **options: Any) -> tuple[Found, list[str]]:
    """What a sweep found and the lines that it printed."""
    own = {name: options.pop(name) for name in SweepConfig.model_fields if name in options}
    said: list[str] = []
    config = SweepConfig.of(trials=trials, **own)
    return search(TRAIN, VALIDATION, config, what, device=CPU, seed=seed, say=said.append, **options), said


def tried(found: Found) -> list[tuple[Any, ...]]:
    return [(trial.number, trial.solver, trial.options, trial.value) for trial in found.trials]


def written(folder: Path, table: pa.Table = RATINGS) -> Path:
    rows = zip(*(table[name].to_pylist() for name in (USER, MOVIE, RATING)), strict=True)
    file = folder / "ratings.csv"
    file.write_text("userId,movieId,rating\n" + "".join(f"{u},{m},{r:g}\n" for u, m, r in rows))
    return file


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_figure_of_a_trial_is_that_of_a_training_with_its_options(solver: str) -> None:
    config = configure(solver, {**SMALL, **QUICK[solver]})
    alone = train(TRAIN, VALIDATION, config, device=CPU)
    expected = evaluate(TRAIN, VALIDATION, alone, EvaluateConfig(bootstrap=0)).ranking.model
    assert expected
    for by_lists, figure in ((False, alone.metrics["validation_rmse"]), (True, expected["ndcg"])):
        objective = Objective(TRAIN, VALIDATION, CPU, by_lists=by_lists, relevance_threshold=None, tick=int)
        assert objective.of(config) == pytest.approx(figure, abs=0 if not by_lists else 1e-12)


def test_the_figure_of_a_ranking_model_is_ndcg_on_the_validation_part_of_a_model_that_has_not_seen_it() -> None:
    lists = RankingConfig(factors=8, relevance_threshold=4.0)
    vb = configure("vb", {**SMALL, "epochs": 1})
    alone = train(TRAIN, VALIDATION, vb, device=CPU, ranking=lists, lists_from_validation=False)
    expected = evaluate(TRAIN, VALIDATION, alone, EvaluateConfig(bootstrap=0, relevance_threshold=4.0)).ranking.model
    objective = Objective(TRAIN, VALIDATION, CPU, by_lists=True, relevance_threshold=4.0, tick=int)
    assert expected
    assert objective.of(lists) == pytest.approx(expected["ndcg"], abs=1e-12)


@pytest.mark.parametrize("name", SEARCHED)
def test_the_options_with_a_range_are_those_that_are_documented(name: str) -> None:
    config = RankingConfig() if name == LISTS else SOLVERS[name].config()
    assert tuple(space.ranges(config, 80_000)) == SEARCHED[name]
    own = space.own_values(config, 80_000, 10_000)
    assert all(one.holds(own[option]) for option, one in space.ranges(config, 80_000).items())


def test_the_original_trainers_defaults_are_the_first_trial_and_a_sweep_is_clearly_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = str(written(tmp_path))
    main(["--ratings_csv", file, "--factors", "8", "--epochs", "8", "--output_dir", "alone"])
    main(["--ratings_csv", file, "--factors", "8", "--epochs", "8", "--trials", "8"])
    printed = capsys.readouterr().out
    alone, model = (json.loads(Path(folder, "model.json").read_text()) for folder in ("alone", "output"))
    sweep = model["metrics"]["sweep"]
    first = sweep["tried"][0]
    assert first["options"] == {name: ORIGINAL.get(name, 3.0) for name in SEARCHED["adam"]}
    assert first["value"] == alone["metrics"]["validation_rmse"]
    assert first["value"] - min(trial["value"] for trial in sweep["tried"]) > 0.1

    # The model is the best trial's.
    best = sweep["tried"][sweep["best"] - 1]
    assert (sweep["trials"], sweep["failed"], sweep["options"]) == (8, 0, best["options"])
    assert model["config"] == alone["config"] | best["options"]
    assert model["metrics"]["validation_rmse"] == best["value"]
    assert f"best of 8 trials: trial {sweep['best']}, validation RMSE {best['value']:.4f} (trial 1, the" in printed
    assert len(re.findall(r"^trial \d/8  validation RMSE \d\.\d{4}  adam: lr ", printed, re.MULTILINE)) == 8
    assert not Path("output/trials.json").exists()


def test_the_same_seed_gives_the_same_trials_and_another_one_others() -> None:
    one, again, other = (tried(swept(choices(), seed=seed)[0]) for seed in (3, 3, 4))
    assert one == again
    assert one[0] == other[0]  # the run's own options
    assert all(mine != theirs for mine, theirs in zip(one[1:], other[1:], strict=True))


def test_options_that_are_set_stay_as_they_are_and_name_the_solvers_that_have_them() -> None:
    found, _ = swept(choices("adam", any_solver=True, lr=0.02), trials=12)
    assert {trial.solver for trial in found.trials} == {"adam", "sgd"}
    assert all("lr" not in trial.options for trial in found.trials)
    assert found.config.model_dump()["lr"] == 0.02
    assert found.trials[0].solver == "adam"


def test_by_lists_the_options_of_the_ranking_model_are_tried_and_those_of_the_solver_left_alone() -> None:
    what = choices()
    found, said = swept(what, trial_objective="ndcg")
    assert found.config == what.solvers["sgd"]
    assert {trial.solver for trial in found.trials} == {LISTS}
    assert found.best.value == max(trial.value or 0 for trial in found.trials)
    assert found.ranking == RankingConfig.of(factors=8, **found.best.options)
    assert said[1].startswith("trial 1/4  validation NDCG@10 0.")

    stars, _ = swept(choices(ranking=False), trials=2, trial_objective="ndcg")
    assert ({trial.solver for trial in stars.trials}, stars.ranking) == ({"sgd"}, None)


def test_clicks_are_compared_by_their_lists() -> None:
    clicks = TRAIN.drop_columns([RATING]), VALIDATION.drop_columns([RATING])
    found = search(*clicks, SweepConfig(trials=2), choices(), device=CPU, seed=0, say=lambda _: None)
    assert (found.objective, found.best.solver) == ("ndcg", LISTS)
    with pytest.raises(ConfigError, match="ranking=none without ratings leaves no model to train"):
        search(*clicks, SweepConfig(trials=2), choices(ranking=False), device=CPU, seed=0)


def diverging(config: Config, ratings: int) -> dict[str, space.Range]:
    return {"lr": space.Range(0.01, 1e4, log=True)}


def test_a_trial_that_diverges_is_a_failed_one_and_the_sweep_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "ranges", diverging)
    found, said = swept(choices(row_damping=0.0), trials=8, journal=tmp_path / "journal.json")
    failed = [trial for trial in found.trials if trial.value is None]
    assert 0 < len(failed) < 8
    assert found.record()["failed"] == len(failed)
    assert f"best of 8 trials, {len(failed)} failed: trial " in found.line()
    assert all(trial.failure.startswith("epoch ") for trial in failed)
    assert sum(": epoch " in line for line in said) == len(failed)
    # The report names them, as the model's metrics do.
    model = train(TRAIN, VALIDATION, found.config, device=CPU)
    model.metrics["sweep"] = found.record()
    judge(model, TRAIN, VALIDATION, html=tmp_path / "report.html", document=tmp_path / "evaluation.json")
    report = (tmp_path / "report.html").read_text()
    assert report.count("<td>failed</td>") == len(failed)
    assert f" {len(failed)} failed." in report
    # A resumed sweep knows of them.
    again, _ = swept(choices(row_damping=0.0), trials=8, journal=tmp_path / "journal.json")
    assert again.trials == found.trials


def test_where_all_trials_fail_the_error_has_the_first_reason(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"^all 3 trials failed; the first: epoch 1: .*lower --lr \(now 1e\+06\)$"):
        swept(choices(lr=1e6, row_damping=0.0), trials=3, journal=tmp_path / "journal.json")
    assert list(tmp_path.iterdir()) == []


class Clock:
    """Seconds that pass at every look."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_a_sweep_ends_when_its_minutes_are_over_but_not_before_its_first_trial(tmp_path: Path) -> None:
    journal = tmp_path / "journal.json"
    found, said = swept(choices(), trials=50, trial_minutes=1, clock=Clock(5.0), journal=journal)
    assert 1 < len(found.trials) < 12
    assert said[-1] == f"the 1 minutes of the sweep are over after {len(found.trials)} trials"
    # The time before a kill counts, too.
    again, said = swept(choices(), trials=50, trial_minutes=1, clock=Clock(5.0), journal=journal)
    assert 0 <= len(again.trials) - len(found.trials) < len(found.trials)
    first, _ = swept(choices(), trials=50, trial_minutes=1, clock=Clock(100.0))
    assert [trial.number for trial in first.trials] == [1]


def test_a_sweep_that_was_killed_goes_on_and_trains_no_trial_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = f"--ratings_csv {written(tmp_path)} --factors 8 --epochs 10 --ranking none --trials 8"
    flags = [*options.split(), "--output_dir"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SUPABASE_")}
    environment["PYTHONPATH"] = str(Path(mf.__file__).parents[1])

    def started(folder: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "mf", *flags, folder], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    with started("output") as first:
        assert first.stdout
        for line in first.stdout:
            if line.startswith("trial 4/8"):
                first.send_signal(signal.SIGKILL)
                break
        told = 4 + len(re.findall(r"^trial \d/8", first.stdout.read(), re.MULTILINE))
    assert not Path("output/model.json").exists()
    done = len(json.loads(Path("output/trials.json").read_text())["trials"])
    assert told <= done <= told + 1
    with started("output") as second:
        printed = second.communicate(timeout=300)[0]
    assert f"resuming from output/trials.json: {done} of 8 trials are done" in printed
    assert re.findall(r"^trial (\d)/8", printed, re.MULTILINE) == [str(n) for n in range(done + 1, 9)]
    main([*flags, "alone"])
    resumed, alone = (json.loads(Path(folder, "model.json").read_text()) for folder in ("output", "alone"))
    assert [*map(what, resumed["metrics"]["sweep"]["tried"])] == [*map(what, alone["metrics"]["sweep"]["tried"])]
    assert resumed["config"] == alone["config"]
    assert not [*Path("output").glob("*trials*")]


def what(trial: dict[str, Any]) -> tuple[Any, ...]:
    return trial["number"], trial["options"], trial["value"]


def test_a_journal_of_another_sweep_or_of_something_else_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "journal.json"
    swept(choices(), trials=2, journal=journal)
    with pytest.raises(ConfigError, match=r"journal.json holds 2 trials of another sweep, with other options: use the"):
        swept(choices(epochs=2), trials=2, journal=journal)
    with pytest.raises(ConfigError, match="with other seed: use the same ratings and options, or delete the file"):
        swept(choices(), trials=2, journal=journal, seed=1)
    assert len(swept(choices(), trials=3, journal=journal)[0].trials) == 3  # more of them is no other sweep
    for garbage in ("{}", "not json", '{"sweep": {}, "trials": [{"number": 2, "solver": "sgd"}]}'):
        journal.write_text(garbage)
        with pytest.raises(DataError, match=r"journal.json is not a journal of trials: .*; delete it to start from"):
            swept(choices(), trials=2, journal=journal)


def test_the_library_sweeps_on_a_validation_part_whatever_the_solver() -> None:
    ratings = {
        "user": RATINGS[USER].to_numpy(),
        "item": RATINGS[MOVIE].to_numpy(),
        "rating": RATINGS[RATING].to_numpy(),
    }
    model = mf.fit(ratings, solver="vb", factors=8, epochs=3, ranking="none", trials=3)
    sweep = model.trained.metrics["sweep"]
    assert (sweep["trials"], sweep["solver"], sweep["objective"]) == (3, "vb", "rmse")
    assert model.trained.rows == {"train": 5400, "validation": 600}
    assert model.trained.config["rank"] == sweep["options"]["rank"] or sweep["best"] == 1
    with pytest.raises(ConfigError, match="val_size: found 0 with trials, expected a validation part to compare them"):
        mf.fit(ratings, val_size=0, trials=3)
    with pytest.raises(ConfigError, match=r"unknown option n_trials; did you mean trials\?"):
        mf.fit(ratings, n_trials=3)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--trials 5 --val_size 0", "val_size: found 0 with trials, expected a validation part to compare them on"),
        ("--trials 5 --processes 2", "processes: found 2 with trials, expected 1: a trial is trained by one process"),
        ("--trials 5 --init_from model", "init_from: found an earlier model with trials, expected none: every trial"),
        ("--trials 5 --publish", "trials: found no --test_csv to judge the model on before it is published"),
        ("--trials -1", "trials: Input should be greater than or equal to 0"),
        ("--trials 5 --trial_minutes -1", "trial_minutes: Input should be greater than or equal to 0"),
        ("--trial_minutes 5", "trial_minutes: found 5 without a sweep, expected it together with trials, such as 20"),
        ("--trials 1 --trial_objective ndcg", "trial_objective: found ndcg without a sweep, expected it together"),
        (
            "--trials 5 --solver vb --rank 4 --fits 1 --epochs 3",
            "trials: all that a sweep over vb changes is set (rank, fits, epochs): leave one of these options out",
        ),
    ],
)
def test_what_contradicts_a_sweep_is_refused_before_a_rating_is_read(
    flags: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SUPABASE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(SystemExit) as end:
        main(["--ratings_csv", "none.csv", *flags.split()])
    assert end.value.code == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {said}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"val_size": 0.0}, "val_size: found 0 with trials"),
        ({"train_accelerator_count": 2}, "train_accelerator_count: found 2 with trials, expected 1"),
        ({"init_from": "published"}, "init_from: found an earlier model with trials"),
        ({"solver": "gibbs", "solver_options": {"rank": 4, "burn_in": 3}}, "trials: all that a sweep over gibbs"),
        ({"rating_column": "none", "ranking_options": dict.fromkeys(SEARCHED[LISTS], 1)}, "trials: all that a sweep"),
    ],
)
def test_the_first_step_refuses_what_contradicts_a_sweep(given: dict[str, Any], said: str) -> None:
    parameters = complete({"trials": 5, "ratings_csv": "ratings.csv", "supabase_url": ""}, definitions())
    check(parameters)
    with pytest.raises(ConfigError, match=f"^{said}"):
        check(parameters | given)


def test_without_optuna_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MfError, match=re.escape("a sweep (trials) needs the Python module optuna: pip install 'mf[sw")):
        mf.fit(RATINGS, trials=3)


def test_an_empty_validation_part_is_refused_by_the_sweep() -> None:
    with pytest.raises(DataError, match="trials: found no validation ratings beside 5,000 training ratings, expected"):
        search(TRAIN, VALIDATION.slice(0, 0), SweepConfig(trials=2), choices(), device=CPU, seed=0)


def test_optunas_log_is_as_loud_after_a_sweep_as_before() -> None:
    import optuna

    before: Callable[[], int] = optuna.logging.get_verbosity
    loud = before()
    swept(choices(), trials=2)
    assert before() == loud


def test_the_job_of_the_page_is_one_that_vertex_knows_and_its_script_writes_the_figure(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/sweeps.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    job = yaml.safe_load(block) | {"displayName": "mf", "maxTrialCount": 20, "parallelTrialCount": 4}
    message = json_format.ParseDict(job, HyperparameterTuningJob.pb()(), ignore_unknown_fields=False)
    (pool,) = message.trial_job_spec.worker_pool_specs
    assert [one.parameter_id for one in message.study_spec.parameters] == ["lr", "l2"]

    script, name = pool.container_spec.args
    script = script.replace("gs://BUCKET/ratings.csv", str(written(tmp_path))).replace(
        "/tmp/model", str(tmp_path / "m")
    )
    metrics = tmp_path / "hypertune" / "output.metrics"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SUPABASE_")}
    environ |= {"CLOUD_ML_HP_METRIC_FILE": str(metrics), "CLOUD_ML_TRIAL_ID": "7"}
    environ["PYTHONPATH"] = str(Path(mf.__file__).parents[1])
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    # The flags stand behind the arguments, as Vertex AI appends them.
    command = [*pool.container_spec.command, script, name, "--lr=0.02", "--l2=0.05", "--epochs=3"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = json.loads((tmp_path / "m" / "model.json").read_text())
    assert (model["config"]["lr"], model["config"]["l2"]) == (0.02, 0.05)
    # As cloudml-hypertune writes it: one JSON object per line, all values but the time are texts.
    figure = json.loads(metrics.read_text())
    assert figure.pop("timestamp") > 0
    rmse = str(model["metrics"]["validation_rmse"])
    assert figure == {"trial": "7", "validation_rmse": rmse, "global_step": "1"}
    failed = subprocess.run([*command, "--lr=-1"], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: lr: ")


def test_the_page_names_the_options_that_are_searched() -> None:
    page = (Path(__file__).parents[2] / "docs/sweeps.md").read_text()
    for name, options in SEARCHED.items():
        (row,) = re.findall(rf"^\| `{name}`.*", page, re.MULTILINE)
        assert re.findall(r"`(\w+)`", row)[1:] == [*options]
