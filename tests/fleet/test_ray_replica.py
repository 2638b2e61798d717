"""How a replica passes on the messages of its application, without a cluster."""

from __future__ import annotations

import json
import subprocess

import pytest

from benchmarks.cluster.environment import ROOT, interpreter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(interpreter() is None, reason="no Ray: `make test-slow` installs it"),
]
PROGRAM = """
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
"""Prints the pieces of answers whose bodies have the given sizes: the size of each piece, and
before it the status if the piece has the head."""
MIB = 1 << 20


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
    bodies = json.dumps([sizes for sizes, _ in expected])
    command = [str(interpreter()), "-c", PROGRAM, bodies]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert json.loads(done.stdout) == [pieces for _, pieces in expected]
