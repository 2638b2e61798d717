"""Sharing: requests for the same thing at the same time share one computation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


@dataclass(eq=False)
class _Shared(Generic[B]):
    """One computation: its first step, the whole, and the number of requests that wait for it."""

    first: asyncio.Task[Any]
    whole: asyncio.Task[B]
    waiting: int = 0


class Sharing(Generic[B]):
    """Computations under way, by their key."""

    def __init__(self) -> None:
        self._under_way: dict[str, _Shared[B]] = {}

    async def share(
        self,
        key: str,
        first: Callable[[], Coroutine[Any, Any, A]],
        then: Callable[[A], Awaitable[B]],
    ) -> B:
        """Wait for the computation with this key, and begin it if it is not under way.

        If every waiting request is cancelled during the first step, the computation is cancelled
        too. After that step it always runs to its end.

        Args:
            key: What it computes.
            first: The first step.
            then: The rest, from the result of the first step.
        """
        shared = self._under_way.get(key)
        if shared is None:
            shared = self._begin(key, first, then)
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.whole)
        finally:
            shared.waiting -= 1
            if not shared.waiting and not shared.first.done():
                shared.first.cancel()
                self._end(key, shared)

    def _begin(
        self,
        key: str,
        first: Callable[[], Coroutine[Any, Any, A]],
        then: Callable[[A], Awaitable[B]],
    ) -> _Shared[B]:
        begun = asyncio.ensure_future(first())

        async def whole() -> B:
            return await then(await begun)

        shared = self._under_way[key] = _Shared(begun, asyncio.ensure_future(whole()))
        # Every waiting request may have left, and asyncio would then log an error that nobody read.
        shared.whole.add_done_callback(lambda task: task.cancelled() or task.exception())
        shared.whole.add_done_callback(lambda _task: self._end(key, shared))
        return shared

    def _end(self, key: str, shared: _Shared[B]) -> None:
        if self._under_way.get(key) is shared:
            del self._under_way[key]
