"""Heads of requests: media type and size of a body, before the body arrives."""

from __future__ import annotations

from starlette.requests import Request

from service.api.refusals import ProblemError

JSON = "application/json"
NDJSON = "application/x-ndjson"
SAFETENSORS = "application/vnd.safetensors"
SMALL = 1 << 13
"""Bytes of a body up to which the event loop parses it itself."""
MAX_DIGITS = 18
"""Maximum digits of a `Content-Length` that is trusted; otherwise the bytes are counted."""


def media_type(request: Request) -> str:
    """The media type of a request's body, in lower case and without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def timeout() -> ProblemError:
    """Return the problem for a body that did not arrive in time."""
    return ProblemError("request_timeout", headers={"Connection": "close"})


def announced_bytes(request: Request) -> int:
    """The request's `Content-Length`; 0 if it has none that can be trusted."""
    announced = request.headers.get("content-length", "")
    return int(announced) if announced.isdecimal() and len(announced) <= MAX_DIGITS else 0
