"""Timing in turn: A B C A B C …, so that what disturbs the machine disturbs every side.

Beside the wall's time, which is what counts, stands the processor time of the process that works:
where other processes take turns on the cores, the ratio of the latter is the steadier one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

LEAST_ROUNDS = 7
MOST_ROUNDS = 200


@dataclass(frozen=True)
class Taken:
    """What one run of a side took; a side that runs in another process returns its own.

    Args:
        seconds: On the wall.
        processor: Of the processor, all threads.
    """

    seconds: float
    processor: float


@dataclass(frozen=True)
class Times:
    """Seconds of each side, one a round; both by the side's name, all of one length.

    Args:
        sides: On the wall.
        processor: Of the processor, all threads.
    """

    sides: Mapping[str, list[float]]
    processor: Mapping[str, list[float]]

    @property
    def rounds(self) -> int:
        """How often each side ran."""
        return len(next(iter(self.sides.values())))

    def median(self, side: str) -> float:
        """Seconds."""
        return median(self.sides[side])

    def ratio(self, above: str, below: str) -> float:
        """The median over rounds of one side's time over another's in the same round."""
        return _ratio(self.sides[above], self.sides[below])

    def processor_ratio(self, above: str, below: str) -> float:
        """The same of the processor's time."""
        return _ratio(self.processor[above], self.processor[below])

    @property
    def milliseconds(self) -> dict[str, float]:
        """The median of each side."""
        return {side: 1000 * self.median(side) for side in self.sides}


def in_turn(
    sides: Mapping[str, Callable[[], object]],
    device: torch.device,
    seconds: float,
    least: int = LEAST_ROUNDS,
    *,
    warm: bool = False,
) -> Times:
    """Run all sides in turn, once unmeasured, then for about so many seconds.

    Args:
        sides: What to run, by name.
        device: Which is waited for at the end of each run.
        seconds: Of all rounds together; at most two hundred rounds are run.
        least: Rounds that are run whatever they take.
        warm: Whether all sides ran before, so that none needs to run unmeasured.
    """
    for work in () if warm else sides.values():
        work()
    taken: dict[str, list[float]] = {side: [] for side in sides}
    worked: dict[str, list[float]] = {side: [] for side in sides}
    wait_for(device)
    end = time.perf_counter() + seconds
    for done in range(MOST_ROUNDS):
        if done >= least and time.perf_counter() > end:
            break
        for side, work in sides.items():
            one = _timed(work, device)
            taken[side].append(one.seconds)
            worked[side].append(one.processor)
    return Times(taken, worked)


def _timed(work: Callable[[], object], device: torch.device) -> Taken:
    start, start_worked = time.perf_counter(), time.process_time()
    told = work()
    wait_for(device)
    if isinstance(told, Taken):
        return told
    return Taken(time.perf_counter() - start, time.process_time() - start_worked)


def _ratio(above: list[float], below: list[float]) -> float:
    return median(one / other for one, other in zip(above, below, strict=True))


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
