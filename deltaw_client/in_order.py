"""Many pieces of work at once, their outcomes taken in the order of the items."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

AHEAD = 4
"""So many times the concurrency may be done or under way behind the item whose turn it is."""


def in_order(
    work: Callable[[Item], Outcome],
    items: Iterable[Item],
    concurrency: int,
    take: Callable[[Outcome], None],
) -> None:
    """On threads. What `take` or `work` raises ends it; work that has not begun is dropped.

    Args:
        work: What is done with each item.
        items: The items.
        concurrency: Pieces of work at once.
        take: Takes each outcome, in order, on this thread.
    """
    pool = ThreadPoolExecutor(concurrency)
    waiting: deque[Future[Outcome]] = deque()
    try:
        for item in items:
            if len(waiting) == AHEAD * concurrency:
                take(waiting.popleft().result())
            waiting.append(pool.submit(work, item))
        while waiting:
            take(waiting.popleft().result())
    finally:
        pool.shutdown(cancel_futures=True)


async def async_in_order(
    work: Callable[[Item], Awaitable[Outcome]],
    items: Iterable[Item],
    concurrency: int,
    take: Callable[[Outcome], None],
) -> None:
    """The same on an event loop; work that is under way is cancelled where something is raised."""
    if concurrency < 1:
        raise ValueError("concurrency is at least 1")
    gate = asyncio.Semaphore(concurrency)

    async def gated(item: Item) -> Outcome:
        async with gate:
            return await work(item)

    waiting: deque[asyncio.Task[Outcome]] = deque()
    try:
        for item in items:
            if len(waiting) == AHEAD * concurrency:
                take(await waiting[0])
                waiting.popleft()
            waiting.append(asyncio.create_task(gated(item)))
        while waiting:
            take(await waiting[0])
            waiting.popleft()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
