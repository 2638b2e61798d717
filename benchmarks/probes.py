"""Probes: requests to `/livez` and `/metrics` at fixed intervals, alone (W7) or beside a load."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.agreement import Disagreement
from benchmarks.bench import Bench
from benchmarks.load.account import account
from benchmarks.load.clients import run_clients
from benchmarks.results import Row
from benchmarks.server import Server, running_server

CLIENTS = 8
LOAD_SECONDS = 20.0
IDLE_SECONDS = 5.0
PROBES = (("/livez", 0.02, "p99"), ("/metrics", 0.1, "slowest"))
"""Arguments of `probe_under_load` after the set-up."""


def probe_under_load(bench: Bench, path: str, interval: float, figure: str) -> Iterator[Row]:
    """W7: a probe while 8 clients post checks of all layers on 256 tokens, and at rest.

    Args:
        bench: The set-up.
        path: Path of the probe.
        interval: Seconds between two requests.
        figure: The figure that has a bar.
    """
    seconds = min(LOAD_SECONDS, bench.seconds)
    with tempfile.TemporaryDirectory(prefix="deltaw-probes-") as folder:
        log, records = Path(folder, "log"), Path(folder, "records")
        with running_server(log, **bench.settings) as server:
            with probing(server, {path: interval}) as idle:
                time.sleep(min(IDLE_SECONDS, seconds))
            with probing(server, {path: interval}) as busy:
                run_clients(server.port, {"Check": CLIENTS}, seconds, records)
        found = account(records, log)
    if found.faults:
        raise Disagreement(found.faults[0])
    values = percentiles(busy[path])
    medians = {f"{name} ms": value for name, value in values.items()}
    medians["idle p99 ms"] = percentiles(idle[path])["p99"]
    medians |= {outcome: float(count) for outcome, count in found.outcomes.items()}
    case, count = f"{CLIENTS} clients, checks of 256 tokens", len(busy[path])
    yield Row("W7", case, f"{path} {figure}", values[figure], "ms", None, count, medians)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 95th and 99th percentile, and maximum, in milliseconds."""
    values = (1000 * np.percentile(seconds, [50, 95, 99, 100])).tolist()
    return dict(zip(("p50", "p95", "p99", "slowest"), values, strict=True))


@contextmanager
def probing(
    server: Server,
    intervals: Mapping[str, float],
    observe: Callable[[Server, str, bytes], None] = lambda *_: None,
) -> Iterator[Mapping[str, list[float]]]:
    """Send GET requests until the block ends; a failed request raises at the end.

    A request that was delayed by a late answer is counted from when it was due, so that one late
    answer does not hide the ones that should have come behind it.

    Args:
        server: The service.
        intervals: Seconds between two requests, by path.
        observe: Called with the service, and the path and body of each answer.

    Yields:
        Seconds until each answer, by path.
    """
    taken: dict[str, list[float]] = {path: [] for path in intervals}
    end = threading.Event()

    def probe(path: str, interval: float) -> None:
        due = time.perf_counter()
        while not end.wait(max(0.0, due - time.perf_counter())):
            body = server.get(path).body
            taken[path].append(time.perf_counter() - due)
            due += interval
            observe(server, path, body)

    with ThreadPoolExecutor(len(intervals)) as pool:
        probes = [pool.submit(probe, *item) for item in intervals.items()]
        try:
            yield taken
        finally:
            end.set()
        for one in probes:
            one.result()
