"""HEAD: answered like GET, without the body."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadAsGet:
    """ASGI middleware that routes HEAD as GET. The server leaves the body out.

    FastAPI's routes answer the methods that they name, and the OpenAPI document would list a HEAD
    beside each GET.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and name HEAD in `Allow` wherever GET is named."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_allowing_head(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 405:
                headers = MutableHeaders(scope=message)
                if headers.get("allow") == "GET":
                    headers["allow"] = "GET, HEAD"
            await send(message)

        if scope["method"] != "HEAD":
            await self._app(scope, receive, send_allowing_head)
            return
        # The server decides by its own scope whether to send the body; the request log reads from
        # that scope what the route leaves there.
        routed = {**scope, "method": "GET"}
        try:
            await self._app(routed, receive, send_allowing_head)
        finally:
            scope.update({**routed, "method": "HEAD"})
