"""Capacity on paper: replicas, memory and network for a rate of requests."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.fleet.replica import Times

DAY = 86_400
PEAK = 2.5
"""Peak rate over mean rate."""
USE = 0.6
"""Utilisation: share of the time in which a replica computes. In the simulation it has about this
value at 70 % of a fleet's maximum rate, because the rings and popular contexts load replicas
unequally."""
NODE_CORES = 64


@dataclass(frozen=True)
class Load:
    """Load of a fleet.

    Args:
        mean: Mean rate, requests a second.
        peak: Peak rate, requests a second.
    """

    mean: float
    peak: float


def daily(requests: float) -> Load:
    """Load for a number of requests a day."""
    return Load(requests / DAY, PEAK * requests / DAY)


def mean_seconds(times: Times, known: float) -> float:
    """Mean compute seconds of a request, if a share of the contexts is cached."""
    return times.cold * (1 - known) + times.known * known


def cores(rate: float, times: Times, known: float, use: float = USE) -> float:
    """Cores for a rate of requests. Each core is a replica with one thread."""
    return rate * mean_seconds(times, known) / use


def gigabits(rate: float, size: float) -> float:
    """Gigabits a second for a rate of answers of `size` bytes each."""
    return rate * size * 8 / 1e9
