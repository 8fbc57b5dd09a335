"""A step as Vertex AI starts it: the component's own command, with KFP's input to it, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def executor_input(
    component: Any, folder: Path, inputs: dict[str, Path | tuple[Path, dict[str, Any]]], **parameters: Any
) -> dict[str, Any]:
    """What KFP gives a step whose outputs go to ``folder``; an input is a path, or a path and its metadata."""
    spec = component.component_spec

    def artifact(name: str, kind: str, path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
        title, _, version = kind.partition("@")
        kinds = {"schemaTitle": title, "schemaVersion": version}
        return {"artifacts": [{"name": name, "type": kinds, "uri": str(path), "metadata": metadata}]}

    given = {name: value if isinstance(value, tuple) else (value, {}) for name, value in inputs.items()}
    made = {name: output for name, output in (spec.outputs or {}).items() if "@" in output.type}
    texts = {name: {"outputFile": str(folder / name)} for name in (spec.outputs or {}) if name not in made}
    return {
        "inputs": {
            "parameterValues": parameters,
            "artifacts": {name: artifact(name, spec.inputs[name].type, *value) for name, value in given.items()},
        },
        "outputs": {
            "parameters": texts,
            "artifacts": {name: artifact(name, made[name].type, folder / name, {}) for name in made},
            "outputFile": str(folder / "executor_output.json"),
        },
    }


def started(component: Any, given: dict[str, Any], folder: Path, **environ: str) -> "subprocess.Popen[str]":
    """The step's process, the leader of a group of its own; what it prints to both streams comes as one."""
    container = component.component_spec.implementation.container
    values = {"{{$}}": json.dumps(given)}
    folder.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    python_path = os.pathsep.join(filter(None, [environ.pop("PYTHONPATH", ""), str(ROOT)]))
    return subprocess.Popen(
        [values.get(str(word), str(word)) for word in [*container.command, *container.args]],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": python_path, "TMPDIR": str(folder), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def output(folder: Path) -> dict[str, Any]:
    """What the step told KFP of its outputs."""
    return json.loads((folder / "executor_output.json").read_text())
