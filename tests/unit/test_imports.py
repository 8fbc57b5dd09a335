"""Which room may import which: no import runs upwards, there are no cycles, and the library knows no pipeline."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("mf", "components", "pipelines")
# From the top down: a module may import its own room and the rooms of the lines below. "mf" is the rest of the library.
ROOMS = (
    ("pipelines",),
    ("components",),
    ("mf.__main__",),
    ("mf.cli",),
    ("mf.library",),
    ("mf.parameters",),
    ("mf.recommender", "mf.publish", "mf.refit"),
    ("mf.reuse",),
    ("mf.sweep",),
    ("mf.evaluation", "mf.ingest", "mf.train", "mf.local"),
    ("mf.together",),
    ("mf.warm_start",),
    ("mf.supabase",),
    ("mf.model_directory", "mf.checkpoint"),
    ("mf.ratings", "mf.solvers", "mf.ranking"),
    ("mf.model", "mf.fold_in"),
    ("mf",),
)
FACE = "mf"  # "import mf" shows the library's few public names, and imports them when they are used
# Beside that order; a name stands for everything in it.
FORBIDDEN = (
    ("mf", "kfp"),
    ("mf", "google.cloud.aiplatform"),
    ("mf.ratings", "mf.model"),
    ("mf.ratings", "torch"),
    ("mf.model", "pyarrow"),
    ("mf.solvers", "pyarrow"),
    ("mf.ranking", "pyarrow"),
    ("pipelines.vertex", "pipelines.laptop"),
    ("pipelines.vertex", "pipelines.kubeflow"),
    ("pipelines.kubeflow", "pipelines.vertex"),
    ("pipelines.kubeflow", "pipelines.laptop"),
    ("pipelines.laptop", "pipelines.kubeflow"),
    ("pipelines.laptop", "pipelines.vertex"),
)


def imports() -> dict[str, set[str]]:
    """What each module imports, imports within functions included."""
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
    }
    del files[FACE]
    found: dict[str, set[str]] = {module: set() for module in files}
    for module, file in files.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found[module] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found[module] |= {name for name in names if name in files or node.module not in files}
                found[module] |= {node.module} if names - files.keys() else set()
    return found


def within(module: str, room: str) -> bool:
    return f"{module}.".startswith(f"{room}.")


def line_of(module: str) -> tuple[int, str]:
    """Line and room of a module of this project."""
    return next((line, room) for line, rooms in enumerate(ROOMS) for room in rooms if within(module, room))


IMPORTS = imports()


def test_no_import_runs_upwards() -> None:
    ours = [
        (a, b) for a, names in IMPORTS.items() for b in names if b.split(".")[0] in ("mf", "components", "pipelines")
    ]
    assert len(ours) > 300
    wrong = [
        f"{a} imports {b}"
        for a, b in ours
        if line_of(b)[0] < line_of(a)[0] or (line_of(b)[0] == line_of(a)[0] and line_of(b)[1] != line_of(a)[1])
    ]
    assert wrong == []


@pytest.mark.parametrize(("room", "forbidden"), FORBIDDEN)
def test_a_room_does_not_know_what_it_must_not(room: str, forbidden: str) -> None:
    wrong = [
        f"{a} imports {b}" for a, names in IMPORTS.items() if within(a, room) for b in names if within(b, forbidden)
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter({a: {b for b in names if b in IMPORTS} for a, names in IMPORTS.items()}).prepare()


@pytest.mark.parametrize(
    ("of_a_step", "unwanted"),
    [
        ("mf.parameters, mf.reuse", {"torch", "supabase", "scipy", "sklearn", "matplotlib"}),  # ingest, split
        ("mf.parameters, mf.supabase.find, mf.supabase.direct_target", {"torch", "supabase", "scipy", "sklearn"}),
    ],
)
def test_a_step_imports_no_large_package_that_it_does_not_use(of_a_step: str, unwanted: set[str]) -> None:
    program = f"import sys; before = {{*sys.modules}}; import {of_a_step}; print(*({{*sys.modules}} - before))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert unwanted & {*done.stdout.split()} == set()
