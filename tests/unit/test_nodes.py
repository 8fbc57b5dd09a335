"""CLUSTER_SPEC as Vertex AI writes it."""

import json
from typing import Any

import pytest

from mf.errors import ConfigError
from mf.nodes import Nodes

HOSTS = {"workerpool0": ["a-0:2222"], "workerpool1": ["b-0:2222", "b-1:2222"]}


def spec(pool: str, index: int, cluster: dict[str, Any] = HOSTS) -> dict[str, str]:
    said = {"cluster": cluster, "environment": "cloud", "task": {"type": pool, "index": index}, "job": "{}"}
    return {"CLUSTER_SPEC": json.dumps(said), "RANK": "7", "WORLD_SIZE": "9"}


def test_machines_are_numbered_by_worker_pool_and_the_first_is_that_of_workerpool0() -> None:
    found = [Nodes.of(spec(*own)) for own in (("workerpool0", 0), ("workerpool1", 0), ("workerpool1", 1))]
    assert found == [Nodes(rank, 3, "a-0:2222") for rank in range(3)]


def test_a_first_machine_without_a_port_listens_where_vertex_opens_one() -> None:
    assert Nodes.of(spec("workerpool1", 0, {**HOSTS, "workerpool0": ["a-0"]})).address == "a-0:2222"


@pytest.mark.parametrize("environ", [{}, {"CLUSTER_SPEC": ""}, spec("workerpool0", 0, {"workerpool0": ["a-0:2222"]})])
def test_elsewhere_and_in_a_job_of_one_machine_there_is_one(environ: dict[str, str]) -> None:
    assert Nodes.of(environ) == Nodes()


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"cluster": 3, "task": {}}', json.dumps({"cluster": HOSTS, "task": {"type": "chief"}})]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"CLUSTER_SPEC: found .*, expected the hosts of each worker pool"):
        Nodes.of({"CLUSTER_SPEC": text})
