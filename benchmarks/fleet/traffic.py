"""Traffic: the contexts of requests, and summaries of their outcomes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.fleet.routing import Context
from benchmarks.fleet.simulation import Record

BLOCK = 4096
"""Number of requests that are drawn at once."""
SHUFFLE_SEED = 3


@dataclass(frozen=True)
class Traffic:
    """Requests about contexts that come and go.

    At any time `live` contexts are in use. Their probabilities follow Zipf's law: the k-th has a
    weight of k to the power of `-exponent`. After each request, a new context replaces that of the
    request with probability 1 / `questions`.

    Args:
        live: Number of contexts in use at a time.
        questions: Mean number of questions about a context.
        exponent: Exponent of Zipf's law; 0 makes all equally popular.
    """

    live: int
    questions: float = 20.0
    exponent: float = 0.8

    def requests(self, seed: int = 0) -> Iterator[Context]:
        """Yield the contexts of requests without end, the same for the same seed."""
        draws = np.random.default_rng(seed)
        weights = np.arange(1, self.live + 1) ** -self.exponent
        bounds = np.cumsum(weights / weights.sum())
        current = [Context(i, at) for i, at in enumerate(draws.random(self.live).tolist())]
        name = self.live
        while True:
            ranks = np.searchsorted(bounds, draws.random(BLOCK)).clip(max=self.live - 1)
            ends = draws.random(BLOCK) < 1 / self.questions
            places = draws.random(BLOCK)
            for rank, end, at in zip(ranks.tolist(), ends.tolist(), places.tolist(), strict=True):
                yield current[rank]
                if end:
                    current[rank] = Context(name, at)
                    name += 1


def rounds(positions: Sequence[float], questions: int) -> list[Context]:
    """The requests of the measurement with two replicas: contexts × questions, shuffled."""
    jobs = [Context(i, at) for _ in range(questions) for i, at in enumerate(positions)]
    random.Random(SHUFFLE_SEED).shuffle(jobs)
    return jobs


@dataclass(frozen=True)
class Summary:
    """Summary of the outcomes of requests.

    Args:
        requests: Number of requests.
        known: Share of the answered requests whose context was cached.
        answered: Answers a second.
        refused: Share of requests that were refused, or expired in the queue.
        median: Median seconds of the answered requests.
        p99: 99th percentile of the same seconds.
    """

    requests: int
    known: float
    answered: float
    refused: float
    median: float
    p99: float


def summarize(records: Sequence[Record], start: float, end: float) -> Summary:
    """Summarize the requests whose outcome falls into a period."""
    inside = [one for one in records if start <= one.sent + one.seconds < end]
    answered = [one for one in inside if one.outcome == "answered"]
    seconds = np.array([one.seconds for one in answered]) if answered else np.array([np.nan])
    median, p99 = np.quantile(seconds, (0.5, 0.99)).tolist()
    return Summary(
        requests=len(inside),
        known=sum(one.known for one in answered) / max(1, len(answered)),
        answered=len(answered) / (end - start),
        refused=1 - len(answered) / max(1, len(inside)),
        median=median,
        p99=p99,
    )
