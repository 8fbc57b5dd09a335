"""Builds and pushes the images of the steps, with docker, podman or Cloud Build."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mf.errors import ConfigError, MfError
from mf.version import git_sha
from pipelines import leaks
from pipelines.settings import Settings
from pipelines.vertex.machines import DEFAULT_CUDA

ROOT = Path(__file__).parents[2]
KINDS = ("cpu", "gpu")
PLATFORM = "linux/amd64"  # Vertex AI's machines
SOURCES = (
    ".dockerignore",
    "LICENSE",
    "THIRD_PARTY.md",
    "images",
    "mf",
    "requirements",
)  # files and folders that go into an image
# States of a build that has not ended.
BUILDING = ("UNKNOWN", "STATUS_UNKNOWN", "PENDING", "QUEUED", "WORKING")
POLL_S = 10
MAX_FAILED_POLLS = 10  # in a row
# Options of pip's configuration that say where packages are.
PIP_OPTIONS = ("index-url", "extra-index-url", "find-links", "trusted-host", "cert", "client-cert", "proxy", "timeout")


def make_images(
    settings: Settings, *, cpu_only: bool = False, base_image: str = "", torch_index: str = ""
) -> dict[str, str]:
    """Builds and pushes the images of the checkout's commit, and prints their digests and layer sizes.

    Args:
        settings: the registry path, and the project of Cloud Build.
        cpu_only: build one image for all steps, for a pipeline that trains without a GPU.
        base_image: base image (default: the Dockerfile's).
        torch_index: URL of an index of CPU builds of torch, for a smaller CPU image.

    Returns:
        The settings ``cpu_image`` and ``gpu_image``, as ``repository/name@sha256:…``.

    Raises:
        ConfigError: no registry path is set, files of the images are not committed, or a secret would be in an image.
        MfError: no build tool was found, or the build failed.
    """
    settings.model_copy(update={"cpu_image": "", "image_tag": "any"}).check_images()
    leaks.refuse("BASE_IMAGE", base_image)
    sha = commit()
    kinds = KINDS[:1] if cpu_only else settings.image_kinds
    names = {kind: f"{settings.image_repository}/mf-python-{kind}:{sha}" for kind in kinds}
    if cpu_only and settings.has_gpu:
        print(
            "without an image for GPUs: the pipeline needs train_accelerator_count = 0 under [parameters] in "
            f"{settings.file}"
        )
    arguments = {"GIT_SHA": sha, **({"BASE_IMAGE": base_image} if base_image else {})}
    if settings.cuda != DEFAULT_CUDA:
        arguments["CUDA"] = settings.cuda
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "source.tgz"
        # Archive the commit instead of the folder, so that stray files such as keys never reach the builder.
        _run("git", "-C", str(ROOT), "archive", "--format=tar.gz", f"--output={source}", "HEAD", *SOURCES)
        leaks.refuse_files(source)
        if engine := find_engine():
            digests = build_here(engine, source, names, arguments, torch_index)
        else:
            if settings.target == "kubeflow":
                raise MfError("found no working docker or podman: install one of them, or start it")
            digests = build_in_cloud(source, names, arguments, torch_index, settings.project, settings.build_region)
    for kind, name in names.items():
        print(f"\n{name}\n  {digests[kind]}")
        if engine:  # Cloud Build prints the layers in its log
            print("\n".join(f"  {size:>9,.1f} MB  {command}" for size, command in layers(engine, name)))
    pinned = [f"{name.rpartition(':')[0]}@{digests[kind]}" for kind, name in names.items()]
    return {"cpu_image": pinned[0], "gpu_image": pinned[-1]}


def commit() -> str:
    """The commit of the checkout, the images' tag.

    Raises:
        ConfigError: a file of the images is not committed, or this folder is not a git checkout.
    """
    if not shutil.which("git"):
        raise ConfigError("git is missing, and the images are built from this checkout's commit: install it")
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--", *SOURCES).splitlines()
    if changed:
        raise ConfigError(
            f"{len(changed)} of the images' files differ from the last commit, the first is {changed[0][3:]}: commit "
            "them, so that an image's tag identifies its content"
        )
    return git_sha().removesuffix("-dirty")


def find_engine() -> str:
    """``docker`` or ``podman``, whichever works here first; empty when neither does.

    A docker without BuildKit builds nothing that has a secret: it is passed over, with a line that says so.
    """
    for name in ("docker", "podman"):
        if shutil.which(name) and not _probe(name, "images", "--quiet").returncode:
            if name == "podman" or _has_buildkit():
                return name
            print("docker is not used: it has neither BuildKit nor the plugin buildx (package docker-buildx-plugin)")
    return ""


def _has_buildkit() -> bool:
    """Whether docker can build with BuildKit: by buildx, or as a docker of the versions 18.09 to 22, which hold it."""
    if not _probe("docker", "buildx", "version").returncode:
        return True
    version = re.match(r"(\d+)\.", _probe("docker", "version", "--format={{.Server.Version}}").stdout)
    return version is not None and 18 <= int(version[1]) < 23


def _probe(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def build_here(
    engine: str, source: Path, names: Mapping[str, str], arguments: Mapping[str, str], torch_index: str
) -> dict[str, str]:
    """Builds and pushes with docker or podman; returns the digest by kind."""
    folder = source.parent / "source"
    shutil.unpack_archive(source, folder)
    configuration, paths = pip_configuration(torch_index, with_paths=engine == "podman")
    secret = source.with_name("pip.conf")
    secret.write_text(configuration)
    build = [engine, "build", f"--platform={PLATFORM}", f"--file={folder}/images/Dockerfile"]
    build += [f"--secret=id=pip,src={secret}"]
    build += ["--jobs=0"] if engine == "podman" else []  # independent stages in parallel
    build += [f"--volume={path}:{path}:ro" for path in paths]
    build += [f"--build-arg={name}={value}" for name, value in arguments.items()]
    for kind, name in names.items():
        _run(*build, f"--build-arg=KIND={kind}", f"--tag={name}", str(folder))
    return {kind: push(engine, name) for kind, name in names.items()}


def push(engine: str, name: str) -> str:
    """Pushes an image; returns its digest in the registry."""
    host = name.partition("/")[0]
    of_google = host.endswith((".pkg.dev", "gcr.io"))
    login = f"gcloud auth configure-docker {host}" if of_google else f"{engine} login {host}"
    hint = f"may this machine push there? {login}"
    if engine == "podman":
        # podman inspect gives another digest, that of the uncompressed layers.
        with tempfile.NamedTemporaryFile("r") as digest:
            _run(engine, "push", f"--digestfile={digest.name}", name, hint=hint)
            return Path(digest.name).read_text().strip()
    _run(engine, "push", name, hint=hint)
    pushed: list[str] = json.loads(_output(engine, "inspect", "--format={{json .RepoDigests}}", name)) or []
    # Docker leaves out its own registry.
    repository = name.rpartition(":")[0].removeprefix("docker.io/").removeprefix("library/")
    for one in pushed:
        if one.partition("@")[0].removeprefix("docker.io/") == repository:
            return one.partition("@")[2]
    raise MfError(f"{name} is pushed, but docker does not tell its digest: {', '.join(pushed) or 'it has none'}")


def layers(engine: str, name: str) -> list[tuple[float, str]]:
    """Size in MB and command of each layer that is not empty, in build order."""
    listing = _output(engine, "history", "--no-trunc", "--format={{.Size}}\t{{.CreatedBy}}", name).splitlines()
    sizes = []
    for size, _, command in (line.partition("\t") for line in reversed(listing)):
        if not (parts := re.fullmatch(r"([\d.]+) ?([kMGT]?)i?B", size)):
            continue
        megabytes = float(parts[1]) * {"": 1e-6, "k": 1e-3, "M": 1, "G": 1e3, "T": 1e6}[parts[2]]
        if megabytes >= 0.05:
            sizes.append((megabytes, re.sub(r"^/bin/sh -c (#\(nop\) )?", "", command).strip()[:90]))
    return sizes


def pip_configuration(torch_index: str, with_paths: bool) -> tuple[str, list[Path]]:
    """A ``pip.conf`` with this machine's package indexes, and the local files and folders that it names.

    Args:
        torch_index: an additional index, or empty.
        with_paths: the build can mount local paths; otherwise they are left out.
    """
    lines = _output(sys.executable, "-m", "pip", "config", "list").splitlines()
    listed = {key: ast.literal_eval(value) for key, _, value in (line.partition("=") for line in lines)}
    paths: set[Path] = set()
    configuration = "[global]\n"
    for option in PIP_OPTIONS:
        values = [listed.get(f"{section}.{option}") for section in (":env:", "install", "global")]
        words = next(filter(None, values), "").split()
        if option == "extra-index-url" and torch_index:
            words.append(torch_index)
        local = [word for word in words if word.startswith(("/", "file:///"))]
        if with_paths:
            # The pages of an index on disk link to files beside the index.
            mounts = [Path(w) if w.startswith("/") else Path(w.removeprefix("file://")).parent for w in local]
            paths.update(path for path in mounts if path.exists())
        else:
            words = [word for word in words if word not in local]
        if words:
            configuration += f"{option} = {' '.join(words)}\n"
    return configuration, sorted(paths)


def build_in_cloud(
    source: Path,
    names: Mapping[str, str],
    arguments: Mapping[str, str],
    torch_index: str,
    project: str,
    region: str = "",
) -> dict[str, str]:
    """Builds and pushes with Cloud Build, in ``region`` or its global one; returns the digest by kind."""
    if not shutil.which("gcloud"):
        raise MfError("found no working docker or podman, and no gcloud for Cloud Build: install one of them")
    if not project:
        raise ConfigError("project is empty, and Cloud Build needs it: set it in pipelines/settings.toml")
    leaks.refuse("TORCH_INDEX", torch_index)  # Cloud Build shows it; a build here has it as a secret
    gcloud = ["gcloud", "builds", f"--project={project}", *([f"--region={region}"] if region else [])]
    submitted = {}
    for kind, name in names.items():
        values = {"IMAGE": name, "KIND": kind, "TORCH_INDEX": torch_index, "BASE_IMAGE": "", "CUDA": "", **arguments}
        substitutions = ",".join(f"_{key}={value}" for key, value in values.items())
        submitted[kind] = _output(
            *gcloud, "submit", str(source), f"--config={ROOT}/images/cloudbuild.yaml", "--async", "--format=value(id)",
            f"--substitutions={substitutions}",
        )  # fmt: skip
    return {kind: _digest_of_build(gcloud, build, names[kind]) for kind, build in submitted.items()}


def _digest_of_build(gcloud: Sequence[str], build: str, name: str) -> str:
    """Waits for a build, with its log on the terminal where it may be read, and returns the image's digest."""
    if subprocess.run([*gcloud, "log", "--stream", build], stdin=subprocess.DEVNULL).returncode:
        # Without the role roles/logging.viewer, for example; the build itself goes on.
        print(f"the log of the build {build} cannot be shown; waiting for its end", flush=True)
    failures = 0
    while True:
        described = _probe(*gcloud, "describe", build, "--format=json")
        failures = failures + 1 if described.returncode else 0
        if failures == MAX_FAILED_POLLS:
            reason = " ".join(described.stderr.split())
            raise MfError(f"the build {build} of {name} goes on, but its state cannot be read: {reason}")
        record: dict[str, Any] = {} if failures else json.loads(described.stdout)
        if record.get("status", "UNKNOWN") not in BUILDING:
            break
        time.sleep(POLL_S)
    if record["status"] != "SUCCESS":
        log = f", its log: {record['logUrl']}" if record.get("logUrl") else ""
        raise MfError(f"Cloud Build could not build {name}: {record['status']}{log}")
    pushed = record.get("results", {}).get("images", [])
    digests: dict[str, str] = {image["name"]: image["digest"] for image in pushed}
    if name not in digests:
        raise MfError(f"the build {build} succeeded and pushed {', '.join(digests) or 'nothing'}, expected {name}")
    return digests[name]


def _run(*command: str, hint: str = "the lines above say why") -> None:
    """Runs a command with its output on the terminal; docker with BuildKit, which older versions have off."""
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    status = subprocess.run(command, stdin=subprocess.DEVNULL, env=environment).returncode
    if status:
        raise MfError(f"{_name(command)} ended with status {status}: {hint}")


def _output(*command: str) -> str:
    """Runs a command and returns its output; its error output goes to the terminal."""
    result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise MfError(f"{_name(command)} ended with status {result.returncode}: the lines above say why")
    return result.stdout.rstrip()


def _name(command: Sequence[str]) -> str:
    """The program and its subcommand: ``git status`` of ``git -C folder status --porcelain``."""
    words = [word for word in command if not word.startswith("-") and word != str(ROOT)]
    return " ".join(words[:2])
