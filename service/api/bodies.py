"""Bodies: bytes to a strict model. Each mistake has a pointer and does not repeat the value.

FastAPI validates parsed Python objects. Strict models then refuse a JSON array for a tuple and
accept NaN, so here pydantic reads the bytes themselves.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from service.api.heads import JSON, SMALL, announced_bytes, media_type, timeout
from service.api.problems import pointer
from service.api.refusals import Mistake, ProblemError
from service.api.state import state_of

Body = TypeVar("Body", bound=BaseModel)
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
MAX_MISTAKES = 16
"""Maximum mistakes in one problem."""


def require_uncompressed(request: Request) -> None:
    """Refuse a compressed body.

    Raises:
        ProblemError: `unsupported_media_type`.
    """
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ProblemError("unsupported_media_type")


async def read_body(request: Request) -> bytes:
    """Receive the JSON body of a request.

    Raises:
        ProblemError: `unsupported_media_type`, `body_too_large` or `request_timeout`.
    """
    if media_type(request) != JSON:
        raise ProblemError("unsupported_media_type")
    require_uncompressed(request)
    settings = state_of(request).settings
    try:
        async with asyncio.timeout(settings.body_seconds):
            return await _bytes(request, settings.max_body_bytes)
    except TimeoutError:
        raise timeout() from None


async def parse_body(model: type[Body], body: bytes) -> Body:
    """Parse a body as its model, in another thread unless it is small."""
    return parse(model, body) if len(body) <= SMALL else await asyncio.to_thread(parse, model, body)


async def _bytes(request: Request, limit: int) -> bytes:
    """Read the body, and refuse it as soon as it is too long.

    Starlette's own limit answers in plain text, not with a problem.
    """
    body = bytearray()
    expected = announced_bytes(request)
    if expected <= limit:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                break
    actual = max(expected, len(body))
    if actual > limit:
        raise ProblemError("body_too_large", limit=limit, actual=actual)
    return bytes(body)


def parse(model: type[Body], body: bytes) -> Body:
    """Parse a body as its model.

    Raises:
        ProblemError: `malformed_json` or `validation`.
    """
    try:
        read = model.model_validate_json(body)
        json.loads(body, object_pairs_hook=_once, parse_int=bool, parse_float=bool)
        return read
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
    try:
        # Only the structure matters here, so integers of any length are accepted.
        sent = json.loads(body.decode(), parse_int=bool)
    except (ValueError, RecursionError):
        raise ProblemError("malformed_json") from None
    if problems[0]["type"] == "json_invalid":
        if "recursion" in problems[0]["msg"]:
            raise ProblemError("malformed_json")
        surrogate = LONE_SURROGATE.search(json.dumps(sent, ensure_ascii=False))
        said = "A string is not valid Unicode." if surrogate else "A number is out of range."
        raise ProblemError("validation", mistakes=[("", said)])
    first = problems[:MAX_MISTAKES]
    mistakes = dict.fromkeys(_mistake(problem["loc"], problem["msg"], sent) for problem in first)
    raise ProblemError("validation", mistakes=list(mistakes))


def _once(fields: Sequence[tuple[str, Any]]) -> None:
    """Refuse an object that gives a field twice, because parsers differ on which one counts."""
    if len(fields) > 1 and len({name for name, _ in fields}) < len(fields):
        raise ProblemError("validation", mistakes=[("", "A field is given twice.")])


def _mistake(path: Sequence[str | int], message: str, sent: Any) -> Mistake:
    """A mistake at the deepest step of the path that is in the sent body.

    pydantic's path also names union members, which the body does not have.
    """
    place: list[str | int] = []
    here = sent
    for step in path:
        if isinstance(here, list):
            inside = isinstance(step, int) and step < len(here)
        else:
            inside = isinstance(here, dict) and step in here
        if inside:
            here = here[step]
            place.append(step)
        elif step == path[-1] and message == "Field required":
            message = f"{step}: field required"
    return pointer(place), message
