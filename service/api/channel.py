"""Channel: items on their way from one task of an event loop to another, and waiting for tasks."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Channel(Generic[T]):
    """Items in order, with a limit on the weight of those that were put and not freed.

    Args:
        weigh: Weight of an item.
        limit: Maximum weight of all items. A single item may exceed it.
    """

    def __init__(self, weigh: Callable[[T], float], limit: float = math.inf) -> None:
        self._weigh = weigh
        self._limit = limit
        self._items: deque[T] = deque()
        self._weight = 0.0
        self._count = 0
        self._closed = False
        self._changed = asyncio.Event()

    async def room(self, items: Iterable[T]) -> None:
        """Wait until these items may be put."""
        more = sum(map(self._weigh, items))
        await self._until(lambda: not self._count or self._weight + more <= self._limit)

    def put(self, item: T) -> None:
        """Add an item, for which there is room."""
        self._items.append(item)
        self._weight += self._weigh(item)
        self._count += 1
        self._changed.set()

    def close(self) -> None:
        """Say that no item follows."""
        self._closed = True
        self._changed.set()

    async def take(
        self, limit: float, alike: Callable[[T, T], bool] = lambda _first, _other: True
    ) -> list[T]:
        """Wait for an item, and take it with those that follow it and have come already.

        Args:
            limit: Maximum weight of the taken items. The first one may exceed it.
            alike: Whether an item may be taken together with the first one.

        Returns:
            The items, which keep their weight until they are freed; empty at the end.
        """
        await self._until(lambda: bool(self._items) or self._closed)
        taken: list[T] = []
        weight = 0.0
        while self._items:
            weight += self._weigh(self._items[0])
            if taken and (weight > limit or not alike(taken[0], self._items[0])):
                break
            taken.append(self._items.popleft())
        return taken

    def free(self, items: Sequence[T]) -> None:
        """Make room again for items that were taken."""
        self._count -= len(items)
        # Rounding must leave nothing behind: an item above the limit waits for no weight at all.
        self._weight = self._weight - sum(map(self._weigh, items)) if self._count else 0.0
        self._changed.set()

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            self._changed.clear()
            await self._changed.wait()


async def first_error(last: asyncio.Future[None], others: Iterable[asyncio.Future[None]]) -> None:
    """Wait until the last task is done, or until any task fails, whose error this raises."""
    waiting = {last, *others}
    while last in waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        # The server also reports that a client has left once it has the whole answer.
        for task in (last,) if last in done else done:
            task.result()
