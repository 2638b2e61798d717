"""`Host`: one in every request, and where there is no key only the service's own names."""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.problems import ProblemError, respond

FIELD = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(:[0-9]*)?")
"""RFC 9110, 7.2: a host and a port."""


class KnownHosts:
    """ASGI middleware that checks the `Host` of each request.

    RFC 9112, 3.2 demands a 400 where the header is repeated or malformed, or missing in HTTP/1.1.

    Args:
        app: The application behind it.
        hosts: Names and addresses to accept; None accepts any.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            await respond(Request(scope), refusal)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

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


def host_name(value: str) -> str:
    """The name or address in a `Host`, without its port."""
    if value.startswith("["):
        return value[1:].partition("]")[0].lower()
    return value.partition(":")[0].lower().removesuffix(".")
