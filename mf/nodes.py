"""The machines of one training, as Vertex AI names them in CLUSTER_SPEC."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from mf.errors import ConfigError

VARIABLE = "CLUSTER_SPEC"


@dataclass(frozen=True)
class Nodes:
    """The machines of one training, numbered 0 … count - 1; this one has number ``rank``.

    Attributes:
        address: "host:port" at which the first one listens for the others; empty where there is one.
    """

    rank: int = 0
    count: int = 1
    address: str = ""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Nodes":
        """The machines of this custom job on Vertex AI; elsewhere this one alone.

        The variable looks like {"cluster": {"workerpool0": ["host:port"], "workerpool1": ["host:port", …]}, "task":
        {"type": "workerpool1", "index": 0}}. The first machine is that of workerpool0.

        Raises:
            ConfigError: it looks otherwise.
        """
        text = environ.get(VARIABLE)
        if not text:
            return cls()
        try:
            spec = json.loads(text)
            pools = [(pool, [str(host) for host in spec["cluster"][pool]]) for pool in sorted(spec["cluster"])]
            hosts = [(pool, i, host) for pool, found in pools for i, host in enumerate(found)]
            own = spec["task"]["type"], int(spec["task"].get("index") or 0)
            if len(hosts) == 1:
                return cls()
            rank = [(pool, i) for pool, i, _ in hosts].index(own)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ConfigError(
                f"{VARIABLE}: found {text[:300]!r}, expected the hosts of each worker pool and which of them this "
                'machine is, as Vertex AI writes them: {"cluster": {"workerpool0": ["host:port"], …}, "task": {"type": '
                '"workerpool0", "index": 0}}'
            ) from None
        address = hosts[0][2]
        return cls(rank, len(hosts), address if ":" in address else f"{address}:2222")
