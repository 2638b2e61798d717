"""Line reading: lines are the same however the body is cut, and no more is kept than allowed."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.channel import Channel
from service.api.line_reading import Sent, Splitter
from service.api.refusals import ProblemError

BODIES = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b" ", b"\xff", b"x" * 9]))


def split(*pieces: bytes, max_bytes: int = 8, max_lines: int = 99) -> list[Sent]:
    """The lines of a body that arrives in pieces."""
    splitter = Splitter(max_bytes, max_lines)
    return [line for piece in pieces for line in splitter.feed(piece)] + list(splitter.end())


@settings(max_examples=50, deadline=None)
@given(BODIES)
def test_lines_do_not_depend_on_the_pieces(pieces: list[bytes]) -> None:
    """A body gives the same lines in any pieces: those of `split`, without the blank ones."""
    body = b"".join(pieces)
    lines = split(*pieces)
    assert lines == split(body) == split(*(bytes([byte]) for byte in body))
    wanted = [line for line in body.split(b"\n") if line.strip() or len(line) > 8]
    assert [line.size for line in lines] == list(map(len, wanted))
    assert [line.content for line in lines] == [b"" if len(one) > 8 else one for one in wanted]
    assert [line.index for line in lines] == list(range(len(lines)))


def test_bytes_of_a_long_line_are_counted_and_not_kept() -> None:
    """A line above the limit is its size alone, and the next line is whole."""
    splitter = Splitter(8, 99)
    for _ in range(1000):
        assert list(splitter.feed(b"x" * 1000)) == []
        assert len(splitter._begun) == 0
    assert list(splitter.feed(b"\nab\n")) == [Sent(0, b"", 1_000_000), Sent(1, b"ab", 2)]


def test_blank_lines_do_not_count_to_the_limit() -> None:
    """Only lines with something in them count; the first one above the limit is refused."""
    assert len(split(b"\n" * 100 + b"a\n" * 3 + b" \n" * 100, max_lines=3)) == 3
    with pytest.raises(ProblemError) as refused:
        split(b"a\n\nb\nc\nd", max_lines=3)
    assert (refused.value.code, refused.value.limit, refused.value.actual) == (
        "too_many_lines",
        3,
        4,
    )


def test_channel_waits_for_room_and_takes_what_belongs_together() -> None:
    """Items wait until earlier ones are freed, and are taken in order up to a weight."""

    async def check() -> None:
        channel = Channel[int](float, 10)
        for item in (4, 5):
            await channel.room([item])
            channel.put(item)
        waiting = asyncio.ensure_future(channel.room([2]))
        await asyncio.sleep(0)
        assert not waiting.done()
        assert await channel.take(8) == [4]
        assert not waiting.done()
        channel.free([4])
        await waiting
        channel.put(2)
        channel.put(1)
        assert await channel.take(99, lambda first, other: other == 2) == [5, 2]
        channel.close()
        assert await channel.take(0) == [1]
        assert await channel.take(0) == []

    asyncio.run(check())


def test_channel_gives_an_item_above_the_limit_room_of_its_own() -> None:
    """An item heavier than the limit passes once nothing else is there."""

    async def check() -> None:
        channel = Channel[int](float, 10)
        await channel.room([50])
        channel.put(50)
        assert await channel.take(10) == [50]

    asyncio.run(check())
