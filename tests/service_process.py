"""A real server in a process of its own, for tests over real HTTP."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

START_SECONDS = 120.0


@dataclass(frozen=True)
class Served:
    """A server that runs.

    Args:
        url: Its base address.
        process: Its process.
        log: The file of everything that it prints.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def served(
    ready: bool = True,
    port: int | None = None,
    prints_to: IO[bytes] | None = None,
    **settings: object,
) -> Iterator[Served]:
    """`deltaw serve` with these settings in its environment, ready unless asked otherwise.

    Args:
        ready: Whether to wait until it is.
        port: Of the service; a free one by default.
        prints_to: Where its output goes instead of the log.
        settings: By their names.
    """
    port = port or free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DELTAW_")},
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "DELTAW_PORT": str(port),
        "DELTAW_LOG_FORMAT": "json",
        **{f"DELTAW_{name.upper()}": str(value) for name, value in settings.items()},
    }
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "service.cli", "serve"]
    with tempfile.NamedTemporaryFile(prefix="deltaw-", suffix=".log") as log:
        out = prints_to or log
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
    """Wait until `/readyz` says so.

    Raises:
        AssertionError: The process ended, or time did.
    """
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert running.process.poll() is None, running.log.read_text()
        try:
            if httpx.get(f"{running.url}/readyz").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the service did not become ready")
