"""The wheel holds the library alone, and works in an environment with nothing but its dependencies."""

import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import mf
from mf.sample import write_sample
from mf.supabase.config import SchemaConfig
from mf.supabase.schema import migration

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    environment = {n: value for n, value in os.environ.items() if not n.startswith(("SUPABASE_", "PYTHON", "VIRTUAL"))}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as ``pip install .`` does, from a copy: setuptools writes beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in ("mf", "components", "pipelines", "pyproject.toml", "README.md", "LICENSE"):
        (folder / "source" / name).symlink_to(ROOT / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps")
    run(*pip, "--no-build-isolation", "--wheel-dir", folder / "built", folder / "source", cwd=folder)
    (built,) = (folder / "built").iterdir()
    return built


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment with the wheel and its dependencies. They are linked from this environment, and
    pip checks, without an index, that none is missing."""
    folder = tmp_path_factory.mktemp("bare")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith("METADATA"))
        required = re.findall(r"^Requires-Dist: (.*)$", files.read(name).decode(), re.MULTILINE)
    for needed in closure(required).values():
        link(needed, packages)
    python = folder / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--quiet")
    run(*pip, "--no-index", wheel, cwd=folder)
    return python.parent


def closure(required: list[str]) -> dict[str, Distribution]:
    """The installed distributions that these requirements need, and those that they need in turn."""
    found: dict[str, Distribution] = {}
    waiting = [(Requirement(text), "") for text in required]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for name in ("", *requirement.extras):
            if (key := f"{requirement.name.lower()}[{name}]") not in found:
                found[key] = distribution(requirement.name)
                waiting += [(Requirement(text), name) for text in found[key].requires or []]
    return found


def link(needed: Distribution, packages: Path) -> None:
    tops = {file.parts[0] for file in needed.files or [] if file.parts[0] not in ("..", "__pycache__")}
    for top in tops:
        if not (packages / top).exists():
            (packages / top).symlink_to(Path(str(needed.locate_file(top))))


def test_the_wheel_holds_mf_alone_with_its_data_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {"mf", f"mf-{mf.__version__}.dist-info"}
    sources = {str(file.relative_to(ROOT)) for file in (ROOT / "mf").rglob("*.*") if "__pycache__" not in file.parts}
    assert sources - names == set()
    metadata = zipfile.ZipFile(wheel).read(f"mf-{mf.__version__}.dist-info/METADATA").decode()
    pinned = re.findall(r"^Requires-Dist: (.*==.*)$", metadata, re.MULTILINE)
    assert [line for line in pinned if "extra ==" not in line or line.count("==") > 1] == []


def test_the_readme_example_and_the_commands_run_in_a_bare_environment(bare: Path, tmp_path: Path) -> None:
    sample = write_sample(tmp_path / "sample")
    sample.ratings_csv.rename(tmp_path / "ratings.csv")
    (example,) = re.findall(r"```python\n(import pandas.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "example.py").write_text(example)
    assert "RMSE 0." in run(bare / "python", "example.py", cwd=tmp_path)
    assert (tmp_path / "lists.parquet").exists()
    user = (tmp_path / "ratings.csv").read_text().splitlines()[1].split(",")[0]
    assert run(bare / "mf", "recommend", user, "--model", "model", "--k", "3", cwd=tmp_path).count("\n") == 3
    assert run(bare / "mf", "schema", cwd=tmp_path) == migration(SchemaConfig())
    assert run(bare / "mf", "--version", cwd=tmp_path) == f"mf {mf.__version__}\n"
    found = run(
        bare / "python", "-c", "import mf, sys; print(mf.__file__); mf.fit; print('kfp' in sys.modules)", cwd=tmp_path
    )
    assert found.split() == [str(next(bare.parent.glob("lib/python*/site-packages/mf/__init__.py"))), "False"]
