"""Sharing: one computation for all who ask for the same thing at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from service.api.sharing import Sharing


class Work:
    """A computation of two steps that counts how often each began and ended."""

    def __init__(self) -> None:
        self.sharing: Sharing[str] = Sharing()
        self.may_end = asyncio.Event()
        self.may_store = asyncio.Event()
        self.begun = self.cancelled = self.stored = 0

    async def first(self) -> str:
        self.begun += 1
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "made"

    async def then(self, made: str) -> str:
        await self.may_store.wait()
        self.stored += 1
        return f"{made} and stored"

    def ask(self, key: str = "a") -> asyncio.Task[str]:
        return asyncio.ensure_future(self.sharing.share(key, self.first, self.then))


def run(scene: Callable[[Work], Coroutine[Any, Any, None]]) -> None:
    """Play a scene, and require that nothing is under way at its end."""

    async def play() -> None:
        work = Work()
        await scene(work)
        await asyncio.sleep(0)
        assert not work.sharing._under_way

    asyncio.run(play())


async def settle() -> None:
    """Let all tasks run until each waits."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_requests_for_one_thing_share_its_computation() -> None:
    """Three requests for one thing and one for another begin two computations."""

    async def scene(work: Work) -> None:
        asked = [work.ask(key) for key in ("a", "a", "b", "a")]
        await settle()
        assert work.begun == 2
        work.may_end.set()
        work.may_store.set()
        assert await asyncio.gather(*asked) == ["made and stored"] * 4
        assert work.stored == 2

    run(scene)


def test_computation_goes_on_while_one_request_waits() -> None:
    """The request that began it leaves, and the other gets its answer."""

    async def scene(work: Work) -> None:
        first, second = work.ask(), work.ask()
        await settle()
        first.cancel()
        await settle()
        assert work.cancelled == 0
        work.may_end.set()
        work.may_store.set()
        assert await second == "made and stored"

    run(scene)


def test_computation_ends_when_the_last_request_leaves() -> None:
    """All leave during the first step: it is cancelled, and the next request begins anew."""

    async def scene(work: Work) -> None:
        asked = [work.ask(), work.ask()]
        await settle()
        for one in asked:
            one.cancel()
        await settle()
        assert (work.cancelled, work.stored) == (1, 0)
        again = work.ask()
        await settle()
        assert work.begun == 2
        work.may_end.set()
        work.may_store.set()
        assert await again == "made and stored"

    run(scene)


def test_second_step_is_never_cut_off() -> None:
    """All leave during the second step: it ends nevertheless, and a later request joins it."""

    async def scene(work: Work) -> None:
        asked = work.ask()
        work.may_end.set()
        await settle()
        asked.cancel()
        await settle()
        late = work.ask()
        work.may_store.set()
        assert await late == "made and stored"
        assert (work.begun, work.stored) == (1, 1)

    run(scene)


def test_error_reaches_every_request() -> None:
    """An error of the computation is raised for each who waits, and is not kept."""

    async def fail() -> str:
        await asyncio.sleep(0)
        raise ValueError("no")

    async def scene(work: Work) -> None:
        sharing = work.sharing
        asked = [asyncio.ensure_future(sharing.share("a", fail, work.then)) for _ in range(2)]
        for one in asked:
            with pytest.raises(ValueError, match="no"):
                await one
        await settle()

    run(scene)
