"""A sweep in the pipeline's own steps: what is trained, judged, fitted again and recorded."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from mf.local import LocalSupabase
from mf.sample import write_sample
from mf.supabase.client import connect
from mf.supabase.config import SchemaConfig
from mf.supabase.credentials import Credentials
from mf.supabase.schema import migration
from pipelines.laptop.run import environment, run_steps

TRIALS = 4


def test_the_best_trial_is_judged_on_the_test_part_fitted_to_all_ratings_and_recorded(
    fresh_stack: Callable[..., LocalSupabase], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    database = fresh_stack()
    database.migrate(migration(SchemaConfig(user_id_type="uuid")))
    sample = write_sample(tmp_path / "sample")
    (tmp_path / "run").mkdir()
    options = {"solver": "adam", "solver_options": {"bias_damping": 4.0}, "factors": 8, "epochs": 5}
    with environment(SUPABASE_URL=database.url, SUPABASE_KEY=database.secret_key):
        run_steps(
            {
                "ratings_csv": str(sample.ratings_csv),
                "supabase_url": database.url,
                "trials": TRIALS,
                "force_publish": True,
                **options,
            },
            tmp_path / "run",
        )
    (run,) = (tmp_path / "run").glob("mf-training-*")
    judged, refitted = (json.loads((run / step / "model/model.json").read_text()) for step in ("train", "refit"))
    sweep = judged["metrics"]["sweep"]
    best = sweep["tried"][sweep["best"] - 1]
    assert [trial["number"] for trial in sweep["tried"]] == [*range(1, TRIALS + 1)]
    assert best["value"] == min(trial["value"] for trial in sweep["tried"]) == judged["metrics"]["validation_rmse"]
    assert all(trial["options"].keys() == {"lr", "l2", "batch_size"} for trial in sweep["tried"])
    chosen = {"bias_damping": 4.0, **best["options"]}
    if sweep["best"] > 1:
        assert judged["config"] | chosen == judged["config"]
    own = {"epochs", "patience"}  # of a fit without a validation part
    assert {k: v for k, v in refitted["config"].items() if k not in own} == {
        k: v for k, v in judged["config"].items() if k not in own
    }
    assert refitted["metrics"]["sweep"] == sweep

    # The gate's figures are those of the test part, which no trial has seen.
    scores = json.loads((run / "evaluate/evaluation.json").read_text())
    assert scores["test_rows"] == pq.read_metadata(run / "split/test_ratings.parquet").num_rows
    assert scores["sweep"] == sweep
    report = (run / "evaluate/report.html").read_text()
    assert f"Trial {sweep['best']} of {TRIALS} was best on the validation part" in report
    assert all(f"<td>{trial['value']:.4f}</td>" in report for trial in sweep["tried"])

    with connect(Credentials(database.url, SecretStr(database.secret_key))) as client:
        (row,) = client.table("mf_runs").select("judged").execute().data
    assert row["judged"]["sweep"] == {name: value for name, value in sweep.items() if name != "tried"}

    assert not [*run.glob("*trials*")]
    printed = capfd.readouterr().out
    assert f"sweep of {TRIALS} trials over adam, compared by validation RMSE" in printed
    assert "trial 4/4  validation RMSE " in printed
