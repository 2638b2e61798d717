"""Concurrent streams, merged in the order of arrival."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from itertools import count
from threading import Event

import pytest

from deltaw_client.merge import AHEAD, merge, merge_async

CONCURRENCY, EACH = 5, 3
PAUSES = [random.Random(i).uniform(0.0, 0.003) for i in range(40)]
EXPECTED = sorted((item, i) for item in range(len(PAUSES)) for i in range(EACH))


class Gauge:
    """Counts the streams in flight."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.most = 0

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.now -= 1


def test_threads_give_every_outcome_within_the_concurrency() -> None:
    """Each outcome comes once; no more streams run at once than allowed."""
    gauge = Gauge()

    def stream(item: int, _: Event) -> Generator[tuple[int, int]]:
        with gauge:
            for i in range(EACH):
                time.sleep(PAUSES[item])
                yield item, i

    assert sorted(merge(stream, iter(range(len(PAUSES))), CONCURRENCY)) == EXPECTED
    assert 1 < gauge.most <= CONCURRENCY
    assert gauge.now == 0


def test_event_loop_gives_every_outcome_within_the_concurrency() -> None:
    """The event loop gives each outcome once within the concurrency too."""
    gauge = Gauge()

    async def stream(item: int) -> AsyncGenerator[tuple[int, int]]:
        with gauge:
            for i in range(EACH):
                await asyncio.sleep(PAUSES[item])
                yield item, i

    async def merged() -> list[tuple[int, int]]:
        streams = merge_async(stream, iter(range(len(PAUSES))), CONCURRENCY)
        return [outcome async for outcome in streams]

    assert sorted(asyncio.run(merged())) == EXPECTED
    assert 1 < gauge.most <= CONCURRENCY


@pytest.mark.parametrize("fails", [False, True])
def test_closing_or_an_exception_ends_all_threads(fails: bool) -> None:
    """After closing, or an exception of one stream, no stream runs and no item is taken."""
    gauge = Gauge()
    items = count()

    def stream(item: int, stopped: Event) -> Generator[int]:
        with gauge:
            while not stopped.is_set():
                if fails and item == 2:
                    raise LookupError(item)
                yield item

    merged = merge(stream, items, CONCURRENCY)
    if fails:
        with pytest.raises(LookupError):
            list(merged)
    else:
        assert next(merged) < CONCURRENCY
        merged.close()
    assert gauge.now == 0
    assert next(items) <= CONCURRENCY


@pytest.mark.parametrize("fails", [False, True])
def test_closing_or_an_exception_ends_all_tasks(fails: bool) -> None:
    """After closing, or an exception of one stream, every task of the streams has ended."""
    gauge = Gauge()

    async def stream(item: int) -> AsyncGenerator[int]:
        with gauge:
            while True:
                if fails and item == 2:
                    raise LookupError(item)
                await asyncio.sleep(0)
                yield item

    async def ends() -> None:
        merged = merge_async(stream, count(), CONCURRENCY)
        if fails:
            with pytest.raises(LookupError):
                async for _ in merged:
                    pass
        else:
            assert await anext(merged) < CONCURRENCY
            await merged.aclose()
        assert gauge.now == 0
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(ends())


def test_streams_pause_if_outcomes_are_not_taken() -> None:
    """At most `AHEAD` outcomes wait, besides the one that each stream holds."""
    made = count()

    def stream(_: int, __: Event) -> Iterator[int]:
        yield from made

    def generator(item: int, stopped: Event) -> Generator[int]:
        yield from stream(item, stopped)

    merged = merge(generator, iter([0]), 1)
    next(merged)
    time.sleep(0.05)
    assert next(made) <= AHEAD + 3
    merged.close()
