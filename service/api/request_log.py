"""The outermost layer: request ids, headers, metrics and one log line a request."""

from __future__ import annotations

import asyncio
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.exchange import ClientLeft
from service.api.headers import protect
from service.api.problems import respond
from service.telemetry import Metrics, request_id
from service.tracing import Tracing

CLIENT_LEFT = 499
COUNTS = ("rows", "rows_cached", "lines", "failed_lines")
GUARD = "deltaw.guard"
"""Key of the connection's guard in a scope's `state`, where the server has guards."""
log = structlog.get_logger("deltaw")


class RequestLog:
    """ASGI middleware that names each request, times it, counts it and logs it; never its body.

    It also turns what nobody has a name for into the problem `internal`, with the traceback in the
    log.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an HTTP request on, observed."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        asked = Headers(scope=scope)
        scope["deltaw.request_id"] = request_id(asked.get("x-request-id"))
        guard = scope.get("state", {}).get(GUARD)
        if guard:
            guard.began(scope["headers"])
        status = 0

        async def logged_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = scope["deltaw.request_id"]
                protect(headers, scope["method"])
                if "upgrade" in asked:
                    # There is nothing to upgrade to, and parsers read no request behind this one.
                    headers["Connection"] = "close"
                if guard:
                    guard.responds()
            await send(message)

        try:
            await self._app(scope, receive, logged_send)
        except (ClientLeft, ClientDisconnect):
            status = CLIENT_LEFT
        except asyncio.CancelledError:
            # Ray Serve cancels the call of a replica when the client leaves.
            status = CLIENT_LEFT
            raise
        except Exception as error:
            log.exception("internal error", request_id=scope["deltaw.request_id"])
            if status:
                raise
            await respond(Request(scope), error)(scope, receive, logged_send)
        finally:
            if guard:
                guard.ended()
            self._note(scope, status, start)

    def _note(self, scope: Scope, status: int, start: float) -> None:
        seconds = time.monotonic() - start
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if route != "unmatched" else "any"
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.duration.labels(method, route).observe(seconds)
        if problem := scope.get("deltaw.problem"):
            self._metrics.rejected.labels(problem).inc()
        # Copied, because a thread may still add stages after the client has left.
        stages: dict[str, tuple[float, float]] = scope.get("deltaw.stages", {}).copy()
        noted = {
            "request_id": scope["deltaw.request_id"],
            "method": method,
            "route": route,
            "status": status,
            "duration_ms": round(1000 * seconds, 3),
            "problem": problem,
            "key": scope.get("deltaw.key"),
            **{name: scope.get(f"deltaw.{name}") for name in COUNTS},
            "timings_ms": {name: round(1000 * value, 3) for name, (_, value) in stages.items()},
        }
        known = {name: value for name, value in noted.items() if value not in (None, {})}
        parent = Headers(scope=scope).get("traceparent")
        if trace := self._tracing.record(parent, known, start, seconds, stages):
            known["trace_id"] = trace
        log.info("request", **known)
