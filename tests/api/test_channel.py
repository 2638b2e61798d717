"""Channels: room for what follows."""

from __future__ import annotations

import asyncio

from service.api.channel import Channel


def test_a_heavy_item_has_room_once_all_others_are_freed() -> None:
    """An item above the limit waits until nothing else is there, whatever sums were rounded."""

    async def pass_through() -> None:
        channel = Channel[float](float, 1.0)
        for item in (0.1, 0.2, 0.3):
            channel.put(item)
        channel.free(await channel.take(0.1))
        channel.free(await channel.take(1.0))
        async with asyncio.timeout(1):
            await channel.room([1.5])

    asyncio.run(pass_through())
