"""The clients, as locust runs them in its environment; nothing of the service is imported.

Each request is one line in the file that `RECORDS` names: its id, endpoint, outcome, status,
problem code and milliseconds. An outcome is `answered` (200, whole and valid), `refused` (a
problem), `left` (the client meant to leave) or `lost`: anything else.
"""

# mypy: disallow-untyped-decorators=False, disallow-subclassing-any=False
from __future__ import annotations

import json
import os
import random
import socket
import time
from collections.abc import Callable
from typing import Any, TextIO
from urllib.parse import urlsplit

from locust import (  # type: ignore[import-not-found]
    User,
    constant_pacing,
    events,
    task,
)

SECONDS = 120.0
"""How long an answer may take before it counts as lost; the service's deadline is 60."""
BURST_EVERY = 15.0
WORDS = ("the", "capital", "of", "Germany", "is", "Berlin", "and", "a", "river", "runs", "through")
SAFETENSORS = "application/vnd.safetensors"
records: TextIO
count = 0


@events.test_start.add_listener
def open_records(**_: Any) -> None:
    """Begin the file of outcomes."""
    global records
    records = open(os.environ["RECORDS"], "w", buffering=1)  # noqa: SIM115 – open until the end


def text(chance: random.Random, words: int) -> str:
    """Some words in an order that hardly comes twice."""
    return " ".join(chance.choices(WORDS, k=words))


def pair(chance: random.Random, words: int = 40, **more: Any) -> dict[str, Any]:
    """A context, one time in four one of ten that come again, and a query."""
    if chance.random() < 0.25:
        context = text(random.Random(chance.randrange(10)), words)
    else:
        context = text(chance, chance.randint(3, words))
    return {"context": context, "query": " " + chance.choice(WORDS), **more}


Made = tuple[str, str, dict[str, Any] | None, str]
"""Method, path, body and `Accept`."""
MIXED: tuple[tuple[int, Callable[[random.Random], Made]], ...] = (
    (6, lambda c: ("POST", "/v1/weight-updates", pair(c, layers=[-1]), "*/*")),
    (2, lambda c: ("POST", "/v1/weight-updates", pair(c), SAFETENSORS)),
    (1, lambda c: ("POST", "/v1/weight-updates", pair(c, include=["next_tokens"]), "*/*")),
    (4, lambda c: ("POST", "/v1/equivalence-checks", pair(c), "*/*")),
    (1, lambda c: ("POST", "/v1/equivalence-checks", pair(c, 20, scope="model"), "*/*")),
    (1, lambda c: ("POST", "/v1/trajectories", pair(c, 20, layers=[-1]), "*/*")),
    (1, lambda c: ("POST", "/v1/attributions", pair(c, 20, spans=[[0, 1]]), "*/*")),
    (3, lambda c: ("POST", "/v1/activations", {"prompts": [text(c, 30)]}, "*/*")),
    (3, lambda c: ("POST", "/v1/tokenize", {"context": text(c, 30), "query": " a"}, "*/*")),
    (1, lambda c: ("GET", "/v1/model", None, "*/*")),
    (1, lambda c: ("POST", "/v1/weight-updates", pair(c, layers=[99]), "*/*")),
    (1, lambda c: ("POST", "/v1/activations", {"prompts": [text(c, 3000)]}, "*/*")),
)
"""What is asked, and how often beside the others; the last two are refused."""


def draw(chance: random.Random) -> Made:
    """One of the mixed requests."""
    weights = [weight for weight, _ in MIXED]
    return chance.choices([make for _, make in MIXED], weights)[0](chance)


def judge(status: int, kind: str, body: bytes) -> tuple[str, str]:
    """Outcome and problem code of an answer that came whole."""
    if kind == SAFETENSORS and status == 200:
        return "answered", ""
    said = json.loads(body)
    if status == 200:
        return ("answered" if said.get("holds", True) else "lost"), ""
    if kind == "application/problem+json" and said["status"] == status:
        return "refused", said["code"]
    return "lost", ""


def read_answer(connection: socket.socket, piece: int, pause: float) -> tuple[int, str, bytes]:
    """Status, type and body of one answer, read in pieces.

    Raises:
        ConnectionError: It ends too early.
    """
    read = b""
    while b"\r\n\r\n" not in read:
        if not (got := connection.recv(piece)):
            raise ConnectionError("no whole head")
        read += got
    head, _, body = read.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    length = int(headers["content-length"])
    while len(body) < length:
        if not (got := connection.recv(piece)):
            raise ConnectionError("no whole body")
        body += got
        time.sleep(pause)
    return int(first.split()[1]), headers["content-type"], body


class Client(User):
    """One client with a connection for each request and chances of its own."""

    abstract = True
    connection: socket.socket | None = None

    def on_start(self) -> None:
        """Draw the same requests in every run."""
        global count
        count += 1
        self.chance = random.Random(f"{type(self).__name__} {count}")
        self.asked = 0
        self.name = f"{type(self).__name__}-{count}"

    def connect(self) -> socket.socket:
        """A new connection."""
        where = urlsplit(self.host)
        return socket.create_connection((where.hostname, where.port), SECONDS)

    def packed(self, made: Made) -> tuple[str, bytes, bytes]:
        """A request's id, head and body."""
        method, path, sent, accept = made
        self.asked += 1
        mark = f"{self.name}.{self.asked}"
        body = b"" if sent is None else json.dumps(sent).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: {mark}\r\n"
            f"Accept: {accept}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return mark, head.encode(), body

    def ask(self, made: Made, way: Callable[[bytes, bytes], tuple[int, str, bytes] | None]) -> None:
        """Send a request in some way, and record what came of it; None is a client that left."""
        mark, head, body = self.packed(made)
        begun, outcome, status, code, fault = time.time(), "lost", 0, "", ""
        try:
            answer = way(head, body)
            if answer is None:
                outcome = "left"
            else:
                status = answer[0]
                outcome, code = judge(*answer)
        except (OSError, ValueError, KeyError) as error:
            fault = f"{type(error).__name__}: {error}"
        told = {
            "id": mark,
            "path": made[1],
            "outcome": outcome,
            "status": status,
            "code": code,
            "at": begun,
            "ms": 1000 * (time.time() - begun),
            "fault": fault,
        }
        records.write(json.dumps(told) + "\n")
        self.environment.events.request.fire(
            request_type=made[0],
            name=f"{made[1]} {outcome}",
            response_time=told["ms"],
            response_length=0,
            exception=RuntimeError(fault or "lost") if outcome == "lost" else None,
        )

    def plainly(self, head: bytes, body: bytes) -> tuple[int, str, bytes]:
        """Send at once, on a connection that is kept, and read at once."""
        if self.connection is None:
            self.connection = self.connect()
        try:
            self.connection.sendall(head + body)
            return read_answer(self.connection, 1 << 16, 0.0)
        except OSError:
            self.connection.close()
            self.connection = None
            raise


class Mixed(Client):
    """Asks for a bit of everything, one request after the other."""

    wait_time = constant_pacing(0.7)

    @task
    def any(self) -> None:
        """One of the mixed requests."""
        self.ask(draw(self.chance), self.plainly)


class Burst(Client):
    """Asks with a hundred others at the very same moment, then waits for the next."""

    @task
    def at_once(self) -> None:
        """A check, when the moment comes."""
        time.sleep(BURST_EVERY - time.time() % BURST_EVERY)
        made = "POST", "/v1/equivalence-checks", pair(self.chance, layers=[-1]), "*/*"
        self.ask(made, self.plainly)


class Slow(Client):
    """Sends its body in drops and reads the answer in drops."""

    wait_time = constant_pacing(5.0)

    @task
    def drop_by_drop(self) -> None:
        """Sixteen bytes at a time, and 4 KiB back."""
        self.ask(draw(self.chance), self.slowly)

    def slowly(self, head: bytes, body: bytes) -> tuple[int, str, bytes]:
        """Send and read in pieces, with pauses."""
        with self.connect() as connection:
            connection.sendall(head)
            for start in range(0, len(body), 16):
                if len(body) > 2000:
                    connection.sendall(body[start:])
                    break
                connection.sendall(body[start : start + 16])
                time.sleep(0.1)
            return read_answer(connection, 4096, 0.05)


class Leaving(Client):
    """Goes away: in the middle of its body, or before the answer is there."""

    wait_time = constant_pacing(1.0)

    @task
    def go(self) -> None:
        """Ask for much, and leave."""
        body = pair(self.chance, 60, scope="model")
        self.ask(("POST", "/v1/equivalence-checks", body, "*/*"), self.leave)

    def leave(self, head: bytes, body: bytes) -> None:
        """Close the connection a moment later."""
        with self.connect() as connection:
            half = self.chance.random() < 0.5
            connection.sendall(head + (body[: len(body) // 2] if half else body))
            time.sleep(self.chance.uniform(0.0, 0.1))
