"""The service's problems as exceptions: a class for each code of `schemas.problems`.

A code that this client does not know, of a later service, is a plain `ProblemError`.
"""

from __future__ import annotations

from collections.abc import Sequence

from deltaw_client.errors import DeltawError
from schemas.problems import FieldError, Problem


class ProblemError(DeltawError):
    """The service answered with a problem (RFC 9457).

    Args:
        problem: As the service said it.
        retry_after: Seconds of its `Retry-After`, where there is one.
    """

    code: str

    def __init__(self, problem: Problem, retry_after: float | None = None) -> None:
        super().__init__(problem, retry_after)
        self.problem = problem
        self.code = problem.code
        self.retryable = problem.retryable
        self.retry_after = retry_after

    @property
    def status(self) -> int:
        """Of the HTTP answer."""
        return self.problem.status

    @property
    def title(self) -> str:
        """The code in words."""
        return self.problem.title

    @property
    def detail(self) -> str:
        """One sentence on this occurrence."""
        return self.problem.detail

    @property
    def errors(self) -> Sequence[FieldError]:
        """Each mistake in the body: `pointer` (RFC 6901) and `message`."""
        return self.problem.errors or ()

    @property
    def request_id(self) -> str:
        """Under which the service's log has it."""
        return self.problem.request_id

    @property
    def limit(self) -> float | None:
        """The bound that was passed, where there is one."""
        return self.problem.limit

    @property
    def actual(self) -> float | None:
        """The value held against the bound."""
        return self.problem.actual

    def __str__(self) -> str:
        bound = "" if self.limit is None else f"; the limit is {self.limit}, given {self.actual}"
        where = "".join(
            f"; {error.pointer or '/'}" + f": {error.message}" * (error.message != self.detail)
            for error in self.errors
        )
        return f"{self.code}: {self.detail}{bound}{where} [{self.request_id}]"


class MalformedJSON(ProblemError):
    """The body is not JSON in UTF-8, or nests too deep."""

    code = "malformed_json"


class MissingKey(ProblemError):
    """Send `Authorization: Bearer KEY`."""

    code = "missing_key"


class WrongKey(ProblemError):
    """The key is not one of those configured."""

    code = "wrong_key"


class NotFound(ProblemError):
    """There is nothing at this path."""

    code = "not_found"


class MethodNotAllowed(ProblemError):
    """`Allow` names the methods of this path."""

    code = "method_not_allowed"


class NotAcceptable(ProblemError):
    """Answers are `application/json`, and with tensors `application/vnd.safetensors`."""

    code = "not_acceptable"


class RequestTimeout(ProblemError):
    """The request did not arrive in time; the connection is closed."""

    code = "request_timeout"


class BodyTooLarge(ProblemError):
    """The body has more bytes than `limit`."""

    code = "body_too_large"


class TooManyItems(ProblemError):
    """The request brings more prompts than `limit`."""

    code = "too_many_items"


class UnsupportedMediaType(ProblemError):
    """Send the body as `application/json`, not compressed."""

    code = "unsupported_media_type"


class UnknownHost(ProblemError):
    """`Host` is none of the service's names: `DELTAW_ALLOWED_HOSTS` adds one."""

    code = "unknown_host"


class Validation(ProblemError):
    """`errors` points at each mistake in the body."""

    code = "validation"


class NotSupported(ProblemError):
    """This combination has no answer."""

    code = "not_supported"


class NoAnchorToken(ProblemError):
    """The tokenizer has no <|endoftext|>: take another baseline."""

    code = "no_anchor_token"


class BadSpan(ProblemError):
    """Spans are half-open, not empty, in order, do not overlap, and leave something over."""

    code = "bad_span"


class EmptyContext(ProblemError):
    """The context has no tokens."""

    code = "empty_context"


class EmptyQuery(ProblemError):
    """The query, or a prompt, has no tokens."""

    code = "empty_query"


class PromptTooLong(ProblemError):
    """It needs more positions than the model has; nothing is truncated."""

    code = "prompt_too_long"


class LayerOutOfRange(ProblemError):
    """The model has no such layer."""

    code = "layer_out_of_range"


class PositionOutOfRange(ProblemError):
    """The query, or the prompt, has no such token."""

    code = "position_out_of_range"


class TokenOutOfRange(ProblemError):
    """The id is not in the vocabulary."""

    code = "token_out_of_range"


class UnknownHookPoint(ProblemError):
    """`/v1/model` names those that there are."""

    code = "unknown_hook_point"


class NeverFits(ProblemError):
    """The work, or the answer, is larger than any request is granted: ask for less at a time."""

    code = "never_fits"


class QueueFull(ProblemError):
    """As many requests wait as may, or for longer than one may: see `Retry-After`."""

    code = "queue_full"


class HeadersTooLarge(ProblemError):
    """The request's head is too long; the connection is closed."""

    code = "headers_too_large"


class InternalError(ProblemError):
    """A fault of the service; its log has the request id."""

    code = "internal"


class NonFinite(ProblemError):
    """The model computed NaN or infinity, or a norm of 0 to divide by."""

    code = "non_finite"


class Loading(ProblemError):
    """The model is still being loaded."""

    code = "loading"


class Draining(ProblemError):
    """The service is shutting down and takes no new work."""

    code = "draining"


class OutOfMemory(ProblemError):
    """There was not enough memory for this request."""

    code = "out_of_memory"


class SelfCheckFailed(ProblemError):
    """The equivalence check at start did not hold: no number is given."""

    code = "self_check_failed"


class DeadlineExceeded(ProblemError):
    """Waiting and computing took longer than a request is granted."""

    code = "deadline_exceeded"


PROBLEM_ERRORS = {kind.code: kind for kind in ProblemError.__subclasses__()}
"""The class of each code."""
