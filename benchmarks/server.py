"""A service in a process of its own, with the least HTTP client that Python has."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks.timing import Seconds

START_SECONDS = 120.0
ANSWER_SECONDS = 600.0
STOP_SECONDS = 60.0
POLL_SECONDS = 0.02
BUSY = (429, 503)
"""Statuses after which a request is sent again, after `Retry-After`."""
RETRY_SECONDS = 1.0
"""Seconds until a request is sent again if the answer has no `Retry-After`."""
JSON, NDJSON = "application/json", "application/x-ndjson"


class Request(NamedTuple):
    """A POST request: path and JSON body."""

    path: str
    body: Any


@dataclass(frozen=True)
class Answer:
    """An answer with status 200.

    Args:
        body: Its bytes.
        seconds: Seconds from the request's first byte to the answer's last, retries included.
        timings: Seconds by the names of `Server-Timing`.
    """

    body: bytes
    seconds: float
    timings: dict[str, float]

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Server:
    """A running service; each thread that sends requests has a connection that stays open.

    Args:
        process: Its process.
        port: Its port on 127.0.0.1.
        start_seconds: Seconds from its start until it was ready.
        local: The connection of each thread.
    """

    process: subprocess.Popen[bytes]
    port: int
    start_seconds: float
    local: threading.local = field(default_factory=threading.local)

    @property
    def resident(self) -> int:
        """Resident memory in bytes, shared libraries included."""
        return memory_bytes(self.process.pid, "VmRSS")

    @property
    def peak(self) -> int:
        """Peak of the resident memory since the last `reset_peak`, in bytes."""
        return memory_bytes(self.process.pid, "VmHWM")

    def reset_peak(self) -> None:
        """Let the peak start from the memory that is resident now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    @property
    def processor(self) -> float:
        """Processor seconds since its start, all threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def get(self, path: str) -> Answer:
        """Send a GET request."""
        return self._ask("GET", path, None, JSON)

    def post(self, request: Request, accept: str = JSON) -> Answer:
        """Send a POST request, again after `Retry-After` while the service is busy.

        Raises:
            RuntimeError: The service refused it for another reason.
        """
        return self._ask("POST", request.path, json.dumps(request.body).encode(), accept)

    def post_lines(self, path: str, bodies: Sequence[Any]) -> list[Any]:
        """Send bodies as the lines of one NDJSON request, and return their answers in order.

        Lines that the service did not answer because it was busy are sent again.

        Raises:
            RuntimeError: The service refused a line for another reason.
        """
        answers: dict[int, Any] = {}
        end = time.perf_counter() + ANSWER_SECONDS
        while missing := [i for i in range(len(bodies)) if i not in answers]:
            content = b"".join(json.dumps(bodies[i]).encode() + b"\n" for i in missing)
            for line in self._ask("POST", path, content, NDJSON, NDJSON).body.splitlines():
                answer = json.loads(line)
                if answer["status"] == 200:
                    answers[missing[answer["index"]]] = answer["body"]
                elif answer["status"] not in BUSY or time.perf_counter() > end:
                    raise RuntimeError(f"POST {path}: {line[:200]!r}")
            if len(answers) < len(bodies):
                time.sleep(RETRY_SECONDS)
        return [answers[i] for i in range(len(bodies))]

    def _ask(
        self, method: str, path: str, body: bytes | None, accept: str, media: str = JSON
    ) -> Answer:
        if not hasattr(self.local, "connection"):
            self.local.connection = HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        connection: HTTPConnection = self.local.connection
        headers = {"Content-Type": media, "Accept": accept}
        start, reopened = time.perf_counter(), False
        while True:
            try:
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                answer = response.read()
            except ConnectionError:
                # The service closes a connection that was idle while another side was timed.
                connection.close()
                if reopened:
                    raise
                reopened = True
                continue
            seconds = time.perf_counter() - start
            if response.status == 200:
                timings = _timings(response.headers.get("Server-Timing", ""))
                return Answer(answer, seconds, timings)
            if response.status not in BUSY or seconds > ANSWER_SECONDS:
                raise RuntimeError(f"{method} {path}: {response.status} {answer[:200]!r}")
            time.sleep(float(response.headers.get("Retry-After", RETRY_SECONDS)))


def timed(server: Server, answers: Callable[[], Iterable[object]]) -> Callable[[], Seconds]:
    """A side: wall-clock seconds until the last answer, and processor seconds of the service."""

    def run() -> Seconds:
        start, processor = time.perf_counter(), server.processor
        for _ in answers():
            pass
        return Seconds(time.perf_counter() - start, server.processor - processor)

    return run


@contextmanager
def running_server(log: Path | None = None, /, **settings: object) -> Iterator[Server]:
    """Start `deltaw serve`; stop it when the block ends.

    Args:
        log: File that receives its log; None discards it.
        settings: Settings by name.

    Raises:
        RuntimeError: It did not become ready.
    """
    port, start = _free_port(), time.perf_counter()
    with (
        TemporaryDirectory(prefix="deltaw-") as adapters,
        (log or Path(os.devnull)).open("wb") as stderr,
    ):
        own = {"port": port, "log_format": "json", "adapters": adapters}
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve"],
            env=_environment({**own, **settings}),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        try:
            _await_ready(port, process, start + START_SECONDS)
            yield Server(process, port, time.perf_counter() - start)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def memory_bytes(pid: int, name: str) -> int:
    """A process's memory in bytes, by its name in /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def parse_metrics(body: bytes) -> dict[str, float]:
    """Samples in the Prometheus text format, by name with labels."""
    lines = (line for line in body.decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def _await_ready(port: int, process: subprocess.Popen[bytes], end: float) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
    while time.perf_counter() < end and process.poll() is None:
        try:
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            response.read()
        except OSError:
            connection.close()
        else:
            if response.status == 200:
                connection.close()
                return
        time.sleep(POLL_SECONDS)
    raise RuntimeError(f"the service did not become ready (exit code {process.poll()})")


def _environment(settings: dict[str, object]) -> dict[str, str]:
    foreign = {name: value for name, value in os.environ.items() if not name.startswith("DELTAW_")}
    named = {f"DELTAW_{name.upper()}": str(value) for name, value in settings.items()}
    return {**foreign, "HF_HUB_OFFLINE": "1", **named}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _timings(header: str) -> dict[str, float]:
    """`name;dur=milliseconds, …` as seconds by name, without entries that have no duration."""
    parts = (part.strip().partition(";dur=") for part in header.split(","))
    return {name: float(duration) / 1000 for name, _, duration in parts if duration}
