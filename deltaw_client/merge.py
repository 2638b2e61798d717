"""Concurrent streams of outcomes, merged into one iterator in the order of arrival."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, closing
from queue import Queue
from threading import Event, Lock, Semaphore
from typing import TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

AHEAD = 64
"""Maximum number of outcomes that wait to be taken. Above it the streams pause."""


def merge(
    stream: Callable[[Item, Event], Generator[Outcome]], items: Iterator[Item], concurrency: int
) -> Generator[Outcome]:
    """Run streams on threads. The first exception of a stream, or closing, ends them all.

    Args:
        stream: Called with each item and with an event that is set when the streams must end.
        items: The items. Each is taken when a thread is free.
        concurrency: Maximum number of concurrent streams.
    """
    outcomes: Queue[Outcome | Future[None]] = Queue()
    stopped, lock, room = Event(), Lock(), Semaphore(AHEAD)

    def work() -> None:
        while not stopped.is_set():
            with lock:
                item = next(items, None)
            if item is None:
                return
            with closing(stream(item, stopped)) as running:
                for outcome in running:
                    room.acquire()
                    if stopped.is_set():
                        return
                    outcomes.put(outcome)

    with ThreadPoolExecutor(concurrency) as pool:
        for _ in range(concurrency):
            pool.submit(work).add_done_callback(outcomes.put)
        working = concurrency
        try:
            while working:
                outcome = outcomes.get()
                if isinstance(outcome, Future):
                    working -= 1
                    outcome.result()
                else:
                    room.release()
                    yield outcome
        finally:
            stopped.set()
            # Each thread may wait for room, and then sees that it must end.
            room.release(concurrency)


async def merge_async(
    stream: Callable[[Item], AsyncGenerator[Outcome]], items: Iterator[Item], concurrency: int
) -> AsyncGenerator[Outcome]:
    """Run streams as tasks of the event loop, like `merge`."""
    outcomes: asyncio.Queue[Outcome | asyncio.Task[None]] = asyncio.Queue()
    room = asyncio.Semaphore(AHEAD)

    async def work() -> None:
        for item in items:
            async with aclosing(stream(item)) as running:
                async for outcome in running:
                    await room.acquire()
                    outcomes.put_nowait(outcome)

    tasks = [asyncio.create_task(work()) for _ in range(concurrency)]
    for task in tasks:
        task.add_done_callback(outcomes.put_nowait)
    working = concurrency
    try:
        while working:
            outcome = await outcomes.get()
            if isinstance(outcome, asyncio.Task):
                working -= 1
                outcome.result()
            else:
                room.release()
                yield outcome
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
