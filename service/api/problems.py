"""Problems: one table from exception types to problem codes, and one handler."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import Scope

from schemas.common import UNSET, write_answer
from schemas.problems import POINTER_LENGTH, PROBLEMS, FieldError, Problem
from service import errors
from service.theory import MAX_CONDITION, DependentRows, NonFinite

MEDIA_TYPE = "application/problem+json"

CODES: Mapping[type[Exception], str] = {
    errors.Invalid: "validation",
    errors.NonFiniteActivation: "non_finite",
    MemoryError: "out_of_memory",
    NonFinite: "non_finite",
}
"""Problem codes of errors whose name is not that of their code."""

STATUS_CODES = {404: "not_found", 405: "method_not_allowed"}
"""The problem codes of the router's own errors."""

Mistake = tuple[str, str]
"""A JSON pointer into the sent body, and a message."""


class ProblemError(Exception):
    """A problem of HTTP itself: headers, bodies, keys.

    Args:
        code: A key of `PROBLEMS`.
        detail: One sentence, without the input. None: the meaning of the code.
        mistakes: The mistakes in the body.
        headers: Headers of the answer.
        limit: The limit that was exceeded.
        actual: The value that exceeded it.
    """

    def __init__(
        self,
        code: str,
        detail: str | None = None,
        *,
        mistakes: Sequence[Mistake] = (),
        headers: Mapping[str, str] | None = None,
        limit: float | None = None,
        actual: float | None = None,
    ) -> None:
        super().__init__(code)
        self.code = code
        self.detail = detail or PROBLEMS[code].meaning
        self.mistakes = mistakes
        self.headers = dict(headers or {})
        self.limit = limit
        self.actual = actual


def pointer(path: Sequence[str | int]) -> str:
    """The JSON pointer (RFC 6901) of a path, cut at 64 characters."""
    steps = (str(step).replace("~", "~0").replace("/", "~1") for step in path)
    return "".join(f"/{step}" for step in steps)[:POINTER_LENGTH]


def code_of(kind: type[Exception]) -> str:
    """The problem code of an error: by the table, or its name in snake case; else `internal`."""
    code = CODES.get(kind) or re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
    return code if code in PROBLEMS else "internal"


def named(error: Exception) -> ProblemError:
    """The problem of an error."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, HTTPException):
        code = STATUS_CODES.get(error.status_code, "internal")
        return ProblemError(code, headers=error.headers)
    code = code_of(type(error))
    if code == "internal":
        return ProblemError(code)
    if isinstance(error, DependentRows):
        actual = min(error.condition, sys.float_info.max)
        return ProblemError(code, str(error), limit=MAX_CONDITION, actual=actual)
    if isinstance(error, MemoryError):
        return ProblemError(code, headers={"Retry-After": "1"})
    if not isinstance(error, errors.ServiceError):
        return ProblemError(code, str(error))
    headers: dict[str, str] = {}
    if isinstance(error, errors.NotNow):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return ProblemError(
        code,
        error.detail,
        mistakes=[(pointer(error.at), error.detail)] if error.at else (),
        headers=headers,
        limit=error.limit,
        actual=error.actual,
    )


def written(problem: ProblemError, instance: str, request_id: str) -> bytes:
    """Write a problem as JSON.

    Args:
        problem: The problem.
        instance: Path of the request, as far as it names a resource of the service.
        request_id: Id of the request.
    """
    kind = PROBLEMS[problem.code]
    return write_answer(
        Problem(
            type=f"/problems/{problem.code}",
            title=kind.title,
            status=kind.status,
            detail=problem.detail,
            instance=instance,
            code=problem.code,
            request_id=request_id,
            retryable=kind.retryable,
            errors=[FieldError(*mistake) for mistake in problem.mistakes] or UNSET,
            limit=UNSET if problem.limit is None else problem.limit,
            actual=UNSET if problem.actual is None else problem.actual,
        )
    )


def respond(request: Request, error: Exception) -> Response:
    """The response to an error."""
    problem = named(error)
    scope = request.scope
    scope["deltaw.problem"] = problem.code
    body = written(problem, instance_of(scope), scope.get("deltaw.request_id", ""))
    headers = {"Cache-Control": "no-store", **problem.headers}
    return Response(body, PROBLEMS[problem.code].status, headers, MEDIA_TYPE)


def instance_of(scope: Scope) -> str:
    """The `instance` of a problem: the route's path up to its first parameter.

    A parameter may hold a caller's text.
    """
    template: str = getattr(scope.get("route"), "path", "/")
    return template.partition("{")[0].rstrip("/") or "/"


async def _handle(request: Request, error: Exception) -> Response:
    return respond(request, error)


def install(app: FastAPI) -> None:
    """Register the one handler for every error that has a code."""
    for kind in (
        ProblemError,
        errors.ServiceError,
        NonFinite,
        DependentRows,
        MemoryError,
        HTTPException,
    ):
        app.add_exception_handler(kind, _handle)
