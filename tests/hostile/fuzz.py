"""Send mutated requests to the sockets of a real server, then check the server's state."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.api.wire import CANARY, until
from tests.hostile.mutations import mutated
from tests.hostile.raw import connected, sound
from tests.service_process import Served

PAGE = 4096
SILENCE = 0.03
"""Seconds without a byte after which this side closes the connection."""
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@dataclass
class Fuzzed:
    """The outcome of a run.

    Args:
        connections: Number of connections opened, each with one mutated request.
        seconds: Duration of the run.
        statuses: Number of received answers by status.
        logged: Number of logged answers by status.
        resident: Resident bytes of the server, at the start and at the end.
        files: Open files of the server, at the start and at the end.
    """

    connections: int = 0
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    logged: Counter[int] = field(default_factory=Counter)
    resident: tuple[int, int] = (0, 0)
    files: tuple[int, int] = (0, 0)


def fuzz(running: Served, *, connections: int, seed: int, first: int = 300) -> Fuzzed:
    """Send mutated requests; afterwards the server must be as it was before.

    Args:
        running: The server.
        connections: Number of requests after the warm-up.
        seed: Seed of the mutations.
        first: Number of warm-up requests before the first measurement, so that objects made once
            are already counted.

    Raises:
        AssertionError: The server grew, failed, or repeated a part of a request.
    """
    dice = random.Random(seed)
    known = len(running.log.read_text())
    fuzzed = Fuzzed()
    start = time.perf_counter()
    for _ in range(first):
        send(running, mutated(dice), fuzzed)
    before = usage(running)
    for _ in range(connections):
        send(running, mutated(dice), fuzzed)
    fuzzed.seconds = time.perf_counter() - start
    assert sound(running)
    until(lambda: usage(running)[1] <= before[1] or None)
    after = usage(running)
    fuzzed.resident, fuzzed.files = (before[0], after[0]), (before[1], after[1])
    log = running.log.read_text()[known:]
    assert "Traceback" not in log
    assert CANARY not in log
    for line in filter(is_json, log.splitlines()):
        said = json.loads(line)
        assert said["level"] == "info", line
        fuzzed.logged[said["status"]] += 1
    assert max(fuzzed.statuses) < 500, fuzzed.statuses
    assert max(fuzzed.logged) < 500, fuzzed.logged
    return fuzzed


def send(running: Served, pieces: list[bytes], fuzzed: Fuzzed) -> None:
    """Send the pieces of one request, read the answers, and close the connection."""
    received = b""
    with contextlib.suppress(ConnectionError), connected(running) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.settimeout(SILENCE)
        with contextlib.suppress(TimeoutError):
            for piece in pieces:
                client.sendall(piece)
            while chunk := client.recv(1 << 16):
                received += chunk
    fuzzed.connections += 1
    fuzzed.statuses.update(int(status) for status in STATUS.findall(received))
    for answer in received.split(b"HTTP/1.1 ")[1:]:
        if answer[:1] in b"45":
            without_pointers = re.sub(rb'"pointer":"[^"]*"', b"", answer)
            assert CANARY.encode() not in without_pointers, (pieces, answer)
    for line in received.split(b"\n"):
        if b'"body":{"type":"/problems/' in line:
            without_pointers = re.sub(rb'"pointer":"[^"]*"', b"", line)
            assert CANARY.encode() not in without_pointers, (pieces, line)


def is_json(line: str) -> bool:
    """Whether a log line is a request's JSON object and not part of the greeting."""
    return line.startswith("{") and line.endswith("}")


def usage(running: Served) -> tuple[int, int]:
    """The server's resident bytes and its number of open files."""
    process = Path("/proc") / str(running.process.pid)
    pages = int((process / "statm").read_text().split()[1])
    return pages * PAGE, len(list((process / "fd").iterdir()))
