"""Measurements on real services: service times of one replica, and cache hits of two replicas."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median

import httpx

from benchmarks.bench import token_ids
from benchmarks.fleet.replica import Times
from benchmarks.fleet.routing import Ring, key_position
from benchmarks.fleet.traffic import rounds
from benchmarks.server import ANSWER_SECONDS, running_server
from schemas.affinity import CONTEXT_HEADER, context_key

PATH = "/v1/weight-updates"
SAFETENSORS = "application/vnd.safetensors"
ROWS = re.compile(r'"(\d+) of (\d+) rows cached"')
DURATIONS = re.compile(r"(\w+);dur=([\d.]+)")
COLD, KNOWN = 7, 40
"""Number of timed questions of each kind."""
JOINING = 16
"""Number of clients whose questions share forwards: as many as a replica computes at once."""
CONTEXTS, QUESTIONS, TOKENS, CLIENTS = 8, 20, 400, 4
"""The measurement with two replicas: contexts, questions about each, tokens, clients."""
KNOWN_ROWS = TOKENS / (TOKENS + 2)
"""Share of rows that are cached if the context is: all but those of the query and the baseline."""


@dataclass(frozen=True)
class Answer:
    """Measurements of one answer.

    Args:
        seconds: Seconds of the round trip.
        compute: Seconds of the compute thread, from `Server-Timing`.
        cached: Number of rows of the request that were cached.
        rows: Number of rows of the request.
        size: Bytes of the body.
    """

    seconds: float
    compute: float
    cached: int
    rows: int
    size: int


@dataclass(frozen=True)
class Hits:
    """Cache hits and rate of several clients' requests.

    Args:
        known: Share of the rows that were cached.
        rate: Answers a second.
    """

    known: float
    rate: float


def ask(
    client: httpx.Client, layers: Sequence[int], context: Sequence[int], query: Sequence[int]
) -> Answer:
    """Ask for the updates of layers, as safetensors.

    Raises:
        httpx.HTTPStatusError: The service refused the request.
    """
    body = {"context": context, "query": query, "layers": list(layers)}
    headers = {"Accept": SAFETENSORS, CONTEXT_HEADER: context_key(body) or ""}
    start = time.perf_counter()
    response = client.post(PATH, json=body, headers=headers)
    seconds = time.perf_counter() - start
    response.raise_for_status()
    timing = response.headers["Server-Timing"]
    rows = ROWS.search(timing)
    assert rows is not None, timing
    durations = {name: float(each) / 1000 for name, each in DURATIONS.findall(timing)}
    compute = durations["forward"] + durations["compute"]
    return Answer(seconds, compute, int(rows[1]), int(rows[2]), len(response.content))


@contextmanager
def served(model: str, contexts_bytes: int) -> Iterator[str]:
    """Run a service with one compute thread, and yield its URL."""
    settings = {"model": model, "device": "cpu", "threads": 1}
    with running_server(prefix_cache_bytes=contexts_bytes, **settings) as server:
        yield f"http://127.0.0.1:{server.port}"


def service_times(model: str, n_layers: int) -> tuple[Times, Mapping[str, float]]:
    """Measure one replica with questions about the last layer.

    The contexts are first not cached (cold), then cached (known), then cached and asked about by
    several clients at once.

    Returns:
        The service times, and the bytes of an answer about one layer and about all layers.
    """
    layers = [n_layers - 1]
    with served(model, 2**30) as url, httpx.Client(base_url=url, timeout=ANSWER_SECONDS) as client:
        for i in range(2):
            ask(client, layers, token_ids(TOKENS, i), [i])
        cold = [ask(client, layers, token_ids(TOKENS, 100 + i), [i]) for i in range(COLD)]
        known = [ask(client, layers, token_ids(TOKENS, 100 + i % COLD), [i]) for i in range(KNOWN)]
        jobs = [(token_ids(TOKENS, 100 + i % COLD), [i]) for i in range(JOINING * KNOWN // 2)]
        start = time.perf_counter()
        answers = _together([client], layers, jobs, lambda _: 0, JOINING)
        seconds = time.perf_counter() - start
        every = ask(client, range(n_layers), token_ids(TOKENS, 100), [0])
    alone = median(one.compute for one in known)
    joined = (JOINING * seconds / len(answers) - alone) / (JOINING - 1)
    times = Times(
        cold=median(one.compute for one in cold),
        known=alone,
        joined=max(0.0, joined),
        outside=median(one.seconds - one.compute for one in known),
    )
    return times, {"one_layer": known[0].size, "all_layers": every.size}


def measure_hits(
    urls: Sequence[str], layers: Sequence[int], seed: int, affinity: bool, clients: int = CLIENTS
) -> Hits:
    """Ask about several contexts in a shuffled order, with several clients at once.

    With several URLs, a ring or a random number chooses the replica. With one URL, the proxy at
    that address does.
    """
    contexts = measured_contexts(seed)
    ring, chance = Ring([f"replica {i}" for i in range(len(urls))]), random.Random(seed)
    positions = context_positions(seed)
    owners = [next(ring.order(at)) for at in positions]
    order = [one.name for one in rounds(positions, QUESTIONS)]
    jobs = [(contexts[name], [1000 + i]) for i, name in enumerate(order)]
    chosen = [owners[name] if affinity else chance.randrange(len(urls)) for name in order]
    with ExitStack() as stack:
        opened = [
            stack.enter_context(httpx.Client(base_url=url, timeout=ANSWER_SECONDS)) for url in urls
        ]
        start = time.perf_counter()
        answers = _together(opened, layers, jobs, chosen.__getitem__, clients)
        seconds = time.perf_counter() - start
    known = sum(one.cached for one in answers) / sum(one.rows for one in answers)
    return Hits(known, len(answers) / seconds)


def measured_contexts(seed: int) -> list[list[int]]:
    """The contexts of the measurement with two replicas."""
    return [token_ids(TOKENS, 1000 * seed + i) for i in range(CONTEXTS)]


def context_positions(seed: int) -> list[float]:
    """Positions of these contexts on the ring."""
    keys = (context_key({"context": ids}) for ids in measured_contexts(seed))
    return [key_position(key) for key in keys if key is not None]


def _together(
    opened: Sequence[httpx.Client],
    layers: Sequence[int],
    jobs: Sequence[tuple[Sequence[int], Sequence[int]]],
    chosen: Callable[[int], int],
    clients: int,
) -> list[Answer]:
    """Send requests from several threads. Each sends the next one as soon as it is free."""

    def send(i: int) -> Answer:
        return ask(opened[chosen(i)], layers, *jobs[i])

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(send, range(len(jobs))))
