"""Outermost layer of the front: one valid request id, and problems instead of plain text."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.headers import protect
from service.api.refusals import ProblemError, refusal
from service.telemetry import request_id

CONTROLS = (
    "x-request-timeout-seconds",
    "x-request-disconnect-disabled",
    "x-session-id",
    "serve_multiplexed_model_id",
)
"""Headers by which a client could change how Ray Serve treats its request. The front drops them."""
Head = tuple[int, list[tuple[bytes, bytes]]]
"""Status and headers of an answer."""
Opening = tuple[Head, bytes]
"""Head of an answer, and the first piece of its body."""
CODES = {404: "not_found", 408: "deadline_exceeded", 503: "queue_full"}
"""Problem codes for Ray Serve's own answers, by status."""


class Names:
    """ASGI middleware that gives each answer exactly one valid request id.

    It wraps Ray Serve's own middleware, which adds a second id, and echoes the client's id even if
    that is invalid. Ray Serve's own answers, which are plain text, become problems.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with a valid id, and set this id once in the answer."""
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self._app(scope, receive, send)
            return
        asked = MutableHeaders(scope=scope)
        name = request_id(asked.get("x-request-id"))
        asked["X-Request-ID"] = name
        for control in CONTROLS:
            del asked[control]
        scope["headers"] = asked.raw
        replaced = started = False

        async def named_send(message: Message) -> None:
            nonlocal replaced, started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                if len(headers.getlist("x-request-id")) < 2:
                    # The front's answers have two ids: its own, and that of Ray Serve. With one or
                    # none, this is an answer of Ray Serve itself.
                    replaced = True
                    await self._refuse(scope, message["status"], receive, send)
                    return
                headers["X-Request-ID"] = name
            if not replaced:
                await send(message)

        await self._app(scope, receive, named_send)
        if not started:
            await self._refuse(scope, 500, receive, send)

    async def _refuse(self, scope: Scope, status: int, receive: Receive, send: Send) -> None:
        """Answer with a problem instead of Ray Serve's plain text."""
        problem = ProblemError(CODES.get(status, "internal"), headers={"Retry-After": "1"})
        await answer_problem(scope, problem)(scope, receive, send)


def answer_problem(scope: Scope, error: ProblemError) -> Response:
    """Return the response to an error, with the same headers as a replica's."""
    request = Request(scope)
    scope["deltaw.request_id"] = request.headers["x-request-id"]
    response = refusal(scope, error)
    response.headers["X-Request-ID"] = request.headers["x-request-id"]
    protect(response.headers, request.method)
    return response


def own_answer(scope: Scope, content: bytes) -> Opening:
    """Return an answer of the front itself: its head, and its JSON."""
    request = Request(scope)
    response = Response(content, media_type="application/json")
    response.headers["X-Request-ID"] = request.headers["x-request-id"]
    protect(response.headers, request.method)
    return (response.status_code, response.raw_headers), content


def middlewares() -> list[Middleware]:
    """Return the middleware for Ray Serve to put around the front.

    `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names this function.
    """
    return [Middleware(Names)]
