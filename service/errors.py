"""Errors of the service, as one tree that knows no HTTP.

    ServiceError
    ├── Refused                 this model cannot answer the question as asked
    │   ├── Invalid             a value that no model accepts
    │   ├── NotSupported        a combination of options that has no answer
    │   ├── NoAnchorToken       baseline `anchored` with a tokenizer without an anchor
    │   ├── BadSpan             a span out of range, empty, out of order, or overlapping; or spans
    │   │                       that leave nothing
    │   ├── EmptyContext        a context without tokens
    │   ├── EmptyQuery          a query, or a prompt, without tokens
    │   ├── PromptTooLong       more positions than the model has
    │   ├── LayerOutOfRange     a layer that the model does not have
    │   ├── PositionOutOfRange  a position that the query, or the prompt, does not have
    │   ├── TokenOutOfRange     an id outside the vocabulary
    │   ├── UnknownHookPoint    a name that is no hook point
    │   ├── UnknownModel        an id that is neither the resident model's nor an adapter's
    │   ├── UnknownAdapter      an id that no adapter has
    │   ├── OtherWeights        an adapter that was made for other weights
    │   ├── TooFewQueries       fewer queries than a fit needs
    │   ├── TooManyItems        more prompts than the limit
    │   ├── NeverFits           work, or an answer, above the limit
    │   └── IllConditioned      an adapter that rounding errors would spoil
    ├── NotNow                  the same question may succeed later
    │   ├── Loading             the model is still loading
    │   ├── Draining            the service is shutting down
    │   ├── QueueFull           the queue is full, or the expected wait exceeds the deadline
    │   ├── OutOfMemory         not enough memory for this question
    │   ├── SelfCheckFailed     no number is given out: the check at start failed, or the engine has
    │   └── DeadlineExceeded    the deadline passed
    ├── NonFiniteActivation     the model computed NaN or infinity
    ├── NoRowsPatched           a patch acted on no row of a run that it was meant for
    ├── StorageFull             an adapter cannot be written: the disk or the limit is full
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


class Refused(ServiceError): ...


class Invalid(Refused): ...


class NotSupported(Refused): ...


class NoAnchorToken(Refused): ...


class BadSpan(Refused): ...


class EmptyContext(Refused): ...


class EmptyQuery(Refused): ...


class PromptTooLong(Refused): ...


class LayerOutOfRange(Refused): ...


class PositionOutOfRange(Refused): ...


class TokenOutOfRange(Refused): ...


class UnknownHookPoint(Refused): ...


class UnknownModel(Refused): ...


class UnknownAdapter(Refused): ...


class OtherWeights(Refused): ...


class TooFewQueries(Refused): ...


class TooManyItems(Refused): ...


class NeverFits(Refused): ...


class IllConditioned(Refused): ...


class NotNow(ServiceError):
    """The same question may succeed after `retry_after` seconds."""

    def __init__(self, detail: str, *, retry_after: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class Loading(NotNow): ...


class Draining(NotNow): ...


class QueueFull(NotNow): ...


class OutOfMemory(NotNow): ...


class SelfCheckFailed(NotNow): ...


class DeadlineExceeded(NotNow): ...


class NonFiniteActivation(ServiceError): ...


class NoRowsPatched(ServiceError): ...


class StorageFull(ServiceError): ...


class CannotLoad(ServiceError): ...


def sentence(error: BaseException) -> str:
    """The detail of an error of the service; the type and the message of any other error."""
    return error.detail if isinstance(error, ServiceError) else f"{type(error).__name__}: {error}"
