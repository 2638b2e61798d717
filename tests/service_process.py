"""A real server in a separate process, for tests over HTTP."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

START_SECONDS = 120.0
SERVER = "DELTAW_TEST_SERVER"
"""Environment variable that lets `served` start another server: `ray` for Ray Serve."""


@dataclass(frozen=True)
class Served:
    """A running server.

    Args:
        url: Base URL.
        process: Process of the server.
        log: File that receives all its output, or a pattern of several in the file's place.
    """

    url: str
    process: subprocess.Popen[Any]
    log: Path

    @property
    def output(self) -> str:
        """Everything printed so far."""
        files = sorted(self.log.parent.glob(self.log.name))
        return "".join(file.read_text() for file in files)


def free_port() -> int:
    """A port on which no process listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def served(
    ready: bool = True,
    port: int | None = None,
    prints_to: IO[bytes] | None = None,
    variables: Mapping[str, str] | None = None,
    **settings: object,
) -> Iterator[Served]:
    """Run `deltaw serve` with these settings in its environment, and kill it at the end.

    By default its adapters are in a folder of their own, which is removed.

    Args:
        ready: Whether to wait until the service is ready (default true).
        port: Port of the service (default a free one).
        prints_to: File for its output (default the log).
        variables: Further environment variables.
        settings: Settings by their names.
    """
    if os.environ.get(SERVER) == "ray":
        assert ready
        assert (port, prints_to) == (None, None)
        from tests.fleet.served import served_by_ray

        with served_by_ray(variables or {}, settings) as running:
            yield running
        return
    port = port or free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DELTAW_")},
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "DELTAW_PORT": str(port),
        "DELTAW_LOG_FORMAT": "json",
        **{f"DELTAW_{name.upper()}": str(value) for name, value in settings.items()},
        **(variables or {}),
    }
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "service.cli", "serve"]
    with (
        tempfile.NamedTemporaryFile(prefix="deltaw-", suffix=".log") as log,
        tempfile.TemporaryDirectory(prefix="deltaw-") as data,
    ):
        out = prints_to or log
        environment["XDG_DATA_HOME"] = data
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        running = Served(url, process, Path(log.name))
        try:
            if ready:
                await_ready(running)
            yield running
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def await_ready(running: Served) -> None:
    """Wait until `/readyz` returns success.

    Raises:
        AssertionError: The process ended, or the service was not ready within 120 seconds.
    """
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert running.process.poll() is None, running.output
        try:
            if httpx.get(f"{running.url}/readyz").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the service did not become ready")
