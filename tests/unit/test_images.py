"""What the images are made of, as far as it can be told without building them."""

import ast
import re
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "images" / "Dockerfile"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions():
    """[(instruction, its arguments), …] with continued lines joined."""
    lines = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text()).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")]


def test_hadolint_accepts_the_dockerfile():
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_command_of_a_step_is_not_swallowed_by_an_entrypoint():
    assert "ENTRYPOINT" not in {instruction for instruction, _ in instructions()}


def test_the_image_runs_as_a_user_by_number_that_is_not_root():
    *_, user = [argument for instruction, argument in instructions() if instruction == "USER"]
    assert int(user) > 0


def test_the_torch_of_the_images_is_the_one_of_the_project():
    (torch,) = [r for r in map(Requirement, PYPROJECT["dependencies"]) if r.name == "torch"]
    locked = re.search(r"^torch(==\S+)", (ROOT / "requirements/cuda.lock").read_text(), re.MULTILINE)[1]
    assert locked == str(torch.specifier)


def test_the_cpu_image_asks_for_the_cpu_build_of_the_locked_torch():
    cut = re.search(r'"\$\((sed .* cuda\.lock)\)"', DOCKERFILE.read_text())[1]
    done = subprocess.run(["sh", "-c", cut], cwd=ROOT / "requirements", capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"torch=={version('torch').removesuffix('+cpu')}+cpu"]


def test_the_libraries_of_cuda_take_nothing_that_the_other_lock_holds():
    cuda, libraries = (
        set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements" / lock).read_text(), re.MULTILINE))
        for lock in ("cuda.lock", "image.lock")
    )
    assert cuda & libraries == set()
    assert {"torch", "triton"} & cuda == {"torch"}  # triton is for torch.compile, which nothing here calls


def test_the_kfp_of_the_image_is_the_locked_one_that_compiles_the_pipeline():
    cut = re.search(r"^RUN (sed .*) > kfp\.lock", DOCKERFILE.read_text(), re.MULTILINE)[1]
    done = subprocess.run(["sh", "-c", cut], cwd=ROOT / "requirements", capture_output=True, text=True, check=True)
    pinned, *hashes = done.stdout.replace("\\\n", "").split()
    assert pinned == f"kfp=={version('kfp')}"
    assert [h.split(":")[0] for h in hashes] == ["--hash=sha256"] * len(hashes) != []


def test_all_that_is_copied_is_there_and_let_through_by_dockerignore():
    copied = [argument for name, argument in instructions() if name == "COPY" and not argument.startswith("--from=")]
    sources = [source for argument in copied for source in argument.split()[:-1]]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert {source.split("/")[0] for source in sources} == allowed


def imported(file):
    """The top-level modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


def test_what_a_step_imports_is_in_the_image():
    locked = re.findall(r"^([\w.-]+)==", (ROOT / "requirements/image.lock").read_text(), re.MULTILINE)
    held = {canonicalize_name(name) for name in locked} | {"torch", "kfp"}
    # The embedded Supabase is for laptops; no step has it.
    files = [f for f in ROOT.glob("mf/**/*.py") if f.parent.name != "local"] + list(ROOT.glob("components/*.py"))
    distributions = packages_distributions()
    modules = {module for file in files for module in imported(file)}
    for module in sorted(modules - set(sys.stdlib_module_names) - {"mf", "components"}):
        names = {canonicalize_name(name) for name in distributions[module]}
        assert names & held, f"{module} is of {names}, which requirements/image.lock does not hold"
