"""Routing: `Host`, the path prefix and HEAD of a request, before the routes see it."""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import respond
from service.api.refusals import ProblemError

FIELD = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(:[0-9]*)?")
"""RFC 9110, 7.2: a host and a port."""
METHODS = ("DELETE", "GET", "POST")
"""All methods that the service's routes use."""


class Routing:
    """ASGI middleware that checks the `Host` of each request and leads it to its route.

    RFC 9112, 3.2 demands a 400 where `Host` is repeated or malformed, or missing in HTTP/1.1.

    Every path is served with and without the prefix: a proxy may strip it or pass it on, and probes
    come past the proxy. Behind this middleware `path` always begins with `root_path`, as ASGI
    defines it.

    HEAD is routed as GET, and the server leaves the body out. FastAPI's routes answer the methods
    that they name, and the OpenAPI document would list a HEAD beside each GET.

    Args:
        app: The application behind it.
        hosts: Names and addresses to accept; None accepts any.
        root_path: The prefix as callers see it, such as `/deltaw`; empty if there is none.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, root_path: str) -> None:
        self._app = app
        self._hosts = hosts
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, refuse it, or send the bare prefix to the page, whose references are
        relative."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (refusal := self._refusal(scope)) is not None:
            await respond(Request(scope), refusal)(scope, receive, send)
            return
        if self._root_path:
            path: str = scope["path"].removeprefix(scope.get("root_path", ""))
            if path == self._root_path:
                await RedirectResponse(f"{self._root_path}/")(scope, receive, send)
                return
            if path.startswith(f"{self._root_path}/"):
                path = path.removeprefix(self._root_path)
            # In place, since the request log reads from this scope what the route leaves there.
            scope.update(root_path=self._root_path, path=self._root_path + path)

        async def send_allowing_head(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 405:
                headers = MutableHeaders(scope=message)
                headers["allow"] = _allowed(routed) or headers.get("allow", "")
            await send(message)

        # The server decides by its own scope whether to send the body.
        method = scope["method"]
        routed = {**scope, "method": "GET" if method == "HEAD" else method}
        try:
            await self._app(routed, receive, send_allowing_head)
        finally:
            scope.update({**routed, "method": method})

    def _refusal(self, scope: Scope) -> ProblemError | None:
        sent = Headers(scope=scope).getlist("host")
        missing = not sent and scope["http_version"] == "1.1"
        if missing or len(sent) > 1 or not all(FIELD.fullmatch(value) for value in sent):
            return ProblemError(
                "malformed_request",
                "Send exactly one `Host` header, with a host and at most a port.",
                headers={"Connection": "close"},
            )
        if self._hosts is not None and any(host_name(value) not in self._hosts for value in sent):
            return ProblemError("unknown_host")
        return None


def _allowed(scope: Scope) -> str:
    """The methods of a path, for `Allow`.

    Each route knows only its own methods, and a path may have several routes. Mounts are left out,
    because a mount matches any method and sets `Allow` itself.
    """
    routes = [route for route in scope["app"].routes if not isinstance(route, Mount)]
    return ", ".join(
        "GET, HEAD" if method == "GET" else method
        for method in METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    )


def host_name(value: str) -> str:
    """The name or address in a `Host`, without its port."""
    if value.startswith("["):
        return value[1:].partition("]")[0].lower()
    return value.partition(":")[0].lower().removesuffix(".")
