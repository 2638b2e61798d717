"""W7: how soon `/livez` and `/metrics` answer while eight clients keep the service at its limit."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np

from benchmarks.agreement import Disagreement
from benchmarks.beats import beats
from benchmarks.bench import Bench
from benchmarks.process import Serving, serving
from benchmarks.table import Bar, Row

CLIENTS = 8
TOKENS = 256
IDLE_BEATS = 250
PROBES = (("/livez", 99, 1000, 0.02, 20.0), ("/metrics", 100, 200, 0.1, 100.0))
"""A path, the percentile that counts, how often and every how many seconds it is asked, and the
bar in milliseconds."""


def rows(bench: Bench) -> Iterator[Row]:
    """One row for each probe."""
    settings = {"model": bench.checkpoint, "device": bench.device, "threads": bench.threads}
    with serving(**settings) as service:
        port = service.connection.port
        idle = {path: beats(port, path, IDLE_BEATS, beat) for path, _, _, beat, _ in PROBES}
        ending = threading.Event()
        with ThreadPoolExecutor(CLIENTS) as pool:
            working = [pool.submit(load, bench, service, i, ending) for i in range(CLIENTS)]
            try:
                time.sleep(1.0)
                busy = {path: beats(port, path, count, beat) for path, _, count, beat, _ in PROBES}
            finally:
                ending.set()
            checks = sum(worker.result() for worker in working)
    for path, percentile, _, _, most in PROBES:
        taken = 1000 * np.array(busy[path])
        yield Row(
            "W7",
            f"{CLIENTS} clients, checks of {TOKENS} tokens",
            f"{path} p99" if percentile == 99 else f"{path} slowest",
            float(np.percentile(taken, percentile)),
            "ms",
            Bar("<=", most),
            len(taken),
            {
                "median ms": float(median(taken)),
                "p99 ms": float(np.percentile(taken, 99)),
                "slowest ms": float(taken.max()),
                "idle p99 ms": 1000 * float(np.percentile(idle[path], 99)),
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
