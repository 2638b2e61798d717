"""Concurrent work whose outcomes are taken in the order of the items."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

AHEAD = 4
"""Maximum number of items in flight or waiting to be taken, as a multiple of the concurrency."""


def run_in_order(
    work: Callable[[Item], Outcome],
    items: Iterable[Item],
    concurrency: int,
    take: Callable[[Outcome], None],
) -> None:
    """Run on threads. An exception of `take` or `work` ends the run and drops the work not begun.

    Args:
        work: Called with each item, on a thread of the pool.
        items: The items.
        concurrency: Maximum number of concurrent calls of `work`.
        take: Called with each outcome, in order, on the caller's thread.
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


async def run_in_order_async(
    work: Callable[[Item], Awaitable[Outcome]],
    items: Iterable[Item],
    concurrency: int,
    take: Callable[[Outcome], None],
) -> None:
    """Run on an event loop, like `run_in_order`; an exception also cancels the work in flight."""
    if concurrency < 1:
        raise ValueError("concurrency must be at least 1")
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
