"""Files as answers, read and sent piece by piece."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from typing import IO

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

PIECE = 1 << 18
"""Bytes that are read at a time."""
ENTITY_TAG = r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")'
SEPARATED = re.compile(rf"[ \t]*(?:{ENTITY_TAG}[ \t]*)?(?:,|\Z)")
"""One element of a list of entity tags. RFC 9110 lets a reader skip empty elements."""


class FileAnswer(Response):
    """An open file as an answer. It is closed once it is sent, or once the client has left.

    Args:
        file: The open file.
        name: The name under which the client saves it.
        etag: Its entity tag.
        media_type: Its media type.
    """

    def __init__(self, file: IO[bytes], *, name: str, etag: str, media_type: str) -> None:
        self._file = file
        size = file.seek(0, os.SEEK_END)
        headers = {
            "Content-Length": str(size),
            "Content-Disposition": f'attachment; filename="{name}"',
            **caching(etag),
        }
        super().__init__(headers=headers, media_type=media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file."""
        start = {"status": self.status_code, "headers": self.raw_headers}
        with self._file as file:
            file.seek(0)
            await send({"type": "http.response.start", **start})
            while piece := await asyncio.to_thread(file.read, PIECE):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})


def caching(etag: str) -> dict[str, str]:
    """Headers of an answer that clients may keep, and ask for again by its entity tag."""
    return {"ETag": etag, "Cache-Control": "private, no-cache"}


def matches(fields: Sequence[str], etag: str) -> bool:
    """Whether `If-None-Match` has an entity tag, by the weak comparison of RFC 9110, 13.1.2.

    Args:
        fields: Values of the header's fields. `*` matches any tag. What follows a mistake in a list
            is ignored.
        etag: The entity tag of the current file.
    """
    content = ", ".join(fields)
    if content.strip(" \t") == "*":
        return True
    wanted, start = etag.removeprefix("W/"), 0
    while start < len(content) and (found := SEPARATED.match(content, start)) is not None:
        if found[1] == wanted:
            return True
        start = found.end()
    return False
