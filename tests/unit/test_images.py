"""Checks of the Dockerfile and its lock files, without building."""

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

from mf.leaks import kind_of
from pipelines.vertex.images import SOURCES

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "images" / "Dockerfile"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions():
    """(instruction, arguments) pairs, with continued lines joined."""
    lines = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text()).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")]


def test_hadolint_accepts_the_dockerfile():
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_there_is_no_entrypoint_that_would_swallow_the_command_of_a_step():
    assert "ENTRYPOINT" not in {instruction for instruction, _ in instructions()}


def test_the_image_runs_as_a_numbered_user_other_than_root():
    *_, user = [argument for instruction, argument in instructions() if instruction == "USER"]
    assert int(user) > 0


def test_the_images_have_the_torch_version_of_the_project():
    (torch,) = map(Requirement, PYPROJECT["dependency-groups"]["torch"])
    (allowed,) = [r for r in map(Requirement, PYPROJECT["project"]["dependencies"]) if r.name == "torch"]
    assert version("torch") in allowed.specifier
    locked = re.search(r"^torch(==\S+)", (ROOT / "requirements/cuda.lock").read_text(), re.MULTILINE)[1]
    assert locked == str(torch.specifier)


def test_the_cpu_image_installs_the_cpu_build_of_the_locked_torch_by_its_hash():
    lock = (ROOT / "requirements" / "cpu.lock").read_text()
    locked = re.fullmatch(r"torch==(\S+)\+cpu \\\n    --hash=sha256:[0-9a-f]{64}\n", lock)
    assert locked
    assert locked[1] == version("torch").removesuffix("+cpu")
    assert "pip install -qq --require-hashes --target /opt/torch -r cpu.lock" in DOCKERFILE.read_text()


def test_the_cuda_lock_does_not_overlap_with_the_image_lock():
    cuda, libraries = (
        set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements" / lock).read_text(), re.MULTILINE))
        for lock in ("cuda.lock", "image.lock")
    )
    assert cuda & libraries == set()
    assert {"torch", "triton"} & cuda == {"torch"}  # triton is for torch.compile, which nothing here calls


def test_the_image_has_the_kfp_version_that_compiles_the_pipeline():
    cut = re.search(r"^RUN (sed .*) > kfp\.lock", DOCKERFILE.read_text(), re.MULTILINE)[1]
    done = subprocess.run(["sh", "-c", cut], cwd=ROOT / "requirements", capture_output=True, text=True, check=True)
    pinned, *hashes = done.stdout.replace("\\\n", "").split()
    assert pinned == f"kfp=={version('kfp')}"
    assert [h.split(":")[0] for h in hashes] == ["--hash=sha256"] * len(hashes) != []


def test_copied_files_exist_and_pass_dockerignore():
    copied = [argument for name, argument in instructions() if name == "COPY" and not argument.startswith("--from=")]
    sources = [source for argument in copied for source in argument.split()[:-1]]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert {source.split("/")[0] for source in sources} == allowed


def imported(file):
    """The top-level modules that a file imports anywhere."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


def test_the_image_holds_every_library_that_a_step_imports():
    locked = re.findall(r"^([\w.-]+)==", (ROOT / "requirements/image.lock").read_text(), re.MULTILINE)
    held = {canonicalize_name(name) for name in locked} | {"torch", "kfp"}
    # No step uses the embedded Supabase.
    files = [f for f in ROOT.glob("mf/**/*.py") if f.parent.name != "local"] + list(ROOT.glob("components/*.py"))
    distributions = packages_distributions()
    modules = {module for file in files for module in imported(file)}
    for module in sorted(modules - set(sys.stdlib_module_names) - {"mf", "components"}):
        names = {canonicalize_name(name) for name in distributions[module]}
        assert names & held, f"{module} is of {names}, which requirements/image.lock does not hold"


def test_what_goes_into_an_image_holds_no_secret() -> None:
    files = [path for source in SOURCES for path in sorted((ROOT / source).rglob("*")) or [ROOT / source]]
    texts = {path: path.read_text(errors="replace") for path in files if path.is_file()}
    assert len(texts) > 100
    assert {path: kind for path, text in texts.items() if (kind := kind_of(text, code=True))} == {}
