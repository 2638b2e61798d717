"""The attempts of a request whose response is read in pieces. Nothing here sends.

The clients carry out the attempts, one with threads and one on an event loop.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Generic, TypeVar

import httpx

from deltaw_client.answers import Reply
from deltaw_client.calls import LONGEST_TIMEOUT, RetryPolicy
from deltaw_client.errors import DeltawError, Timeout

Part = TypeVar("Part", covariant=True)


class Attempts(ABC, Generic[Part]):
    """A request that is sent until its response is complete or an error ends it.

    An attempt is `request`, `begin`, `receive` for each piece of the response, and `finish`. Errors
    that these methods raise also go to `finish`. The policy's deadline applies between two parts of
    the response: each part starts it anew.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self.wait: float | None = 0.0
        """Seconds until the next attempt; None after the last one."""
        self._policy = policy
        self._reply = Reply(0, {}, b"")
        self._pieces: list[bytes] = []
        self._part_taken()

    @abstractmethod
    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Begin an attempt: build its request."""

    def seconds_left(self) -> float:
        """Return the seconds until the next part must have arrived.

        Raises:
            Timeout: The deadline passed.
        """
        left = self._end - time.monotonic()
        if not left > 0:
            raise Timeout()
        return min(left, LONGEST_TIMEOUT)

    def begin(self, response: httpx.Response) -> None:
        """Take the head of a response."""
        self._reply = Reply(response.status_code, response.headers, b"")

    @abstractmethod
    def receive(self, piece: bytes) -> Iterator[Part]:
        """Take a piece of a response, and give the parts that it completes.

        Raises:
            Timeout: The deadline passed, and the piece completes no part.
            ProblemError: The service ended the request.
            UnexpectedAnswer: The response is not deltaw's.
        """

    @abstractmethod
    def finish(self, error: DeltawError | None) -> Iterator[Part]:
        """End an attempt: set `wait`, or give up.

        Raises:
            DeltawError: The error ends the request.
        """

    def _part_taken(self) -> None:
        """Start the deadline and the count of attempts anew.

        Call it after the caller took a part: the time that the caller needs does not count.
        """
        self._end = time.monotonic() + self._policy.deadline_seconds
        self._attempt = 0

    def _tries_again(self, error: DeltawError) -> bool:
        """Set `wait` if the policy allows another attempt after this error."""
        wait = self._policy.wait(error, self._attempt)
        if self._attempt < self._policy.retries and time.monotonic() + wait < self._end:
            self.wait = wait
            self._attempt += 1
            return True
        return False

    def _whole(self) -> Reply:
        """Return the response with the pieces that completed no part."""
        return Reply(self._reply.status, self._reply.headers, b"".join(self._pieces))
