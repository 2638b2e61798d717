"""What a call can end in but an answer, as one tree.

DeltawError
├── ConnectionFailed        no connection, or one that broke
├── Timeout                 the call's deadline passed
├── UnexpectedAnswer        what came is neither an answer nor a problem of deltaw
├── OtherSweep              the file to resume is of other pairs or parameters
└── ProblemError            the service said what is wrong: `deltaw_client.problems`
    └── Validation, LayerOutOfRange, QueueFull, …, a class for each code
"""

from __future__ import annotations


class DeltawError(Exception):
    """The root of the tree."""

    retryable = False
    """Whether the same call may succeed later; such a one is made again by itself."""
    retry_after: float | None = None
    """Seconds that the service asks to wait before that, where it says so."""


class ConnectionFailed(DeltawError):
    """There is no connection, or it broke.

    Args:
        detail: What happened.
        sent: Whether something may have been sent; then the call is not made again.
    """

    def __init__(self, detail: str, sent: bool) -> None:
        super().__init__(detail, sent)
        self.sent = sent
        self.retryable = not sent

    def __str__(self) -> str:
        return str(self.args[0])


class Timeout(DeltawError):
    """The call's deadline passed before an answer was there."""


class UnexpectedAnswer(DeltawError):
    """What came is neither an answer nor a problem of deltaw: another service, or a proxy's page.

    Args:
        detail: What is wrong with it.
        status: Of the HTTP answer.
        retry_after: Seconds, where the answer says so.
    """

    def __init__(self, detail: str, status: int, retry_after: float | None = None) -> None:
        super().__init__(detail, status, retry_after)
        self.status = status
        self.retry_after = retry_after
        self.retryable = status in (429, 502, 503, 504)

    def __str__(self) -> str:
        return f"{self.args[0]} (HTTP status {self.status})"


class OtherSweep(DeltawError):
    """A line of the file belongs to another pair or to other parameters than the sweep's."""
