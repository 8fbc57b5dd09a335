"""Extracts the schema of the resources of ``infra/`` from npm's ``@cdktf/provider-google``, for ``google.json``.

npm pack @cdktf/provider-google@16.12.1 && tar xzf cdktf-provider-google-*.tgz package/.jsii
python tests/terraform/schema.py package/.jsii > tests/terraform/google.json
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

INFRA = Path(__file__).parents[2] / "infra"
# Arguments of Terraform itself, which every resource's class inherits.
BASE = {"connection", "count", "dependsOn", "forEach", "lifecycle", "provider", "provisioners"}
NAME = re.compile(r"\w#(\w+)\}")


def resources() -> set[str]:
    """The types of resources in ``infra/``."""
    text = "\n".join(file.read_text() for file in sorted(INFRA.glob("*.tf")))
    return set(re.findall(r'^resource "(\w+)"', text, re.MULTILINE))


def arguments(types: dict[str, Any], kind: str) -> dict[str, Any]:
    """Arguments of a class: whether each is required, and the arguments of a nested block."""
    found = {}
    for one in types[kind].get("properties", []):
        name = NAME.search(one.get("docs", {}).get("summary", "") + one.get("docs", {}).get("remarks", ""))
        if one["name"] in BASE or not name:
            continue
        nested = re.findall(rf'"({re.escape(types[kind]["assembly"])}\.[\w.]+)"', json.dumps(one["type"]))
        block = arguments(types, nested[0]) if nested else None
        found[name[1]] = {"required": not one.get("optional", False), "block": block}
    return found


def schema(jsii: Path) -> dict[str, Any]:
    """Schema by type of resource."""
    types = json.loads(jsii.read_bytes())["types"]
    by_snake = {}
    for kind in types:
        if kind.endswith("Config") and kind.count(".") == 2:
            name = kind.rpartition(".")[2].removesuffix("Config")
            by_snake["google_" + re.sub(r"(?<=.)(?=[A-Z])", "_", name).lower()] = kind
    return {name: arguments(types, by_snake[name]) for name in sorted(resources())}


if __name__ == "__main__":
    print(json.dumps(schema(Path(sys.argv[1])), indent=1, sort_keys=True))
