"""HTTP as bytes on a socket: send bytes, and read until the connection closes."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx

from schemas.common import read_answer
from schemas.problems import PROBLEMS, Problem
from tests.service_process import Served

BODY = json.dumps({"context": [1, 2, 3], "query": [4], "layers": [0]}).encode()
SECONDS = 20.0
"""Timeout of every socket operation; a connection that stays open for longer is a failure."""


class Answer(NamedTuple):
    """One HTTP answer as read from the socket."""

    status: int
    headers: dict[str, str]
    body: bytes


def post(
    body: bytes = BODY,
    *lines: str,
    path: str = "/v1/weight-updates",
    media: str = "application/json",
) -> bytes:
    """A complete POST request, with additional header lines."""
    head = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Content-Type: {media}",
        f"Content-Length: {len(body)}",
        *lines,
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def get(path: str, *lines: str, method: str = "GET") -> bytes:
    """A request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


@contextmanager
def connected(running: Served) -> Iterator[socket.socket]:
    """A connection to the server."""
    address = urlsplit(running.url)
    assert address.port is not None
    with socket.create_connection(("127.0.0.1", address.port), SECONDS) as client:
        yield client


def until_closed(client: socket.socket) -> bytes:
    """All bytes received until the server closes the connection.

    Raises:
        TimeoutError: The server keeps the connection open for longer than `SECONDS`.
    """
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := client.recv(1 << 16):
            received += chunk
    return received


def exchange(running: Served, *pieces: bytes, enough: int = 1 << 30) -> list[Answer]:
    """The answers on a connection after the given bytes have been sent.

    Args:
        running: The server.
        pieces: The bytes to send, each piece with a call of its own.
        enough: Number of answers after which this side closes; by default the server closes.
    """
    received = b""
    with connected(running) as client, contextlib.suppress(ConnectionError):
        for piece in pieces:
            client.sendall(piece)
        while received.count(b"HTTP/1.1 ") < enough and (chunk := client.recv(1 << 16)):
            received += chunk
        if enough < 1 << 30:
            client.shutdown(socket.SHUT_WR)
        return answers(received + until_closed(client))
    return answers(received)


def answers(received: bytes) -> list[Answer]:
    """The answers in the received bytes; each must be complete, with no bytes in between."""
    found = []
    while received:
        head, mark, received = received.partition(b"\r\n\r\n")
        assert mark, head[:200]
        first, *lines = head.decode("ascii").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        if status == "100":
            continue
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = int(headers.get("content-length", 0))
        assert len(received) >= length
        found.append(Answer(int(status), headers, received[:length]))
        received = received[length:]
    return found


def problem(answer: Answer, code: str) -> Problem:
    """Parse an answer as the problem `code` and check the headers of every problem."""
    assert answer.headers["content-type"] == "application/problem+json"
    said = read_answer(Problem, answer.body)
    assert said.code == code
    assert answer.status == said.status == PROBLEMS[code].status
    assert answer.headers["x-request-id"] == said.request_id
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    return said


def sound(running: Served) -> bool:
    """Whether the service is live and an equivalence check holds."""
    body = {"context": [1, 2, 3, 4], "query": [5], "layers": [0]}
    with httpx.Client(base_url=running.url, timeout=SECONDS) as client:
        live = client.get("/livez").status_code == httpx.codes.OK
        return live and client.post("/v1/equivalence-checks", json=body).json()["holds"] is True
