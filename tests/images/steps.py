"""Runs the pipeline on the sample with every step in a container, with the compiled file's commands and images.

Then lists the libraries in the image that no step imports.

    python tests/images/steps.py COMPILED.yaml
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from kfp.local.status import Status  # noqa: E402
from kfp.local.subprocess_task_handler import SubprocessTaskHandler  # noqa: E402

from pipelines.laptop import run as laptop  # noqa: E402
from pipelines.laptop import sources  # noqa: E402

# Libraries that stay in the image although no step of this run imports them.
KEPT = {
    "contourpy": "matplotlib's, for its contour plots",
    "google-crc32c": "google-cloud-storage's, when it downloads a file",
    **dict.fromkeys(("colorlog", "optuna", "PyYAML"), "for a sweep, which this run has none of"),
    **dict.fromkeys(("filelock", "fsspec", "mpmath", "networkx", "sympy"), "torch's, when it traces or compiles"),
}
TRACED = "import time:"  # prefix of Python's lines for imported modules


class Containers:
    """Replaces the processes of kfp.local, which still writes a step's input and reads its output."""

    def __init__(self, compiled: Path, shared: Path) -> None:
        executors = yaml.safe_load(compiled.read_text())["deploymentSpec"]["executors"].values()
        self.images = {tuple(e["container"]["command"]): e["container"]["image"] for e in executors}
        self.shared = shared
        self.modules: set[str] = set()

    def run(self, step: SubprocessTaskHandler) -> Status:
        """Runs a step and records its imports."""
        (image,) = [i for command, i in self.images.items() if step.full_command[: len(command)] == list(command)]
        environment = ["PYTHONPROFILEIMPORTTIME=1", "SUPABASE_URL", "SUPABASE_KEY"]
        command = ["podman", "run", "--rm", "--network=host", f"--volume={self.shared}:{self.shared}"]
        command += [f"--env={variable}" for variable in environment]
        with subprocess.Popen(
            [*command, image, *step.full_command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as container:
            assert container.stdout
            for line in container.stdout:
                if TRACED in line:
                    self.modules.add(line.rpartition("|")[2].strip())
                else:
                    print(line, end="", flush=True)
        return Status.SUCCESS if container.returncode == 0 else Status.FAILURE


def unused(image: str, imported: set[str]) -> list[str]:
    """The distributions in an image that neither a step nor any import in the image's code uses."""
    program = Path(__file__).with_name("imports.py").read_text()
    result = subprocess.run(
        ["podman", "run", "--rm", "-i", image, "python3", "-"], input=program, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    modules = json.loads(result.stdout.splitlines()[-1])
    imported = imported.union(modules["imported"])
    return sorted(name for name, own in modules["distributions"].items() if not imported.intersection(own))


def main(compiled: Path) -> None:
    # The container has another user, who must be able to write to these folders.
    os.umask(0)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as temporary:
        home = Path(temporary)
        home.chmod(0o755)
        containers = Containers(compiled, home)
        SubprocessTaskHandler.run = lambda step: containers.run(step)
        laptop.run(sources.sample_source(home), {}, home)
    (image, *_) = containers.images.values()
    left = unused(image, containers.modules)
    print(f"\n{len(containers.modules):,} modules imported by the steps; libraries in the image that no step imports:")
    print("\n".join(f"  {name:<15} {KEPT.get(name, '')}" for name in left))
    if surplus := [name for name in left if name not in KEPT]:
        sys.exit(f"error: remove {', '.join(surplus)} from requirements/image.lock")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
