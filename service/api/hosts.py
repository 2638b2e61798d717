"""`Host`: a service without a key answers only to names of its own, whoever resolves to it."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.problems import ProblemError, respond


class KnownHosts:
    """ASGI middleware that refuses a request whose `Host` is none of those given.

    A request without the header is let through: no browser sends one.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        known = scope["type"] != "http" or all(
            host_name(value) in self._hosts for value in Headers(scope=scope).getlist("host")
        )
        if known:
            await self._app(scope, receive, send)
        else:
            refused = respond(Request(scope), ProblemError("unknown_host"))
            await refused(scope, receive, send)


def host_name(value: str) -> str:
    """The name or address in a `Host`, without its port."""
    if value.startswith("["):
        return value[1:].partition("]")[0].lower()
    return value.partition(":")[0].lower().removesuffix(".")
