"""The path prefix that a reverse proxy puts in front of the service."""

from __future__ import annotations

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class Prefix:
    """ASGI middleware that serves every path with and without the prefix.

    A proxy may strip the prefix or pass it on, and probes come past the proxy. Behind this
    middleware `path` always begins with `root_path`, as ASGI defines it.

    Args:
        app: The application behind it.
        root_path: The prefix as callers see it, such as `/deltaw`.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; send the bare prefix to the page, whose references are relative."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        if path == self._root_path:
            await RedirectResponse(f"{self._root_path}/")(scope, receive, send)
            return
        if path.startswith(f"{self._root_path}/"):
            path = path.removeprefix(self._root_path)
        # In place, since the request log reads from this scope what the route leaves there.
        scope.update(root_path=self._root_path, path=self._root_path + path)
        await self._app(scope, receive, send)
