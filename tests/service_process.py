"""A real server in a process of its own, for tests over real HTTP."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

START_SECONDS = 60.0


@dataclass(frozen=True)
class Served:
    """A server that runs.

    Args:
        url: Its base address.
        process: Its process.
    """

    url: str
    process: subprocess.Popen[str]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def served(ready: bool = True, **settings: object) -> Iterator[Served]:
    """`deltaw serve` with these settings in its environment, ready unless asked otherwise."""
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DELTAW_")},
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "DELTAW_PORT": str(port),
        "DELTAW_LOG_FORMAT": "json",
        **{f"DELTAW_{name.upper()}": str(value) for name, value in settings.items()},
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        if ready:
            await_ready(url, process)
        yield Served(url, process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def await_ready(url: str, process: subprocess.Popen[str]) -> None:
    """Wait until `/readyz` says so.

    Raises:
        AssertionError: The process ended, or time did.
    """
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[0]
        try:
            if httpx.get(f"{url}/readyz").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the service did not become ready")
