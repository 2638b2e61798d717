"""An httpx transport to an application in this process.

httpx's own transport gives a response only when it is complete. This one gives each piece when the
application sends it, so that a sweep receives each line when it is ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import httpx

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]


class InProcessTransport(httpx.AsyncBaseTransport):
    """Sends each request to an ASGI application, in a task of its own.

    Args:
        app: The application. Its exceptions are raised where the response is awaited or read.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return the response when its headers have arrived."""
        body = _Body(self._app, scope(request), await request.aread())
        try:
            head = await body.next()
        except BaseException:
            await body.aclose()
            raise
        return httpx.Response(head["status"], headers=head["headers"], stream=body)


class _Body(httpx.AsyncByteStream):
    """The task of a request, and the pieces of its response."""

    def __init__(self, app: App, asked: Message, content: bytes) -> None:
        self._sent: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self._left = asyncio.Event()
        self._task = asyncio.ensure_future(app(asked, self._receive, self._messages.put))
        self._task.add_done_callback(lambda _: self._messages.put_nowait(None))

    async def _receive(self) -> Message:
        if self._sent:
            return self._sent.pop()
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def next(self) -> Message:
        """Return the next message of the application, or raise its exception.

        Raises:
            httpx.RemoteProtocolError: The application ended before its response did.
        """
        message = await self._messages.get()
        if message is None:
            await self._task
            raise httpx.RemoteProtocolError("the application ended before its response did")
        return message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self.next()
            more = message.get("more_body", False)
            yield message.get("body", b"")

    async def aclose(self) -> None:
        """Disconnect, and wait until the application has noticed."""
        self._left.set()
        await asyncio.gather(self._task, return_exceptions=True)


def scope(request: httpx.Request) -> Message:
    """Return the ASGI scope of a request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "scheme": request.url.scheme,
        "path": request.url.path,
        "raw_path": request.url.raw_path.partition(b"?")[0],
        "query_string": request.url.query,
        "server": (request.url.host, request.url.port),
        "client": ("127.0.0.1", 0),
        "root_path": "",
    }
