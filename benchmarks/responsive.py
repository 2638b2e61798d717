"""W7: how soon `/livez` and `/metrics` answer while eight clients keep the service at its limit."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Probe:
    """What is asked beside the load.

    Args:
        path: Which path.
        count: How often.
        beat: Every how many seconds.
        figure: Which of the figures in milliseconds counts.
        most: Its bar.
    """

    path: str
    count: int
    beat: float
    figure: str
    most: float


PROBES = (
    Probe("/livez", 1000, 0.02, "p99", 20.0),
    Probe("/metrics", 200, 0.1, "slowest", 100.0),
)


def rows(bench: Bench) -> Iterator[Row]:
    """One row for each probe."""
    settings = {"model": bench.checkpoint, "device": bench.device, "threads": bench.threads}
    with serving(**settings) as service:
        port = service.connection.port
        idle = [beats(port, probe.path, IDLE_BEATS, probe.beat) for probe in PROBES]
        ending = threading.Event()
        with ThreadPoolExecutor(CLIENTS) as pool:
            working = [pool.submit(load, bench, service, i, ending) for i in range(CLIENTS)]
            try:
                time.sleep(1.0)
                busy = [beats(port, probe.path, probe.count, probe.beat) for probe in PROBES]
            finally:
                ending.set()
            checks = sum(worker.result() for worker in working)
    for probe, alone, taken in zip(PROBES, idle, busy, strict=True):
        figures = {
            "median": 1000 * median(taken),
            "p99": 1000 * float(np.percentile(taken, 99)),
            "slowest": 1000 * max(taken),
            "idle p99": 1000 * float(np.percentile(alone, 99)),
        }
        yield Row(
            "W7",
            f"{CLIENTS} clients, checks of {TOKENS} tokens",
            f"{probe.path} {probe.figure}",
            figures[probe.figure],
            "ms",
            Bar("<=", probe.most),
            len(taken),
            {f"{name} ms": value for name, value in figures.items()}
            | {"checks answered": float(checks)},
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
