"""W7: how soon `/livez` answers while eight clients keep the service at its limit.

Asked at a fixed beat, and timed from when it was due, so that one slow answer does not hide the
questions that would have come behind it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np

from benchmarks.agreement import Disagreement
from benchmarks.bench import Bench
from benchmarks.process import Serving, serving
from benchmarks.table import Bar, Row

CLIENTS = 8
TOKENS = 256
BEAT = 0.02
IDLE_BEATS, BUSY_BEATS = 250, 1000
P99 = Bar("<=", 20.0)


def rows(bench: Bench) -> Iterator[Row]:
    """One row."""
    settings = {"model": bench.checkpoint, "device": bench.device, "threads": bench.threads}
    with serving(**settings) as service:
        idle = beats(service, IDLE_BEATS)
        ending = threading.Event()
        with ThreadPoolExecutor(CLIENTS) as pool:
            working = [pool.submit(load, bench, service, i, ending) for i in range(CLIENTS)]
            try:
                time.sleep(1.0)
                busy = beats(service, BUSY_BEATS)
            finally:
                ending.set()
            checks = sum(worker.result() for worker in working)
    yield Row(
        "W7",
        f"{CLIENTS} clients, checks of {TOKENS} tokens",
        "/livez p99",
        1000 * float(np.percentile(busy, 99)),
        "ms",
        P99,
        len(busy),
        {
            "median ms": 1000 * median(busy),
            "slowest ms": 1000 * max(busy),
            "idle p99 ms": 1000 * float(np.percentile(idle, 99)),
            "checks answered": float(checks),
        },
    )


def load(bench: Bench, service: Serving, number: int, ending: threading.Event) -> int:
    """One client: checks of every layer, each of another context; how many were answered.

    Raises:
        Disagreement: A check does not hold.
    """
    client = service.another()
    answered = 0
    while not ending.is_set():
        *context, query = bench.ids(TOKENS, seed=1000 * (1 + number) + answered)
        body = {"context": context, "query": [query]}
        told = json.loads(client.ask("POST", "/v1/equivalence-checks", body).body)
        if not told["holds"]:
            raise Disagreement("an equivalence check under load does not hold")
        answered += 1
    return answered


def beats(service: Serving, count: int) -> list[float]:
    """Seconds from when each `/livez` was due until its answer was there."""
    begun, taken = time.perf_counter(), []
    for i in range(count):
        due = begun + i * BEAT
        time.sleep(max(0.0, due - time.perf_counter()))
        service.ask("GET", "/livez")
        taken.append(time.perf_counter() - due)
    return taken
