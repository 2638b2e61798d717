"""The service's problems as exceptions: one class for each code in `schemas.problems.PROBLEMS`.

A code that this client does not know, from a later service, raises a plain `ProblemError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deltaw_client.errors import UNKNOWN, DeltawError
from schemas.common import UNSET
from schemas.problems import PROBLEMS, FieldError, Problem


class ProblemError(DeltawError):
    """The service answered with a problem (RFC 9457).

    The fields of the problem are attributes: `code`, `status`, `title`, `detail` (one sentence
    about this occurrence), `errors` (each mistake in the body, with `pointer` and `message`),
    `request_id`, and `limit` and `actual` if the request exceeds a limit.
    """

    code: str

    def __init__(self, problem: Problem, retry_after: float | None = None) -> None:
        super().__init__(problem, retry_after)
        self.problem = problem
        self.code, self.status, self.title = problem.code, problem.status, problem.title
        self.detail, self.request_id = problem.detail, problem.request_id
        self.errors: Sequence[FieldError] = problem.errors or ()
        self.limit = None if problem.limit is UNSET else problem.limit
        self.actual = None if problem.actual is UNSET else problem.actual
        self.retryable = problem.retryable
        self.outcome_unknown = problem.status in UNKNOWN
        self.retry_after = retry_after

    def __str__(self) -> str:
        bound = "" if self.limit is None else f"; the limit is {self.limit}, given {self.actual}"
        where = "".join(
            f"; {error.pointer or '/'}" + f": {error.message}" * (error.message != self.detail)
            for error in self.errors
        )
        return f"{self.code}: {self.detail}{bound}{where} [{self.request_id}]"


IRREGULAR = {"malformed_json": "MalformedJSON", "internal": "InternalError"}
"""Class names that differ from their code in CamelCase."""


def _error_class(code: str) -> type[ProblemError]:
    name = IRREGULAR.get(code, code.title().replace("_", ""))
    described = {"code": code, "__doc__": PROBLEMS[code].meaning, "__module__": __name__}
    return type(name, (ProblemError,), described)


PROBLEM_ERRORS: Mapping[str, type[ProblemError]] = {code: _error_class(code) for code in PROBLEMS}
"""The exception class of each code."""

globals().update({error.__name__: error for error in PROBLEM_ERRORS.values()})

# These declarations let type checkers and editors find the classes; a test compares both.
MalformedRequest: type[ProblemError]
MalformedJSON: type[ProblemError]
MissingKey: type[ProblemError]
WrongKey: type[ProblemError]
NotFound: type[ProblemError]
UnknownModel: type[ProblemError]
UnknownAdapter: type[ProblemError]
MethodNotAllowed: type[ProblemError]
NotAcceptable: type[ProblemError]
RequestTimeout: type[ProblemError]
OtherWeights: type[ProblemError]
BodyTooLarge: type[ProblemError]
TooManyItems: type[ProblemError]
TooManyLines: type[ProblemError]
UnsupportedMediaType: type[ProblemError]
UnknownHost: type[ProblemError]
Validation: type[ProblemError]
NotSupported: type[ProblemError]
NoAnchorToken: type[ProblemError]
BadSpan: type[ProblemError]
EmptyContext: type[ProblemError]
EmptyQuery: type[ProblemError]
PromptTooLong: type[ProblemError]
LayerOutOfRange: type[ProblemError]
PositionOutOfRange: type[ProblemError]
TokenOutOfRange: type[ProblemError]
UnknownHookPoint: type[ProblemError]
NeverFits: type[ProblemError]
TooFewQueries: type[ProblemError]
DependentRows: type[ProblemError]
IllConditioned: type[ProblemError]
QueueFull: type[ProblemError]
HeadersTooLarge: type[ProblemError]
InternalError: type[ProblemError]
NonFinite: type[ProblemError]
NoRowsPatched: type[ProblemError]
ReplicaLost: type[ProblemError]
Loading: type[ProblemError]
Draining: type[ProblemError]
OutOfMemory: type[ProblemError]
SelfCheckFailed: type[ProblemError]
DeadlineExceeded: type[ProblemError]
StorageFull: type[ProblemError]
