"""Runs the pipeline on the sample with every step in its container, the way KFP runs it: the command, the arguments and
the image are those of the compiled file. Ends by naming the libraries in the image that no step imports.

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

# Imported by no step of this run and left in the image all the same.
KEPT = {
    "contourpy": "matplotlib's, for its contour plots",
    "google-crc32c": "google-cloud-storage's, when it fetches a file",
    **dict.fromkeys(("filelock", "fsspec", "mpmath", "networkx", "sympy"), "torch's, when it traces or compiles"),
}
TRACED = "import time:"  # begins a line that Python writes for every module that it imports, when asked to


class Containers:
    """What kfp.local is given in place of its processes; it still makes the input of a step and reads its output."""

    def __init__(self, compiled: Path, shared: Path) -> None:
        executors = yaml.safe_load(compiled.read_text())["deploymentSpec"]["executors"].values()
        self.images = {tuple(e["container"]["command"]): e["container"]["image"] for e in executors}
        self.shared = shared
        self.modules: set[str] = set()

    def run(self, step: SubprocessTaskHandler) -> Status:
        """Runs a step; notes what it imports."""
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
    """The distributions in an image of which neither a step nor any line of the image's code imported a module."""
    program = Path(__file__).with_name("imports.py").read_text()
    done = subprocess.run(
        ["podman", "run", "--rm", "-i", image, "python3", "-"], input=program, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    imported = imported.union(answer["imported"])
    return sorted(name for name, modules in answer["distributions"].items() if not imported.intersection(modules))


def main(compiled: Path) -> None:
    # The container's user is not this one, and has to write beside what this one writes.
    os.umask(0)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as temporary:
        home = Path(temporary)
        home.chmod(0o755)
        containers = Containers(compiled, home)
        SubprocessTaskHandler.run = lambda step: containers.run(step)
        laptop.run(sources.sample_source(home), {}, home)
    (image, *_) = containers.images.values()
    left = unused(image, containers.modules)
    print(f"\n{len(containers.modules):,} modules imported by the steps; in the image and imported by none:")
    print("\n".join(f"  {name:<15} {KEPT.get(name, '')}" for name in left))
    if surplus := [name for name in left if name not in KEPT]:
        sys.exit(f"error: take {', '.join(surplus)} out of requirements/image.lock")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
