"""Errors of the service, as one tree that knows no HTTP.

    ServiceError
    ├── Refused                 this model cannot answer the question as asked
    │   ├── Invalid             a value that no model accepts
    │   ├── NotSupported        a combination of options that has no answer
    │   ├── NoAnchorToken       baseline `anchored` with a tokenizer without <|endoftext|>
    │   ├── BadSpan             a span out of range, empty, out of order, or overlapping; or spans
    │   │                       that leave nothing
    │   ├── EmptyContext        a context without tokens
    │   ├── EmptyQuery          a query, or a prompt, without tokens
    │   ├── PromptTooLong       more positions than the model has
    │   ├── LayerOutOfRange     a layer that the model does not have
    │   ├── PositionOutOfRange  a position that the query, or the prompt, does not have
    │   ├── TokenOutOfRange     an id outside the vocabulary
    │   ├── UnknownHookPoint    a name that is no hook point
    │   ├── TooManyItems        more prompts than the limit
    │   └── NeverFits           work, or an answer, above the limit
    ├── NotNow                  the same question may succeed later
    │   ├── Loading             the model is still loading
    │   ├── Draining            the service is shutting down
    │   ├── QueueFull           the queue is full, or the expected wait exceeds the deadline
    │   ├── OutOfMemory         not enough memory for this question
    │   ├── SelfCheckFailed     no number is given out: the check at start failed, or the engine has
    │   └── DeadlineExceeded    the deadline passed
    ├── NonFiniteActivation     the model computed NaN or infinity
    └── CannotLoad              the model cannot be loaded; the process ends

Each error carries a sentence for the caller and, where they apply, the path of the argument at
fault, the limit, and the value that exceeds it.
"""

from __future__ import annotations

Path = tuple[str | int, ...]
"""Path into the question's arguments: field names and indices, outermost first."""


class ServiceError(Exception):
    """Base class of all errors of the service.

    Args:
        detail: One sentence for the caller, without any piece of a prompt.
        at: Path of the argument at fault; empty if there is none.
        limit: The limit, if there is one.
        actual: The value that exceeds the limit.
    """

    def __init__(
        self,
        detail: str,
        *,
        at: Path = (),
        limit: int | float | None = None,
        actual: int | float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.at = at
        self.limit = limit
        self.actual = actual


class Refused(ServiceError):
    """This model cannot answer the question as asked."""


class Invalid(Refused):
    """A value is one that no model accepts."""


class NotSupported(Refused):
    """The combination of options has no answer."""


class NoAnchorToken(Refused):
    """The tokenizer has no <|endoftext|>, which the baseline `anchored` needs."""


class BadSpan(Refused):
    """A span is out of range, empty, out of order or overlapping, or the spans leave nothing."""


class EmptyContext(Refused):
    """The context has no tokens."""


class EmptyQuery(Refused):
    """The query, or the prompt, has no tokens."""


class PromptTooLong(Refused):
    """The prompt needs more positions than the model has."""


class LayerOutOfRange(Refused):
    """The model has no such layer."""


class PositionOutOfRange(Refused):
    """The query, or the prompt, has no such position."""


class TokenOutOfRange(Refused):
    """The id is outside the vocabulary."""


class UnknownHookPoint(Refused):
    """A name is no hook point."""


class TooManyItems(Refused):
    """The request has more prompts than the limit."""


class NeverFits(Refused):
    """The work, or the answer, is above the limit."""


class NotNow(ServiceError):
    """The same question may succeed later.

    Args:
        detail: One sentence for the caller.
        retry_after: Seconds to wait before asking again.
    """

    def __init__(self, detail: str, *, retry_after: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class Loading(NotNow):
    """The model is still loading."""


class Draining(NotNow):
    """The service is shutting down and accepts no new work."""


class QueueFull(NotNow):
    """The queue is full, or the expected wait exceeds the deadline."""


class OutOfMemory(NotNow):
    """There was not enough memory for this question."""


class SelfCheckFailed(NotNow):
    """The equivalence check at start did not hold, or the engine has failed."""


class DeadlineExceeded(NotNow):
    """Waiting and computing took longer than the deadline."""


class NonFiniteActivation(ServiceError):
    """The model computed NaN or infinity."""


class CannotLoad(ServiceError):
    """The model cannot be loaded. The sentence says which setting to change."""
