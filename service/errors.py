"""What can go wrong in a question, as one tree. Nothing here knows HTTP.

    ServiceError
    ├── Refused                 the question cannot be asked of this model, or not so
    │   ├── Invalid             a value that no model would accept
    │   ├── NotSupported        a combination that has no answer
    │   ├── NoAnchorToken       baseline `anchored` on a tokenizer without <|endoftext|>
    │   ├── BadSpan             a span out of range, empty, out of order, or all of them
    │   ├── EmptyContext        a context of no tokens
    │   ├── EmptyQuery          a query of no tokens, or a prompt of none
    │   ├── PromptTooLong       more positions than the model has
    │   ├── LayerOutOfRange
    │   ├── PositionOutOfRange
    │   ├── TokenOutOfRange     an id that is not in the vocabulary
    │   ├── UnknownHookPoint
    │   ├── TooManyItems        more prompts than one request may bring
    │   └── NeverFits           more work, or a larger answer, than any request is granted
    ├── NotNow                  the same question may be answered later
    │   ├── Loading
    │   ├── Draining
    │   ├── QueueFull
    │   ├── OutOfMemory
    │   ├── SelfCheckFailed
    │   └── DeadlineExceeded
    ├── NonFiniteActivation     the model computed NaN or infinity
    └── CannotLoad              the model cannot be loaded; ends the process

Each carries the sentence for the caller, and where they apply the path of the argument that is at
fault, the bound, and the value held against it.
"""

from __future__ import annotations

Path = tuple[str | int, ...]
"""Where in the question's arguments: field names and indices, outermost first."""


class ServiceError(Exception):
    """The root of the tree.

    Args:
        detail: One sentence for the caller; never a piece of a prompt.
        at: The argument at fault; empty where there is none.
        limit: The bound that was passed.
        actual: The value held against the bound.
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
    """The question cannot be asked of this model, or not so."""


class Invalid(Refused):
    """A value that no model would accept."""


class NotSupported(Refused):
    """A combination that has no answer."""


class NoAnchorToken(Refused):
    """The tokenizer has no <|endoftext|> to anchor with."""


class BadSpan(Refused):
    """A span is out of range, empty, out of order, overlaps, or nothing is left."""


class EmptyContext(Refused):
    """The context has no tokens."""


class EmptyQuery(Refused):
    """The query, or the prompt, has no tokens."""


class PromptTooLong(Refused):
    """The prompt needs more positions than the model has."""


class LayerOutOfRange(Refused):
    """There is no such layer."""


class PositionOutOfRange(Refused):
    """There is no such position."""


class TokenOutOfRange(Refused):
    """The id is not in the vocabulary."""


class UnknownHookPoint(Refused):
    """A name is no hook point."""


class TooManyItems(Refused):
    """More prompts than one request may bring."""


class NeverFits(Refused):
    """More work, or a larger answer, than any request is granted."""


class NotNow(ServiceError):
    """The same question may be answered later.

    Args:
        detail: One sentence for the caller.
        retry_after: Seconds after which it is worth asking again.
    """

    def __init__(self, detail: str, *, retry_after: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class Loading(NotNow):
    """The model is not loaded yet."""


class Draining(NotNow):
    """The service is shutting down and takes no new work."""


class QueueFull(NotNow):
    """As many questions wait as may wait."""


class OutOfMemory(NotNow):
    """There was not enough memory for this question."""


class SelfCheckFailed(NotNow):
    """The equivalence check at start did not hold, so no number is given out."""


class DeadlineExceeded(NotNow):
    """Waiting and computing took longer than a request is granted."""


class NonFiniteActivation(ServiceError):
    """The model computed NaN or infinity."""


class CannotLoad(ServiceError):
    """The model cannot be loaded; the sentence says what to set instead."""
