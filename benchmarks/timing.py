"""Timing of sides that take turns, A B C A B C …, so that a disturbance affects every side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np
import torch

MIN_ROUNDS = 7
FEW = 3
"""Minimum rounds where one run takes long."""
Sides = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Seconds:
    """Duration of one run; a side that runs in another process returns its own.

    Args:
        wall: Wall-clock seconds.
        processor: Processor seconds of the process that computes, all threads.
    """

    wall: float
    processor: float


Times = Mapping[str, Sequence[Seconds]]
"""Durations by the side's name, one a round."""


def milliseconds(times: Times) -> dict[str, float]:
    """Median wall-clock milliseconds of each side."""
    return {side: 1000 * median(one.wall for one in runs) for side, runs in times.items()}


def ratio(times: Times, above: str, below: str, clock: Literal["wall", "processor"]) -> float:
    """Median over rounds of one side's time, relative to the other's in the same round.

    Other processes disturb the ratio of processor times less.
    """
    one, other = (np.array([getattr(run, clock) for run in times[side]]) for side in (above, below))
    return float(np.median(one / other))


def alternate(
    sides: Sides, device: torch.device, seconds: float, rounds: int = MIN_ROUNDS
) -> Times:
    """Run each side once without timing it, then time all sides in turn.

    Args:
        sides: Functions to time, by name.
        device: Device to synchronize after each run.
        seconds: Seconds for all rounds together.
        rounds: Minimum number of rounds, which `seconds` does not shorten.
    """
    for side in sides.values():
        _timed(side, device)
    times: dict[str, list[Seconds]] = {name: [] for name in sides}
    end = time.perf_counter() + seconds
    while len(next(iter(times.values()))) < rounds or time.perf_counter() < end:
        for name, side in sides.items():
            times[name].append(_timed(side, device))
    return times


def _timed(side: Callable[[], object], device: torch.device) -> Seconds:
    start, start_processor = time.perf_counter(), time.process_time()
    result = side()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if isinstance(result, Seconds):
        return result
    return Seconds(time.perf_counter() - start, time.process_time() - start_processor)
