"""Environment of a Ray cluster: its interpreter, and the variables of its nodes."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
INTERPRETER = "DELTAW_FLEET_PYTHON"
"""Environment variable for the interpreter that has Ray (default `.venv/fleet/bin/python`)."""
REPLICA_PORTS = 40
"""Number of ports for the replicas of a cluster. Serve does not reuse a port for 150 s."""
PORTS = 4 + REPLICA_PORTS
"""Number of ports of a cluster: the service, HAProxy's own pages, the fallback, the replicas."""


def interpreter() -> Path | None:
    """Return the interpreter that has Ray; None if it does not exist."""
    given = os.environ.get(INTERPRETER)
    found = Path(given) if given else Path(sys.prefix) / "fleet/bin/python"
    return found if found.exists() else None


def environment(python: Path, folder: Path, port: int, device_seconds: float) -> dict[str, str]:
    """Return the environment of a cluster: the variables of `deploy/ray/ray.env`, and a token,
    files and ports that no other cluster uses.

    Args:
        python: Interpreter that has Ray.
        folder: Folder of the cluster's files.
        port: The first of `PORTS` free ports. The service listens on it.
        device_seconds: Seconds that a forward pass takes on the emulated device; 0 emulates none.
    """
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DELTAW_", "RAY_"))
    }
    paths = [str(ROOT)]
    if device_seconds:
        paths.append(str(Path(__file__).parent / "emulation"))
        own["EMULATED_DEVICE_SECONDS"] = str(device_seconds)
    first = port + PORTS - REPLICA_PORTS
    haproxy = {
        "CONFIG_FILE_LOC": folder / "haproxy/haproxy.cfg",
        "SOCKET_PATH": folder / "haproxy/admin.sock",
        "METRICS_SOCKET_PATH": folder / "haproxy/metrics.sock",
        "SERVER_STATE_BASE": folder / "haproxy",
        "SERVER_STATE_FILE": folder / "haproxy/server-state",
        "STATS_PORT": port + 1,
        "METRICS_PORT": port + 2,
    }
    return {
        **own,
        **_variables_of_nodes(),
        "PATH": os.pathsep.join([str(python.parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "XDG_DATA_HOME": str(folder / "data"),
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": str(folder),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(port + 3),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(port + PORTS - 1),
        **{f"RAY_SERVE_HAPROXY_{name}": str(value) for name, value in haproxy.items()},
    }


def _variables_of_nodes() -> dict[str, str]:
    """Return the variables that `deploy/ray/ray.env` sets when a shell reads it, as users do."""
    command = "set -a; . deploy/ray/ray.env; env -0"
    said = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, env={}, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    variables = dict(line.split("=", 1) for line in said.split("\0") if line)
    return {name: value for name, value in variables.items() if name.startswith("RAY_")}
