"""`make submit` and `make schedule` through the Makefile's recipes."""

import os
import re
import subprocess
import sys
from pathlib import Path

from fake_vertex import fake_vertex
from test_schedule import SETTINGS

ROOT = Path(__file__).parents[2]
# Python runs this file at startup. Only the two commands need the SDK, which takes seconds to import.
SITE_CUSTOMIZE = """
import os, sys
if {"submit", "schedule"} & {*sys.orig_argv}:
    import pytest
    from fake_vertex import FakeVertex, send_sdk_to
    send_sdk_to(FakeVertex(os.environ["FAKE_VERTEX"]), pytest.MonkeyPatch())
"""


def test_make_compiles_submits_follows_and_schedules_as_its_variables_say(tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("".join(f'{name} = "{value}"\n' for name, value in SETTINGS.items()))
    (tmp_path / "sitecustomize.py").write_text(SITE_CUSTOMIZE)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "MF_"))}
    with fake_vertex() as vertex:
        vertex.states = [{"state": "PIPELINE_STATE_SUCCEEDED"}]
        environ |= {
            "FAKE_VERTEX": vertex.url,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parent)]),
        }
        done = subprocess.run(
            [
                "make", "--jobs=2", "--output-sync=target", "submit", "schedule", f"PY={sys.executable}", "INSTALLED=",
                f"SETTINGS={settings}", "PARAMS=epochs=3 lr=0.01", "WAIT=1", "CRON=0 3 * * *", "TZ=Europe/Berlin",
                "NAME=nightly",
            ],
            cwd=ROOT, env=environ, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    bodies = {request.path.rpartition("/")[2]: request.body for request in vertex.changes}
    assert bodies.keys() == {"pipelineJobs", "schedules"}
    schedule = bodies["schedules"]
    assert (schedule["displayName"], schedule["cron"]) == ("nightly", "TZ=Europe/Berlin 0 3 * * *")
    nightly = schedule["createPipelineJobRequest"]["pipelineJob"]
    for job, split in ((bodies["pipelineJobs"], {}), (nightly, {"split": "hash"})):
        assert job["runtimeConfig"]["parameterValues"] == {"epochs": 3, "lr": 0.01, **split}
        assert job["pipelineSpec"]["pipelineInfo"]["name"] == "mf-training"
    assert f"wrote {ROOT}/build/mf-training.yaml\n" in done.stdout
    assert re.search(r"^submitted projects/p1/locations/europe-west4/pipelineJobs/", done.stdout, re.MULTILINE)
    assert re.search(r"^\d\d:\d\d:\d\d  run       succeeded$", done.stdout, re.MULTILINE)
    assert re.search(r"^scheduled nightly: projects/p1/locations/europe-west4/schedules/", done.stdout, re.MULTILINE)
