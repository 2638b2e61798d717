"""The promise about bits (docs/operations.md), held over HTTP with 16 clients in company."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import Any

import httpx
import pytest

from schemas.pairs import SEED_CONTEXT, SEED_QUERY
from tests.api.test_bodies import PATHS
from tests.service_process import Served, served

CLIENTS = 16
ROUNDS = 2
PAIR: dict[str, Any] = {"context": SEED_CONTEXT, "query": SEED_QUERY}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "updates": ("updates", {**PAIR, "include": ["factors", "bias"], "encoding": "base64"}),
    "updates in sequence": ("updates", {**PAIR, "stream": "sequential", "encoding": "base64"}),
    "checks of blocks": ("checks", PAIR),
    "a check of the model": ("checks", {**PAIR, "scope": "model", "baseline": "alone"}),
    "parts": (
        "updates",
        {**PAIR, "baseline": "alone", "include": ["split", "next_tokens"], "encoding": "base64"},
    ),
    "probes": ("updates", {**PAIR, "include": [], "probe_queries": [" Paris", " is"]}),
    "float64": ("checks", {**PAIR, "precision": "float64", "layers": [2]}),
    "trajectories": ("trajectories", PAIR),
    "attributions": ("attributions", PAIR),
    "activations": (
        "activations",
        {"prompts": [SEED_CONTEXT, SEED_QUERY], "positions": "all", "encoding": "base64"},
    ),
}


def bodies(client: httpx.Client) -> dict[str, bytes]:
    """The answer to every request, as bytes."""
    answers = {}
    for name, (resource, body) in REQUESTS.items():
        response = client.post(PATHS[resource], json=body)
        assert response.status_code == 200, response.text[:500]
        answers[name] = response.content
    return answers


@contextmanager
def company(running: Served) -> Iterator[list[int]]:
    """Run 16 clients that send requests of other lengths until the block ends.

    Yields:
        The status of each of their answers so far.
    """
    statuses: list[int] = []
    leave = threading.Event()
    arrived = threading.Barrier(CLIENTS + 1)

    def send(number: int) -> None:
        with httpx.Client(base_url=running.url, timeout=120.0) as client:
            arrived.wait()
            for turn in count(number):
                if leave.is_set():
                    return
                ids = [1 + (7 * turn + 3 * i) % 5000 for i in range(1 + turn % 23)]
                resource = ("updates", "checks", "trajectories")[turn % 3]
                body = {"context": ids, "query": [2 + number], "layers": [turn % 6]}
                statuses.append(client.post(PATHS[resource], json=body).status_code)

    with ThreadPoolExecutor(CLIENTS) as pool:
        sending = [pool.submit(send, number) for number in range(CLIENTS)]
        try:
            arrived.wait()
            yield statuses
        finally:
            leave.set()
            for each in sending:
                each.result()


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_same_request_gives_same_bits_beside_16_clients(threads: int) -> None:
    """With batching off and a prefix cache of 0 bytes, a body is byte-equal whether 16 clients
    compute beside it or not.

    The comparison is sharp. On this model, with batching on, the first six bodies that were tried
    differ in their last digits beside the same 16 clients. With the prefix cache on, `updates` and
    `checks of blocks` differ from the second request on, even alone.
    """
    unshared: dict[str, Any] = {"threads": threads, "batching": False, "prefix_cache_bytes": 0}
    with (
        served(model="bundled", **unshared) as running,
        httpx.Client(base_url=running.url, timeout=120.0) as client,
    ):
        alone = bodies(client)
        with company(running) as statuses:
            for _ in range(ROUNDS):
                beside = bodies(client)
                assert {name for name in REQUESTS if beside[name] != alone[name]} == set()
        assert set(statuses) == {200}
        assert len(statuses) >= CLIENTS
        assert bodies(client) == alone
