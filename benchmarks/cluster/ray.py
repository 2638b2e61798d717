"""Ray Serve in separate processes, which this module starts, controls and stops.

This module does not need Ray. `benchmarks.cluster.driver` does, and runs in another interpreter.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

from benchmarks.cluster.environment import INTERPRETER, PORTS, ROOT, environment, interpreter
from benchmarks.cluster.processes import free_ports, kill_holders

SERVE_FILE = ROOT / "deploy/ray/serve.yaml"
APPLICATION, FRONT, MODEL = "deltaw", "front", "model"
START_SECONDS, STOP_SECONDS, POLL_SECONDS = 240.0, 30.0, 0.1
Config = Mapping[str, Any]


class Replica(NamedTuple):
    """A running replica: its deployment, id, process and node."""

    deployment: str
    id: str
    pid: int
    node_id: str


class NotDeployed(RuntimeError):
    """Serve gave up on an application. The message is the one that `serve status` shows."""


@dataclass(frozen=True)
class Fleet:
    """A running cluster with Ray Serve.

    Args:
        url: URL of the service.
        process: Process of the driver.
        log: File with the output of the driver and of Ray.
        folder: Folder of Ray's session.
    """

    url: str
    process: subprocess.Popen[str]
    log: Path
    folder: Path

    def command(self, name: str, **arguments: Any) -> Any:
        """Let the driver carry out a command, and return its answer.

        Raises:
            RuntimeError: The command failed, or the driver ended.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"command": name, **arguments}) + "\n")
        self.process.stdin.flush()
        return _answer(self.process, self.log)

    def deploy(self, config: Config) -> None:
        """Deploy a configuration, and wait until its application runs.

        Raises:
            NotDeployed: Serve gave up on the application.
        """
        self.command("deploy", config=config)
        self.await_running(config["applications"][0]["name"])

    def application(self, name: str = APPLICATION) -> Mapping[str, Any]:
        """Return an application's status, as `serve status` shows it; `{}` if there is none."""
        found: Mapping[str, Any] = self.command("status")["applications"]
        return dict(found.get(name, {}))

    def reasons(self, name: str = APPLICATION) -> str:
        """Return the messages in the status of an application and its deployments."""
        application = self.application(name)
        parts = [application, *application.get("deployments", {}).values()]
        return "\n".join(part["message"] for part in parts if part.get("message"))

    def await_running(self, name: str = APPLICATION) -> None:
        """Wait until an application runs.

        Raises:
            NotDeployed: Serve gave up on it.
        """

        def running() -> bool:
            status = self.application(name).get("status")
            if status == "DEPLOY_FAILED":
                raise NotDeployed(self.reasons(name))
            return status == "RUNNING"

        wait_until(running)

    def replicas(self, deployment: str | None = None, name: str = APPLICATION) -> list[Replica]:
        """Return the running replicas of a deployment, or of all deployments."""
        return [
            Replica(found["name"], replica["replica_id"], replica["pid"], replica["node_id"])
            for found in self.application(name).get("deployments", {}).values()
            for replica in found["replicas"]
            if replica["state"] == "RUNNING" and deployment in (None, found["name"])
        ]

    def kill(self, replica: Replica) -> None:
        """Send SIGKILL to a replica's process."""
        os.kill(replica.pid, signal.SIGKILL)

    def await_replaced(self, old: Sequence[Replica], count: int) -> None:
        """Wait until none of the old replicas runs and their deployment has `count` others."""
        gone, deployment = {one.id for one in old}, old[0].deployment

        def replaced() -> bool:
            ids = {one.id for one in self.replicas(deployment)}
            return len(ids) == count and not ids & gone

        wait_until(replaced)

    def await_replicas(self, count: int, deployment: str = MODEL) -> None:
        """Wait until a deployment has `count` running replicas."""
        wait_until(lambda: len(self.replicas(deployment)) == count)

    def add_node(self, cpus: float) -> str:
        """Add a simulated node, and return its id."""
        return str(self.command("add_node", cpus=cpus)["node_id"])

    def remove_node(self, node_id: str) -> None:
        """Kill all processes of a simulated node at once."""
        self.command("remove_node", node_id=node_id)


def configuration(
    name: str = APPLICATION,
    model: Config | None = None,
    front: Config | None = None,
    settings: Config | None = None,
) -> Config:
    """Return the configuration in `deploy/ray/serve.yaml`, with other options and settings.

    Args:
        name: Name of the application.
        model: Options of the deployment `model`. A value of None selects Serve's default.
        front: Options of the deployment `front`, likewise.
        settings: Settings of the model by name.
    """
    config: dict[str, Any] = yaml.safe_load(SERVE_FILE.read_text())
    (application,) = config["applications"]
    application["name"] = name
    application["args"]["models"][0] |= settings or {}
    others = {MODEL: model or {}, FRONT: front or {}}
    for deployment in application["deployments"]:
        options = deployment | others[deployment["name"]]
        if "num_replicas" in others[deployment["name"]]:
            options["autoscaling_config"] = None
        deployment.clear()
        deployment |= {key: value for key, value in options.items() if value is not None}
    return config


@contextmanager
def running_fleet(
    nodes: Sequence[float] = (2.0,),
    device_seconds: float = 0.0,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Fleet]:
    """Start Ray Serve on a cluster, without an application. Stop both when the block ends.

    The cluster also stops if this process is killed.

    Args:
        nodes: CPUs that each simulated node declares. The first node is the head.
        device_seconds: Seconds that a forward pass takes on the emulated device; 0 emulates none.
        variables: Further environment variables.

    Raises:
        RuntimeError: There is no interpreter with Ray, or the cluster did not start.
    """
    python = interpreter()
    if python is None:
        raise RuntimeError(f"no interpreter with Ray: run `make fleet`, or set {INTERPRETER}")
    port = free_ports(PORTS)
    with tempfile.TemporaryDirectory(prefix="dwf-", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "driver.log")
        options = json.dumps({"cpus": list(nodes), "port": port})
        with log.open("w") as output:
            process = subprocess.Popen(
                [python, "-m", "benchmarks.cluster.driver", options],
                cwd=ROOT,
                env=environment(python, Path(folder), port, device_seconds) | dict(variables or {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                start_new_session=True,
            )
        fleet = Fleet(f"http://127.0.0.1:{port}", process, log, Path(folder))
        try:
            _answer(process, log)
            yield fleet
        finally:
            _stop(fleet)


def wait_until(true: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    """Wait until a condition is true.

    Raises:
        TimeoutError: The condition was not true within `seconds`.
    """
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"the condition was not true within {seconds:g} s")
        time.sleep(POLL_SECONDS)


def _answer(process: subprocess.Popen[str], log: Path) -> Any:
    """Read the driver's next answer.

    Raises:
        RuntimeError: The answer is an error, or the driver ended.
    """
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the driver ended:\n{log.read_text()[-2000:]}")
    found = json.loads(line)
    if "error" in found:
        raise RuntimeError(found["error"])
    return found["answer"]


def _stop(fleet: Fleet) -> None:
    """Stop the driver, which stops its cluster. Kill what is left of both, even if the driver was
    killed."""
    process = fleet.process
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError, subprocess.TimeoutExpired):
        process.stdin.close()
        process.wait(STOP_SECONDS)
    kill_holders(f"RAY_TMPDIR={fleet.folder}")
    process.wait()
    process.stdout.close()
