"""The nightly workflow of docs/nightly.md, its shell steps as written, against a project that is the user's own."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from targets import api

from mf.local import LocalSupabase
from mf.supabase.config import SchemaConfig
from mf.supabase.recommend import published_run, recommend_movies
from mf.supabase.schema import migration

ROOT = Path(__file__).parents[2]
TABLE = """
create table ratings (user_id uuid, movie_id bigint, rating real, primary key (user_id, movie_id));
insert into ratings select md5(u::text)::uuid, m * 1000,
  least(5, greatest(1, 3 + (u % 5 - 2) * 0.3 + (m % 4 - 1.5) * 0.4 + (u % 2 * 2 - 1) * (m % 3 - 1) * 0.8))
  from generate_series(1, 60) u, generate_series(1, 40) m where (u + m) % 7 > 0;
grant select on ratings to service_role;
"""


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/nightly.md").read_text(), re.DOTALL)
    (job,) = yaml.safe_load(text)["jobs"].values()
    return dict(job)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code, so that the runs' folder is not this repository's."""
    folder = tmp_path_factory.mktemp("nightly")
    for name in ("mf", "components", "pipelines"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


def run_steps(workflow: dict[str, Any], checkout: Path, project: LocalSupabase, secrets: dict[str, str]) -> str:
    """Runs the shell steps with bash, as a runner does, but the installation; returns what they print."""
    values = {"vars.SUPABASE_URL": project.url, **{f"secrets.{name}": value for name, value in secrets.items()}}
    printed = ""
    for step in workflow["steps"]:
        if "run" not in step or step["name"] == "Install":
            continue
        given = {
            name: re.sub(r"\$\{\{ (\S+) \}\}", lambda found: values.get(found[1], ""), text)
            for name, text in step.get("env", {}).items()
        }
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("SUPABASE_", "MAKE", "MFLAGS"))}
        environ |= {"GITHUB_STEP_SUMMARY": str(checkout / "summary.md"), "NO_PROXY": "127.0.0.1", **given}
        # This interpreter, which is installed already.
        environ["MAKEFLAGS"] = f" -- PY={sys.executable} INSTALLED="
        done = subprocess.run(
            ["bash", "-e", "-c", step["run"]], cwd=checkout, env=environ, capture_output=True, text=True, timeout=900
        )
        printed += done.stdout + done.stderr
        if done.returncode:
            break
    return printed


def test_the_workflow_trains_judges_and_publishes_every_night(
    workflow: dict[str, Any], checkout: Path, fresh_stack: Callable[..., LocalSupabase]
) -> None:
    project = fresh_stack()
    secrets = {"SUPABASE_KEY": project.secret_key}
    project.migrate(TABLE)
    missing = run_steps(workflow, checkout, project, secrets)
    assert "is the migration applied? `python -m mf schema` prints it" in missing
    assert "ingest " not in missing  # nothing was read

    project.migrate(migration(SchemaConfig(user_id_type="uuid", ratings_table="ratings")))
    first = run_steps(workflow, checkout, project, secrets)
    assert re.search(r"^published, in \d+ s$", first, re.MULTILINE)
    assert "recommended to user " in first
    with api(project) as client:
        run = published_run(client)
        assert run is not None
        assert len(recommend_movies(client, "c4ca4238-a0b9-2382-0dcc-509a6f75849b")) > 0  # md5("1")
    assert (run["judged"]["forced"], run["trained_on"]["source"]) == (False, "table public.ratings")
    assert "accepted for publication" in (checkout / "summary.md").read_text()
    assert (checkout / ".mf/report.html").read_text().startswith("<!DOCTYPE html>")

    with project.connect() as connection:
        connection.execute("insert into ratings select md5(u::text)::uuid, 99000, 3 from generate_series(1, 60) u")
    second = run_steps(workflow, checkout, project, secrets)
    assert re.search(r"^(not )?published", second, re.MULTILINE)
    report = (checkout / ".mf/report.html").read_text()
    assert "the published run held these ratings out too (split=hash with the same seed)" in report

    for key in (project.secret_key, project.service_role_key):
        assert key not in missing + first + second
        files = [file for file in checkout.rglob("*") if file.is_file()]
        assert not any(key.encode() in file.read_bytes() for file in files)


def test_the_cron_line_works_in_a_fresh_clone_and_prints_only_what_failed(tmp_path: Path) -> None:
    (text,) = re.findall(r"```\n17 3 \* \* \* (.*?)\n```", (ROOT / "docs/nightly.md").read_text())
    (tmp_path / "mf.env").write_text("export SUPABASE_URL=https://a.example\nexport SUPABASE_KEY=sb_secret_x\n")
    line = text.replace("/srv/mf", str(tmp_path / "clone")).replace("/etc/mf.env", str(tmp_path / "mf.env"))
    for folder in ("clone", "bin"):
        (tmp_path / folder).mkdir()
    make = tmp_path / "bin" / "make"
    for status in (0, 2):
        make.write_text(f'#!/bin/sh\nprintf "<%s>" "$SUPABASE_KEY" "$@"\nexit {status}\n')
        make.chmod(0o755)
        done = subprocess.run(
            ["/bin/sh", "-c", line], env={"PATH": f"{make.parent}:/usr/bin:/bin"}, capture_output=True, text=True
        )
        said = "<sb_secret_x><run><SUPABASE_URL=https://a.example><IMPORT_TABLE=ratings><PARAMS=split=hash>"
        assert (done.stdout, done.stderr) == (said if status else "", "")
