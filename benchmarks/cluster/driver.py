"""`python -m benchmarks.cluster.driver`: a Ray cluster that is controlled through stdin.

`benchmarks.cluster.ray` starts this program with the interpreter that has Ray. Each line of stdin
is a JSON object with a `command` and its arguments. Each answer is a line of stdout: `{"answer":
…}` or `{"error": …}`. The cluster stops when stdin ends, so it does not outlive the process that
started it.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.serve._private.api import serve_start
from ray.serve.config import ProxyLocation
from ray.serve.schema import ServeDeploySchema

from benchmarks.cluster.processes import adopt_orphans, kill_descendants

OBJECT_STORE_BYTES = 80_000_000
"""Bytes of a node's object store. Ray refuses less than 75 MB."""
Answer = dict[str, Any] | list[dict[str, Any]] | None


class Driver:
    """A cluster of simulated nodes with Ray Serve.

    Args:
        cpus: CPUs that each node declares. The first node is the head; it has the resource `head`.
        port: Port of the HTTP proxy of the head, on 127.0.0.1.
    """

    def __init__(self, cpus: list[float], port: int) -> None:
        self._cluster = Cluster()
        for count in cpus:
            self.add_node(count)
        ray.init(
            address=self._cluster.address,
            namespace="serve",
            log_to_driver=False,
            logging_level="ERROR",
        )
        self._client = serve_start(
            http_options={"host": "127.0.0.1", "port": port},
            proxy_location=ProxyLocation.HeadOnly,
        )

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Deploy a configuration, as `serve run` does with its file, but return at once."""
        self._client.deploy_apps(ServeDeploySchema.model_validate(config), _blocking=False)

    def status(self) -> Answer:
        """Return the status of each application, with its deployments and their replicas."""
        details = self._client.get_serve_details()
        return {"applications": json.loads(json.dumps(details["applications"], default=str))}

    def add_node(self, cpus: float) -> Answer:
        """Add a node, and return its id."""
        node = self._cluster.add_node(
            num_cpus=cpus,
            resources={} if self._cluster.head_node else {"head": 1},
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
        )
        return {"node_id": node.node_id}

    def remove_node(self, node_id: str) -> None:
        """Kill all processes of a node at once, as a power failure does."""
        (node,) = (one for one in self._cluster.worker_nodes if one.node_id == node_id)
        self._cluster.remove_node(node, allow_graceful=False)

    def stop(self) -> None:
        """Stop the processes of all nodes."""
        ray.shutdown()
        self._cluster.shutdown()


def main() -> None:
    """Start the cluster, carry out commands until stdin ends, and stop the cluster."""
    adopt_orphans()
    # Ray and its children write to stdout as well, so the answers have a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    options = json.loads(sys.argv[1])
    driver: Driver | None = None
    try:
        driver = Driver(options["cpus"], options["port"])
        print(json.dumps({"answer": None}), file=answers)
        for line in sys.stdin:
            asked = json.loads(line)
            command: Callable[..., Answer] = getattr(driver, asked.pop("command"))
            try:
                found: dict[str, Any] = {"answer": command(**asked)}
            except Exception as error:
                traceback.print_exc()
                found = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(found), file=answers)
    finally:
        if driver is not None:
            driver.stop()
        kill_descendants(os.getpid())


if __name__ == "__main__":
    main()
