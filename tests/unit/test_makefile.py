"""The command lines that make's variables become."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from programs import write_program

ROOT = Path(__file__).parents[2]
SETTINGS = "--settings=pipelines/settings.toml"
ODD = """it's "a b" $x $(y ${z} `w`; exit 7 # \\ é"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program in place of Python that prints its arguments as JSON."""
    program = tmp_path_factory.mktemp("python") / "python"
    write_program(program, "import json, sys\nprint(json.dumps(sys.argv[2:]))\n")
    return program


def command(python: Path, target: str, *variables: str, **environ: str) -> list[str]:
    """The arguments with which ``make target`` calls the pipeline's command of that name."""
    done = subprocess.run(
        ["make", "--silent", target, f"PY={python}", "INSTALLED=", *variables],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    return list(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["submit"], ["pipelines", "submit", SETTINGS]),
        (
            ["submit", "WAIT=1", "PARAMS=epochs=3 factors=8", "SETTINGS=my.toml"],
            ["pipelines", "submit", "--settings=my.toml", "--params=epochs=3 factors=8", "--wait"],
        ),
        (["schedule", "CRON=0 3 * * *"], ["pipelines", "schedule", SETTINGS, "--cron=0 3 * * *"]),
        (
            ["schedule", "CRON=0 3 * * *", "TZ=Europe/Berlin", "NAME=nightly"],
            ["pipelines", "schedule", SETTINGS, "--cron=0 3 * * *", "--tz=Europe/Berlin", "--name=nightly"],
        ),
        (["run", "RATINGS=a b.csv"], ["pipelines", "run", "--ratings=a b.csv"]),
        (["seed-table", "IMPORT_TABLE=r"], ["pipelines", "seed-table", "--import_table=r"]),
        (["demo"], ["pipelines", "demo"]),
        (
            ["demo", "RATINGS=a b.csv", "PARAMS=epochs=3"],
            ["pipelines", "demo", "--ratings=a b.csv", "--params=epochs=3"],
        ),
        (["unschedule", "NAME=nightly"], ["pipelines", "unschedule", SETTINGS, "--name=nightly"]),
        (["images", "CPU_ONLY=1", "BASE_IMAGE=b"], ["pipelines", "images", SETTINGS, "--cpu_only", "--base_image=b"]),
        (["bench"], ["benchmarks", "all"]),
        (["bench", "ONLY=speed", "ROWS=9"], ["benchmarks", "speed", "--rows=9"]),
    ],
)
def test_variables_become_flags(python: Path, given: list[str], expected: list[str]) -> None:
    assert command(python, *given) == expected


@pytest.mark.parametrize(
    ("target", "variable", "flag"),
    [
        ("run", "PARAMS", "--params"),
        ("run", "RATINGS", "--ratings"),
        ("run", "IMPORT_TABLE", "--import_table"),
        ("demo", "RATINGS", "--ratings"),
        ("demo", "IMPORT_TABLE", "--import_table"),
        ("demo", "SUPABASE_URL", "--supabase_url"),
        ("submit", "SETTINGS", "--settings"),
        ("schedule", "CRON", "--cron"),
        ("schedule", "NAME", "--name"),
        ("images", "BASE_IMAGE", "--base_image"),
        ("images", "TORCH_INDEX", "--torch_index"),
        ("bench", "ROWS", "--rows"),
    ],
)
def test_a_value_arrives_as_it_was_typed_whatever_is_in_it(python: Path, target: str, variable: str, flag: str) -> None:
    assert f"{flag}={ODD}" in command(python, target, f"{variable}={ODD}")


def test_no_text_of_any_variable_is_run_by_any_target(python: Path, tmp_path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    (texts,) = re.findall(r"^TEXTS := (.*)$", makefile, re.M)
    flags = set(re.findall(r"\$\(value (\w+)\)", makefile)) | {"SUPABASE_URL"}
    names = {*texts.split(), *flags} - {"SETTINGS", "MAKE_TERMOUT"}
    assert names >= {"RATINGS", "PARAMS", "JOB", "TARGET", "FRESH", "WAIT", "CPU_ONLY", "ONLY"}
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.M)) - {"help", "install", "test", "lint", "clean"}
    assert targets >= {"run", "demo", "images", "submit", "watch", "schedule", "bench"}
    hurt = tmp_path / "hurt"
    text = f"""'; touch {hurt}; " $$(touch {hurt}) `touch {hurt}` $(shell touch {hurt}) #"""
    given = [f"{name}={text}" for name in sorted(names - {"PEERS", "TORCH"})]  # these two install packages
    for target in sorted(targets):
        command(python, target, *given)
        assert not hurt.exists(), target


@pytest.mark.parametrize("text", ["{0}; touch {1}", "$(shell touch {1})", "{0}"])
def test_the_python_of_install_is_one_word(tmp_path: Path, text: str) -> None:
    program, hurt = tmp_path / "my python", tmp_path / "hurt"
    write_program(program, "import sys\nsys.exit('error: too old')\n")
    words = ["make", "install", f"VENV={tmp_path}/venv", f"PYTHON={text.format(program, hurt)}"]
    done = subprocess.run(words, cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.returncode == 2
    assert ("error: too old" in done.stderr) == (text == "{0}")
    assert not hurt.exists()


@pytest.mark.parametrize("text", ["$(shell touch {})", "`touch {}`", "cpu; touch {}", "$$(touch {})", "gpu"])
@pytest.mark.parametrize("target", ["install", "run", "help"])
def test_torch_is_cpu_or_cuda_and_nothing_is_run(tmp_path: Path, target: str, text: str) -> None:
    hurt = tmp_path / "hurt"
    words = ["make", target, "PYTHON=false", f"TORCH={text.format(hurt)}"]
    done = subprocess.run(words, cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert ", expected cpu or cuda" in done.stderr
    assert not hurt.exists()


def test_the_zone_and_the_name_of_the_environment_do_not_count(python: Path) -> None:
    expected = ["pipelines", "schedule", SETTINGS, "--cron=0 3 * * *"]
    assert command(python, "schedule", "CRON=0 3 * * *", TZ="Asia/Tokyo", NAME="laptop") == expected


EXPORTED = {
    "SUPABASE_URL": "https://abc.supabase.co",
    "SUPABASE_KEY": "sb_secret_hunter2hunter2",
    "SUPABASE_DB_URL": "postgresql://postgres:hunter2hunter2@db.abc.supabase.co:5432/postgres",
}


def test_a_project_counts_on_makes_command_line_only(python: Path) -> None:
    url = EXPORTED["SUPABASE_URL"]
    for more in ([], ["-e"], ["RATINGS=r.csv"]):
        assert not any(word.startswith("--supabase") for word in command(python, "run", *more, **EXPORTED))
    given = command(python, "run", f"SUPABASE_URL={url}", "IMPORT_TABLE=ratings", **EXPORTED)
    assert given == ["pipelines", "run", "--import_table=ratings", f"--supabase_url={url}"]
    for target in ("demo", "seed-table", "submit"):
        assert not any(word.startswith("--supabase") for word in command(python, target, **EXPORTED))


@pytest.mark.parametrize("name", ["SUPABASE_KEY", "SUPABASE_DB_URL"])
def test_a_key_on_makes_command_line_is_refused_and_not_shown(python: Path, name: str) -> None:
    words = ["make", "run", f"PY={python}", "INSTALLED=", f"{name}={EXPORTED[name]}", "RATINGS=r.csv"]
    done = subprocess.run(words, cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"*** {name} on make's command line can be read" in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("given", ["RATING=r.csv", "ratings=r.csv", "epochs=3", "IMPORT_TABEL=r"])
def test_an_unknown_variable_is_refused_since_it_would_silently_mean_the_sample(python: Path, given: str) -> None:
    done = subprocess.run(
        ["make", "run", f"PY={python}", "INSTALLED=", given],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    name = given.partition("=")[0]
    assert (done.returncode, done.stdout) == (2, "")
    assert f"unknown variable {name}, expected one of BASE_IMAGE " in done.stderr
    assert 'a parameter of the pipeline goes into PARAMS="epochs=20"' in done.stderr
