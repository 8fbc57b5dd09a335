"""The images of the steps: built by docker or podman, else by Cloud Build; pushed; named by digest in the settings."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from mf.errors import ConfigError, MfError
from mf.version import git_sha
from pipelines.settings import Settings

ROOT = Path(__file__).parents[2]
KINDS = ("cpu", "gpu")
PLATFORM = "linux/amd64"  # of Vertex AI's machines
SOURCES = (".dockerignore", "LICENSE", "images", "mf", "requirements")  # what an image is made of
# Where pip finds packages, as far as it is told by the machine and not on its command line.
PIP_OPTIONS = ("index-url", "extra-index-url", "find-links", "trusted-host", "cert", "client-cert", "proxy", "timeout")


def make_images(
    settings: Settings, *, cpu_only: bool = False, base_image: str = "", torch_index: str = ""
) -> dict[str, str]:
    """Builds and pushes the images of the checkout's commit, and prints each one's size by layer.

    Args:
        settings: where to.
        cpu_only: make one image for all steps, for a pipeline that trains without a GPU.
        base_image: what they start from; the Dockerfile's own when empty.
        torch_index: address of an index of CPU builds of torch, for a smaller CPU image.

    Returns:
        The settings ``cpu_image`` and ``gpu_image``: ``repository/name@sha256:…`` each.

    Raises:
        ConfigError: no repository is set, or files of the images are not committed.
        MfError: there is nothing to build with, or it failed.
    """
    if "/" not in settings.image_repository:
        raise ConfigError(
            f"image_repository is {settings.image_repository!r}, expected where images are pushed to, such as "
            "europe-west4-docker.pkg.dev/PROJECT/mf: set it in pipelines/settings.toml"
        )
    sha = commit()
    names = {kind: f"{settings.image_repository}/mf-python-{kind}:{sha}" for kind in KINDS[: 1 if cpu_only else 2]}
    arguments = {"GIT_SHA": sha, **({"BASE_IMAGE": base_image} if base_image else {})}
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "source.tgz"
        # The commit and not the folder: what lies about in it, a key say, is not even sent to the builder.
        _run("git", "-C", str(ROOT), "archive", "--format=tar.gz", f"--output={source}", "HEAD", *SOURCES)
        if engine := find_engine():
            digests = build_here(engine, source, names, arguments, torch_index)
        else:
            digests = build_in_cloud(source, names, arguments, torch_index, settings.project)
    for kind, name in names.items():
        print(f"\n{name}\n  {digests[kind]}")
        if engine:  # Cloud Build has it in its log
            print("\n".join(f"  {size:>9,.1f} MB  {made}" for size, made in layers(engine, name)))
    pinned = [f"{name.rpartition(':')[0]}@{digests[kind]}" for kind, name in names.items()]
    return {"cpu_image": pinned[0], "gpu_image": pinned[-1]}


def commit() -> str:
    """The commit of the checkout, which the images are tagged with.

    Raises:
        ConfigError: a file of the images is not in it, or this is no checkout.
    """
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--", *SOURCES).splitlines()
    if changed:
        raise ConfigError(
            f"{len(changed)} of the images' files differ from the last commit, {changed[0][3:]} first: commit them, "
            "so that an image's tag says what is in it"
        )
    return git_sha().removesuffix("-dirty")


def find_engine() -> str:
    """``docker`` or ``podman``, the first that is installed and works here; empty when neither does."""
    for name in ("docker", "podman"):
        if shutil.which(name) and not subprocess.run([name, "images", "--quiet"], capture_output=True).returncode:
            return name
    return ""


def build_here(
    engine: str, source: Path, names: Mapping[str, str], arguments: Mapping[str, str], torch_index: str
) -> dict[str, str]:
    """Builds and pushes with docker or podman; gives kind to digest."""
    folder = source.parent / "source"
    shutil.unpack_archive(source, folder)
    configuration, paths = pip_configuration(torch_index, with_paths=engine == "podman")
    secret = source.with_name("pip.conf")
    secret.write_text(configuration)
    build = [engine, "build", f"--platform={PLATFORM}", f"--file={folder}/images/Dockerfile"]
    build += [f"--secret=id=pip,src={secret}"]
    build += ["--jobs=0"] if engine == "podman" else []  # stages that need nothing of one another at the same time
    build += [f"--volume={path}:{path}:ro" for path in paths]
    build += [f"--build-arg={name}={value}" for name, value in arguments.items()]
    for kind, name in names.items():
        _run(*build, f"--build-arg=KIND={kind}", f"--tag={name}", str(folder))
    return {kind: push(engine, name) for kind, name in names.items()}


def push(engine: str, name: str) -> str:
    """Pushes an image; gives the digest under which the registry has it."""
    hint = f"may this machine push there? gcloud auth configure-docker {name.partition('/')[0]}"
    if engine == "podman":
        # Its digest of the local image is another one: that of layers that are not compressed.
        with tempfile.NamedTemporaryFile("r") as digest:
            _run(engine, "push", f"--digestfile={digest.name}", name, hint=hint)
            return Path(digest.name).read_text().strip()
    _run(engine, "push", name, hint=hint)
    pushed: list[str] = json.loads(_output(engine, "inspect", "--format={{json .RepoDigests}}", name))
    repository = name.rpartition(":")[0]
    return next(digest.partition("@")[2] for digest in pushed if digest.startswith(f"{repository}@"))


def layers(engine: str, name: str) -> list[tuple[float, str]]:
    """The size in MB of each layer that holds something and what made it, the first one first."""
    listing = _output(engine, "history", "--no-trunc", "--format={{.Size}}\t{{.CreatedBy}}", name).splitlines()
    found = []
    for size, _, made in (line.partition("\t") for line in reversed(listing)):
        number, unit = re.fullmatch(r"([\d.]+) ?([kMG]?)B", size).groups()  # type: ignore[union-attr]
        megabytes = float(number) * {"": 1e-6, "k": 1e-3, "M": 1, "G": 1e3}[unit]
        if megabytes >= 0.05:
            found.append((megabytes, re.sub(r"^/bin/sh -c (#\(nop\) )?", "", made).strip()[:90]))
    return found


def pip_configuration(torch_index: str, with_paths: bool) -> tuple[str, list[Path]]:
    """What this machine's pip is told of where packages lie, as a ``pip.conf``, and the local files and folders in it.

    Args:
        torch_index: one more index, or empty.
        with_paths: whether the build can be shown files of this machine; without, what names one is left out.
    """
    lines = _output(sys.executable, "-m", "pip", "config", "list").splitlines()
    listed = {key: ast.literal_eval(value) for key, _, value in (line.partition("=") for line in lines)}
    paths: set[Path] = set()
    configuration = "[global]\n"
    for option in PIP_OPTIONS:
        given = [listed.get(f"{section}.{option}") for section in (":env:", "install", "global")]
        words = next(filter(None, given), "").split()
        if option == "extra-index-url" and torch_index:
            words.append(torch_index)
        local = [word for word in words if word.startswith(("/", "file:///"))]
        if with_paths:
            # The pages of an index on disk refer to files beside it.
            found = [Path(w) if w.startswith("/") else Path(w.removeprefix("file://")).parent for w in local]
            paths.update(path for path in found if path.exists())
        else:
            words = [word for word in words if word not in local]
        if words:
            configuration += f"{option} = {' '.join(words)}\n"
    return configuration, sorted(paths)


def build_in_cloud(
    source: Path, names: Mapping[str, str], arguments: Mapping[str, str], torch_index: str, project: str
) -> dict[str, str]:
    """Has Cloud Build build and push; gives kind to digest."""
    if not shutil.which("gcloud"):
        raise MfError("found neither a docker nor a podman that works, nor gcloud for Cloud Build: install one of them")
    if not project:
        raise ConfigError("project is empty, which Cloud Build needs: set it in pipelines/settings.toml")
    gcloud = ["gcloud", "builds", f"--project={project}"]
    submitted = {}
    for kind, name in names.items():
        values = {"IMAGE": name, "KIND": kind, "TORCH_INDEX": torch_index, "BASE_IMAGE": "", **arguments}
        substitutions = ",".join(f"_{key}={value}" for key, value in values.items())
        submitted[kind] = _output(
            *gcloud, "submit", str(source), f"--config={ROOT}/images/cloudbuild.yaml", "--async", "--format=value(id)",
            f"--substitutions={substitutions}",
        )  # fmt: skip
    return {kind: _digest_of_build(gcloud, build, names[kind]) for kind, build in submitted.items()}


def _digest_of_build(gcloud: Sequence[str], build: str, name: str) -> str:
    """Waits for a build, showing its log."""
    _run(*gcloud, "log", "--stream", build)
    ended = json.loads(_output(*gcloud, "describe", build, "--format=json"))
    if ended["status"] != "SUCCESS":
        raise MfError(f"Cloud Build could not build {name}: {ended['status']}, its log: {ended.get('logUrl')}")
    digests: dict[str, str] = {image["name"]: image["digest"] for image in ended["results"]["images"]}
    return digests[name]


def _run(*command: str, hint: str = "the lines above say why") -> None:
    """Runs a command whose output the user sees."""
    status = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    if status:
        raise MfError(f"{' '.join(command[:2])} ended with status {status}: {hint}")


def _output(*command: str) -> str:
    """What a command prints; its complaints go to the user."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise MfError(f"{' '.join(command[:2])} ended with status {done.returncode}: the lines above say why")
    return done.stdout.rstrip()
