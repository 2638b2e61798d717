"""The front: it limits a request's body, determines its context's key, and calls a replica."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any

import orjson
import structlog
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from schemas.affinity import CONTEXT_HEADER, context_key
from service.api.heads import JSON, NDJSON, SMALL, announced_bytes, media_type, timeout
from service.api.refusals import ProblemError
from service.fleet.ids import Opening, answer_problem
from service.fleet.probes import metrics, ready
from service.fleet.targets import Target, no_replica

MODEL_HEADER = "X-Deltaw-Model"
"""Header that names the model of a request, if the application serves several."""
KEY = re.compile(r"[0-9a-f]{16}")
"""Form of a context's key."""
ATTEMPTS = 3
"""Maximum attempts at a request whose replicas die before they answer."""
SPARE_SECONDS = 15.0
"""Seconds that the front waits for an answer beyond the deadline. Replicas themselves refuse late
requests, so the front answers `deadline_exceeded` only if no replica responds."""
PARTS = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
    "server",
)
"""Entries of the ASGI scope that the front passes to a replica. The others cannot be serialized."""
MAX_HELD_BYTES = 1 << 28
"""Maximum bytes of all request bodies in a front."""
DEAD = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, ReplicaUnavailableError)
"""Errors of a call whose replica ended or could not be reached."""
log = structlog.get_logger("deltaw")


class Front:
    """ASGI application that passes each request to a replica. The replica does everything else:
    keys, the check of `Host`, parsing, the log and the metrics.

    Args:
        targets: Models by name. The first one is the default.
    """

    def __init__(self, targets: Mapping[str, Target]) -> None:
        self._targets = targets
        self._default = next(iter(targets))
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. If no replica can, answer with a problem."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        request = Request(scope, receive)
        begun = False
        try:
            async for message in self._messages(request):
                begun = True
                await send(message)
        except ClientDisconnect:
            return
        except Exception as error:
            if begun:
                raise
            name = request.headers["x-request-id"]
            if not isinstance(error, ProblemError):
                log.exception("internal error", request_id=name)
                error = ProblemError("internal")
            # No replica logs or counts this request.
            log.info("refused by the front", request_id=name, problem=error.code)
            await answer_problem(scope, error)(scope, receive, send)

    async def _messages(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        """The ASGI messages of an answer."""
        target = self._target(request.headers)
        scope = {part: request.scope[part] for part in PARTS if part in request.scope}
        path = request.scope["path"].removeprefix(target.settings.root_path)
        reads = request.method in ("GET", "HEAD")
        pieces: AsyncIterator[Any]
        if reads and path in ("/readyz", "/health"):
            pieces = ready(target, scope)
        elif reads and path == "/metrics":
            pieces = metrics(self._targets, scope)
        else:
            adapters = path.startswith("/v1/adapters")
            settings = target.settings
            seconds = settings.adapter_seconds if adapters else settings.deadline_seconds
            attempts = ATTEMPTS if reads or not adapters else 1
            pieces = self._answer(request, target, scope, attempts, seconds + SPARE_SECONDS)
        async for piece in pieces:
            content = piece
            if not isinstance(piece, bytes):
                (status, headers), content = piece
                yield {"type": "http.response.start", "status": status, "headers": headers}
            yield {"type": "http.response.body", "body": content, "more_body": True}
        yield {"type": "http.response.body", "body": b"", "more_body": False}

    async def _answer(
        self, request: Request, target: Target, scope: Scope, attempts: int, seconds: float
    ) -> AsyncIterator[Any]:
        """The pieces of a replica's answer."""
        body = bytearray()
        try:
            await self._read(request, target, body)
            sent = bytes(body)
            key = await _key(request, sent)
            handle = target.handle.options(stream=True, session_id=key or "")
            async for piece in _pieces(handle, scope, sent, attempts=attempts, seconds=seconds):
                yield piece
        finally:
            self._held -= len(body)

    async def _read(self, request: Request, target: Target, body: bytearray) -> None:
        """Read the body, or its beginning if it is too large: the replica then refuses its length.

        The body of a request without a valid key is not read: the replica refuses its head.

        Raises:
            ProblemError: `request_timeout`, or `queue_full` if the front holds too many bytes.
            ClientDisconnect: The client left.
        """
        settings = target.settings
        lines = media_type(request) == NDJSON
        limit = settings.max_ndjson_bytes if lines else settings.max_body_bytes
        bodiless = request.method in ("GET", "HEAD") or announced_bytes(request) > limit
        if bodiless or not _has_key(request, target.keys):
            return
        try:
            async with asyncio.timeout(settings.body_seconds) as clock:
                async for piece in request.stream():
                    body += piece
                    self._held += len(piece)
                    if self._held > MAX_HELD_BYTES:
                        raise ProblemError(
                            "queue_full",
                            "The front holds too many request bodies.",
                            headers={"Retry-After": "1", "Connection": "close"},
                        )
                    if len(body) > limit:
                        break
                    if lines:
                        clock.reschedule(asyncio.get_running_loop().time() + settings.body_seconds)
        except TimeoutError:
            raise timeout() from None

    def _target(self, headers: Headers) -> Target:
        """Return the model that a request names, or the default.

        Raises:
            ProblemError: `unknown_model`.
        """
        name = headers.get(MODEL_HEADER, self._default)
        if name not in self._targets:
            names = ", ".join(self._targets)
            raise ProblemError(
                "unknown_model", f"`{MODEL_HEADER}` names no model of this service: {names}."
            )
        return self._targets[name]


def _has_key(request: Request, keys: Collection[str]) -> bool:
    """Whether a request has one of the keys, or needs none. The comparison takes the same time for
    every key."""
    scheme, _, offered = request.headers.get("authorization", "").partition(" ")
    matches = [hmac.compare_digest(offered.encode(), key.encode()) for key in keys]
    return not keys or (scheme.lower() == "bearer" and any(matches))


async def _key(request: Request, body: bytes) -> str | None:
    """Return the key of the request's context: the one in the header, else that of a JSON body.

    None lets any replica answer. That is the case for NDJSON, where each line has a context.
    """
    own = request.headers.get(CONTEXT_HEADER, "")
    if KEY.fullmatch(own):
        return own
    if not body or media_type(request) != JSON:
        return None
    return _parsed_key(body) if len(body) <= SMALL else await asyncio.to_thread(_parsed_key, body)


def _parsed_key(body: bytes) -> str | None:
    try:
        fields = orjson.loads(body)
    except ValueError:
        return None
    return context_key(fields) if isinstance(fields, dict) else None


async def _pieces(
    handle: Any, scope: Scope, body: bytes, *, attempts: int, seconds: float
) -> AsyncIterator[Any]:
    """Yield the pieces of a replica's answer. If the replica dies before the first piece, call
    another one. If it dies after the last byte of an answer of known length, nothing is lost.

    Raises:
        ProblemError: No replica answers.
    """
    missing: int | None = None  # bytes of the body to come; negative for a stream
    for attempt in range(1, attempts + 1):
        asked = handle.answer.remote(scope, body)
        try:
            async with asyncio.timeout(seconds):
                first = await anext(asked)
            missing = _announced(first) - len(first[1])
            yield first
            async for piece in asked:
                missing -= len(piece)
                yield piece
            return
        except TimeoutError:
            raise ProblemError("deadline_exceeded") from None
        except BackPressureError:
            raise ProblemError("queue_full", headers={"Retry-After": "1"}) from None
        except DeploymentUnavailableError:
            raise no_replica() from None
        except DEAD as error:
            if missing == 0:
                # The answer is complete. An error would close the connection from HAProxy, on which
                # the next request may be on its way.
                return
            if missing is not None:
                raise
            if attempt == attempts:
                raise ProblemError(
                    "replica_lost",
                    headers={"Retry-After": "1"},
                ) from error
        finally:
            asked.cancel()
        await asyncio.sleep(0.1 * attempt)


def _announced(opening: Opening) -> int:
    """Return the length of an answer's body; -1 if it is a stream."""
    (status, headers), _ = opening
    return int(dict(headers).get(b"content-length", 0 if status in (204, 304) else -1))


async def _live(receive: Receive, send: Send) -> None:
    """Confirm the events of the lifespan. The front has nothing to start or stop."""
    for event in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{event}.complete"})
