"""Problems: one table from exception types to problem codes, and one handler."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from schemas.problems import POINTER_LENGTH, PROBLEMS
from service import errors
from service.api.refusals import ProblemError, refusal
from service.theory import MAX_CONDITION, DependentRows, NonFinite

CODES: Mapping[type[Exception], str] = {
    errors.Invalid: "validation",
    errors.NonFiniteActivation: "non_finite",
    MemoryError: "out_of_memory",
    NonFinite: "non_finite",
}
"""Problem codes of errors whose name is not that of their code."""

STATUS_CODES = {404: "not_found", 405: "method_not_allowed"}
"""The problem codes of the router's own errors."""


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


def respond(request: Request, error: Exception) -> Response:
    """The response to an error."""
    return refusal(request.scope, named(error))


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
