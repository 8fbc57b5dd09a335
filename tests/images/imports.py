"""Runs in an image, from standard input: imports everything that the image's code imports, inside functions too.

Prints as JSON the imported modules and the modules of each installed distribution.
"""

import ast
import contextlib
import importlib
import importlib.metadata
import json
import sys
from pathlib import Path

import mf


def imports(file):
    """The modules in a file's imports; for ``from a import b`` both ``a`` and ``a.b``, which may be a module."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(distribution):
    """The module names of a distribution's files."""
    for path in distribution.files or ():
        if path.suffix in (".py", ".so"):
            parts = [*path.parts[:-1], path.name.partition(".")[0]]
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


(folder,) = map(Path, mf.__path__)
for name in {name for file in folder.rglob("*.py") for name in imports(file)}:
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module(name)
found = {
    d.metadata["Name"]: list(modules(d))
    for d in importlib.metadata.distributions()
    if "/opt/" in str(d.locate_file(""))
}
print(json.dumps({"imported": list(sys.modules), "distributions": found}))
