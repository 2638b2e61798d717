"""The pieces in which a replica's answer reaches the front, without a cluster."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from benchmarks.cluster.environment import ROOT, interpreter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(interpreter() is None, reason="no Ray: `make test-slow` installs it"),
]
SENT = """
import asyncio, json, sys
from service.fleet.replica import Replica

class Bare(Replica):
    def __init__(self, app):
        self._app = app

    def __del__(self):
        pass

async def pieces(bodies):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for place, body in enumerate(bodies, 1):
            more = place < len(bodies)
            await send({"type": "http.response.body", "body": b"x" * body, "more_body": more})

    return [
        len(piece) if isinstance(piece, bytes) else [piece[0][0], len(piece[1])]
        async for piece in Bare(app).answer({"type": "http"}, b"")
    ]

print(json.dumps([asyncio.run(pieces(bodies)) for bodies in json.loads(sys.argv[1])]))
"""
"""Prints the pieces that a replica sends of answers whose bodies have the given sizes: the size of
each piece, and before it the status if the piece has the head."""
RECEIVED = """
import asyncio, json, sys
from ray.exceptions import RayActorError
from service.fleet.front import ATTEMPTS, _pieces
from service.api.refusals import ProblemError

class Dying:
    \"\"\"A handle whose replicas die after the given pieces.\"\"\"

    def __init__(self, lives):
        self.answer, self._lives = self, iter(lives)

    def remote(self, scope, body):
        self._life = iter(next(self._lives))
        return self

    def cancel(self):
        pass

    def __aiter__(self):
        return self

    async def __anext__(self):
        for piece in self._life:
            return piece
        raise RayActorError()

async def outcome(status, length, lives):
    head = status, [] if length is None else [(b"content-length", str(length).encode())]
    answers = [[(head, b"x" * size) if not at else b"x" * size for at, size in enumerate(life)]
        for life in lives]
    got = 0
    try:
        async for piece in _pieces(Dying(answers), {}, b"", attempts=ATTEMPTS, seconds=5):
            got += len(piece if isinstance(piece, bytes) else piece[1])
    except ProblemError as error:
        return [got, error.code]
    except RayActorError:
        return [got, "broken off"]
    return [got, "complete"]

print(json.dumps([asyncio.run(outcome(*case)) for case in json.loads(sys.argv[1])]))
"""
"""Prints what the front makes of replicas that die: the bytes that it passes on, and the outcome.
Each case has a status, a Content-Length, and the sizes of the pieces that each replica sends before
it dies."""
MIB = 1 << 20


def said(program: str, cases: list[Any]) -> Any:
    """Run a program with the interpreter that has Ray, and return what it prints."""
    command = [str(interpreter()), "-c", program, json.dumps(cases)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def test_head_comes_with_the_first_piece_of_the_body() -> None:
    """An answer of up to 1 MiB is one piece. The front has all of it or nothing, so a replica that
    dies cannot break it off after its head."""
    expected = [
        ([26_000], [[200, 26_000]]),
        ([0], [[200, 0]]),
        ([MIB], [[200, MIB]]),
        ([2 * MIB + 5], [[200, MIB], MIB, 5]),
        ([70, 80, 0], [[200, 70], 80]),  # a stream
    ]
    assert said(SENT, [sizes for sizes, _ in expected]) == [pieces for _, pieces in expected]


def test_only_an_incomplete_answer_of_a_replica_that_dies_breaks_off() -> None:
    """If a replica dies before its first piece, the front asks another one. If it dies after the
    last one, nothing is lost, and an error would close the connection of the next request."""
    expected = [
        ([200, 9, [[9]]], [9, "complete"]),
        ([200, 9, [[4, 5]]], [9, "complete"]),
        ([200, 0, [[0]]], [0, "complete"]),
        ([204, None, [[0]]], [0, "complete"]),
        ([304, None, [[0]]], [0, "complete"]),
        ([200, 9, [[4]]], [4, "broken off"]),
        ([200, None, [[4, 5]]], [9, "broken off"]),  # a stream
        ([200, 9, [[], [9]]], [9, "complete"]),
        ([200, 9, [[], [], [4, 5]]], [9, "complete"]),
        ([200, 9, [[], [], []]], [0, "replica_lost"]),
    ]
    assert said(RECEIVED, [case for case, _ in expected]) == [outcome for _, outcome in expected]
