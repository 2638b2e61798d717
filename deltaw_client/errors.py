"""Every error that a call can raise; `deltaw_client.problems` has one for each problem code."""

from __future__ import annotations

UNKNOWN = (500, 502, 504)
"""Statuses after which the service may have carried out the call: a proxy lost the service."""


class DeltawError(Exception):
    """The root of the tree."""

    retryable = False
    """Whether the same call may succeed later; the client then retries it by itself."""
    outcome_unknown = False
    """Whether the service may have carried out the call. If so, the client does not retry a call
    that changes the service's state: `adapters.create` and `adapters.delete`."""
    retry_after: float | None = None
    """Seconds that the service asks to wait before a retry; None if it does not say."""


class InvalidConfiguration(DeltawError):
    """The URL, the key or an environment variable cannot be used; the message names it."""


class ConnectionFailed(DeltawError):
    """The connection could not be made, or it broke.

    Args:
        detail: The cause.
        sent: Whether the service may have received the request.
    """

    retryable = True

    def __init__(self, detail: str, sent: bool) -> None:
        super().__init__(detail, sent)
        self.sent = self.outcome_unknown = sent

    def __str__(self) -> str:
        return str(self.args[0])


class Timeout(DeltawError):
    """The call's deadline passed before the answer arrived."""

    def __init__(self, detail: str = "the deadline passed before the answer arrived") -> None:
        super().__init__(detail)


class UnexpectedAnswer(DeltawError):
    """The answer is not deltaw's: it comes from another service or from a proxy.

    It is retryable if the status is 429, 500, 502, 503 or 504. A 500 of deltaw itself is a problem;
    any other comes from a proxy, which may have passed the request on before it lost the service.

    Args:
        detail: The fault of the answer.
        status: HTTP status.
    """

    def __init__(self, detail: str, status: int, retry_after: float | None = None) -> None:
        super().__init__(detail, status, retry_after)
        self.status = status
        self.retry_after = retry_after
        self.retryable = status in (429, 500, 502, 503, 504)
        self.outcome_unknown = status in UNKNOWN

    def __str__(self) -> str:
        return f"{self.args[0]} (HTTP status {self.status})"


class OtherSweep(DeltawError):
    """The sweep's file has other pairs or parameters, or the answers of another model."""
