"""Line reading: the body of an NDJSON request, cut into its lines while it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from fastapi import Request
from starlette.types import Receive

from service.api.channel import Channel
from service.api.exchange import ClientLeft
from service.api.heads import announced_bytes, timeout
from service.api.refusals import ProblemError
from service.api.state import state_of


@dataclass(frozen=True)
class Sent:
    """One line of a request.

    Args:
        index: Index from 0, without the blank lines.
        content: The line without its newline; empty if it is too long.
        size: Bytes of the line.
    """

    index: int
    content: bytes
    size: int


class Splitter:
    """Cuts pieces of a body into lines.

    Args:
        max_bytes: Maximum bytes of a line. The bytes of a longer one are counted, not kept.
        max_lines: Maximum lines, without the blank ones.
    """

    def __init__(self, max_bytes: int, max_lines: int) -> None:
        self._max_bytes = max_bytes
        self._max_lines = max_lines
        self._begun = bytearray()
        self._size = 0
        self._count = 0

    def feed(self, piece: bytes) -> Iterator[Sent]:
        """The lines that end in a piece.

        Raises:
            ProblemError: `too_many_lines`.
        """
        *ends, rest = piece.split(b"\n")
        for end in ends:
            self._add(end)
            yield from self.end()
        self._add(rest)

    def end(self) -> Iterator[Sent]:
        """The line that has begun, unless it is blank.

        Raises:
            ProblemError: `too_many_lines`.
        """
        content, size = bytes(self._begun), self._size
        self._begun.clear()
        self._size = 0
        if content.strip() or size > self._max_bytes:
            if self._count == self._max_lines:
                raise ProblemError("too_many_lines", limit=self._max_lines, actual=self._count + 1)
            yield Sent(self._count, content, size)
            self._count += 1

    def _add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= self._max_bytes:
            self._begun += piece
        else:
            self._begun.clear()


def check_announced(request: Request) -> None:
    """Refuse a body whose `Content-Length` is above the limit.

    Raises:
        ProblemError: `body_too_large`.
    """
    limit, announced = state_of(request).settings.max_ndjson_bytes, announced_bytes(request)
    if announced > limit:
        raise ProblemError("body_too_large", limit=limit, actual=announced)


async def read_lines(request: Request, receive: Receive, lines: Channel[Sent]) -> None:
    """Read a body to its end, whatever has become of the lines that were read. Then wait until the
    client leaves.

    Clients such as httpx send their whole body before they read, so reading never waits for them to
    read.

    Raises:
        ProblemError: `body_too_large`, `too_many_lines` or `request_timeout`.
        ClientLeft: The client left.
    """
    settings = state_of(request).settings
    splitter = Splitter(settings.max_body_bytes, settings.max_lines)
    size, more = 0, True
    while more:
        try:
            async with asyncio.timeout(settings.body_seconds):
                message = await receive()
        except TimeoutError:
            raise timeout() from None
        if message["type"] == "http.disconnect":
            raise ClientLeft
        size += len(message.get("body", b""))
        if size > settings.max_ndjson_bytes:
            raise ProblemError("body_too_large", limit=settings.max_ndjson_bytes, actual=size)
        for line in splitter.feed(message.get("body", b"")):
            lines.put(line)
        more = message.get("more_body", False)
    for line in splitter.end():
        lines.put(line)
    lines.close()
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientLeft
