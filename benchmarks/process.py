"""A service in a process of its own, asked over real HTTP with as little client as there can be."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

START_SECONDS = 120.0
ANSWER_SECONDS = 600.0
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Answered:
    """What came back, and when.

    Args:
        body: As it was sent.
        seconds: From the request's first byte to the answer's last.
        timings: Seconds by the names of `Server-Timing`.
    """

    body: bytes
    seconds: float
    timings: dict[str, float]


@dataclass(frozen=True)
class Serving:
    """A service that is ready.

    Args:
        process: Its process.
        connection: Kept open.
        seconds: From its start until it said that it was ready.
    """

    process: subprocess.Popen[bytes]
    connection: HTTPConnection
    seconds: float

    @property
    def resident(self) -> int:
        """Bytes of its memory that are resident."""
        return resident(self.process.pid)

    @property
    def peak(self) -> int:
        """The most that was resident since the last `forget_peak`, in bytes."""
        return _status(self.process.pid, "VmHWM")

    def forget_peak(self) -> None:
        """Begin to look for the peak anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    @property
    def processor(self) -> float:
        """Seconds of the processor that it took so far, all threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def another(self) -> Serving:
        """The same service on a connection of its own."""
        port = self.connection.port
        return replace(self, connection=HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS))

    def ask(
        self, method: str, path: str, body: object = None, accept: str = "application/json"
    ) -> Answered:
        """Send a request and read the answer.

        Raises:
            RuntimeError: It was refused.
        """
        sent = None if body is None else json.dumps(body).encode()
        start = time.perf_counter()
        headers = {"Content-Type": "application/json", "Accept": accept}
        self.connection.request(method, path, sent, headers)
        response = self.connection.getresponse()
        answer = response.read()
        seconds = time.perf_counter() - start
        if response.status != 200:
            raise RuntimeError(f"{method} {path}: {response.status} {answer[:200]!r}")
        return Answered(answer, seconds, _timings(response.headers.get("Server-Timing", "")))


@contextmanager
def serving(**settings: object) -> Iterator[Serving]:
    """`deltaw serve` with these settings, from its start until the block is left.

    Raises:
        RuntimeError: It did not become ready.
    """
    port = _free_port()
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve"],
        env=_environment({"port": port, "log_format": "json", **settings}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        connection = HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
        _await_ready(connection, process, start + START_SECONDS)
        yield Serving(process, connection, time.perf_counter() - start)
    finally:
        process.terminate()
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def resident(pid: int) -> int:
    """Bytes of a process's memory that are resident, shared libraries included."""
    return _status(pid, "VmRSS")


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ProcessLookupError(pid)


def _await_ready(connection: HTTPConnection, process: subprocess.Popen[bytes], end: float) -> None:
    while time.perf_counter() < end and process.poll() is None:
        try:
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            response.read()
        except OSError:
            connection.close()
        else:
            if response.status == 200:
                return
        time.sleep(POLL_SECONDS)
    raise RuntimeError(f"the service did not become ready (exit code {process.poll()})")


def _environment(settings: dict[str, Any]) -> dict[str, str]:
    foreign = {name: value for name, value in os.environ.items() if not name.startswith("DELTAW_")}
    named = {f"DELTAW_{name.upper()}": str(value) for name, value in settings.items()}
    return {**foreign, "HF_HUB_OFFLINE": "1", **named}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _timings(header: str) -> dict[str, float]:
    """`name;dur=milliseconds, …` as seconds by name; entries that only describe are passed over."""
    parts = (part.strip().partition(";dur=") for part in header.split(","))
    return {name: float(duration) / 1000 for name, _, duration in parts if duration}
