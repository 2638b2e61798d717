"""Watching a service under load: its memory, threads and files, and how soon its probes answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.process import Serving

BEAT = 0.1
SAMPLE_SECONDS = 1.0


@dataclass(frozen=True)
class Sample:
    """The process at one moment.

    Args:
        at: Seconds since the watch began.
        resident: Bytes of memory.
        threads: Its threads.
        files: Its open files, connections included.
        queue: Requests that wait, as `/metrics` says.
        prefixes: Bytes of known contexts, as `/metrics` says.
    """

    at: float
    resident: int
    threads: int
    files: int
    queue: int
    prefixes: int


@dataclass
class Watched:
    """What was seen.

    Args:
        samples: One a second.
        livez: Seconds of each `/livez`, from when it was due.
        metrics: Seconds of each `/metrics`.
    """

    samples: list[Sample] = field(default_factory=list)
    livez: list[float] = field(default_factory=list)
    metrics: list[float] = field(default_factory=list)

    def between(self, start: float, end: float, name: str) -> float:
        """The median of one of a sample's figures between two moments."""
        return float(median(getattr(s, name) for s in self.samples if start <= s.at <= end))


@contextmanager
def watching(service: Serving) -> Iterator[Watched]:
    """Watch until the block is left; what the watch fails of is raised then."""
    seen, ending = Watched(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        watch = pool.submit(_watch, service.another(), seen, ending)
        try:
            yield seen
        finally:
            ending.set()
        watch.result()


def _watch(client: Serving, seen: Watched, ending: threading.Event) -> None:
    begun = time.perf_counter()
    next_sample, due = 0.0, begun
    while not ending.is_set():
        time.sleep(max(0.0, due - time.perf_counter()))
        client.ask("GET", "/livez")
        now = time.perf_counter()
        seen.livez.append(now - due)
        # A late answer makes the questions late that were due meanwhile, and they count as late.
        due += BEAT
        if now - begun >= next_sample:
            told = client.ask("GET", "/metrics")
            seen.metrics.append(told.seconds)
            seen.samples.append(_sample(client, now - begun, told.body.decode()))
            next_sample += SAMPLE_SECONDS


def _sample(client: Serving, at: float, metrics: str) -> Sample:
    counted = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line[0] != "#")
    folder = Path(f"/proc/{client.process.pid}")
    return Sample(
        at=round(at, 1),
        resident=client.resident,
        threads=len(list((folder / "task").iterdir())),
        files=len(list((folder / "fd").iterdir())),
        queue=int(float(counted["deltaw_queue_depth"])),
        prefixes=int(float(counted["deltaw_prefix_cache_bytes"])),
    )
