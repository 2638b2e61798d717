"""Refusals: a problem as an exception, and as a response. This module needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.responses import Response
from starlette.types import Scope

from schemas.common import UNSET, write_answer
from schemas.problems import PROBLEMS, FieldError, Problem

MEDIA_TYPE = "application/problem+json"

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


def refusal(scope: Scope, problem: ProblemError) -> Response:
    """The response to a problem."""
    scope["deltaw.problem"] = problem.code
    body = written(problem, instance_of(scope), scope.get("deltaw.request_id", ""))
    headers = {"Cache-Control": "no-store", **problem.headers}
    return Response(body, PROBLEMS[problem.code].status, headers, MEDIA_TYPE)


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


def instance_of(scope: Scope) -> str:
    """The `instance` of a problem: the route's path up to its first parameter.

    A parameter may hold a caller's text.
    """
    template: str = getattr(scope.get("route"), "path", "/")
    return template.partition("{")[0].rstrip("/") or "/"
