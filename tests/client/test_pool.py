"""Concurrent work whose outcomes are taken in order."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable

import pytest

from deltaw_client.pool import AHEAD, run_in_order, run_in_order_async

ITEMS, CONCURRENCY = 60, 5


class Gauge:
    """Counts the work in flight."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = self.most = self.begun = 0

    def __enter__(self) -> None:
        with self._lock:
            self.begun += 1
            self._now += 1
            self.most = max(self.most, self._now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._now -= 1


@pytest.mark.parametrize("fails_at", [None, 7])
def test_threads_give_outcomes_in_order(fails_at: int | None) -> None:
    """Outcomes come in order within the concurrency; an exception ends the run soon."""
    gauge, taken = Gauge(), list[int]()
    pauses = [random.Random(i).uniform(0.0, 0.005) for i in range(ITEMS)]

    def work(item: int) -> int:
        with gauge:
            time.sleep(pauses[item])
            return item

    def take(item: int) -> None:
        if item == fails_at:
            raise LookupError(item)
        taken.append(item)

    _ends(lambda: run_in_order(work, range(ITEMS), CONCURRENCY, take), gauge, taken, fails_at)


@pytest.mark.parametrize("fails_at", [None, 7])
def test_event_loop_gives_outcomes_in_order(fails_at: int | None) -> None:
    """The event loop keeps the order and the concurrency too."""
    gauge, taken = Gauge(), list[int]()
    pauses = [random.Random(i).uniform(0.0, 0.005) for i in range(ITEMS)]

    async def work(item: int) -> int:
        with gauge:
            await asyncio.sleep(pauses[item])
            return item

    def take(item: int) -> None:
        if item == fails_at:
            raise LookupError(item)
        taken.append(item)

    running = run_in_order_async(work, range(ITEMS), CONCURRENCY, take)
    _ends(lambda: asyncio.run(running), gauge, taken, fails_at)


def test_concurrency_below_one_is_refused() -> None:
    """A concurrency of 0 raises ValueError."""
    with pytest.raises(ValueError, match="0"):
        run_in_order(str, "a", 0, print)
    with pytest.raises(ValueError, match="1"):
        asyncio.run(run_in_order_async(asyncio.sleep, [0.0], 0, print))


def _ends(run: Callable[[], None], gauge: Gauge, taken: list[int], fails_at: int | None) -> None:
    """Run, and compare the outcomes, the concurrency and the work begun with their bounds."""
    if fails_at is None:
        run()
        assert taken == list(range(ITEMS))
        assert gauge.begun == ITEMS
    else:
        with pytest.raises(LookupError):
            run()
        assert taken == list(range(fails_at))
        assert gauge.begun <= fails_at + 1 + AHEAD * CONCURRENCY
    assert 1 < gauge.most <= CONCURRENCY
