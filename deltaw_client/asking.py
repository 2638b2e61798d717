"""How a call is made until it succeeds or its deadline passes: steps, which a client takes.

The one place where retrying is decided. A client sends and sleeps as it is told, with threads or
with an event loop.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import httpx

from deltaw_client.answers import Received, Reply
from deltaw_client.calls import Call
from deltaw_client.errors import ConnectionFailed, DeltawError, Timeout

A = TypeVar("A", bound=Received)

FIRST_WAIT = 0.25
"""Seconds before the second attempt where the service does not say; doubled for each further."""
LONGEST_WAIT = 8.0
LATE = "the deadline passed before an answer was there"


def some_of_it(wait: float) -> float:
    """A random addition of up to half the wait, so that clients do not come back all at once."""
    return random.uniform(0.0, wait / 2)


@dataclass(frozen=True)
class Patience:
    """How long a client keeps trying.

    Args:
        deadline_seconds: Of a call with all its attempts and waits.
        retries: Attempts after the first.
        jitter: What is added to a wait of so many seconds.
    """

    deadline_seconds: float
    retries: int
    jitter: Callable[[float], float] = some_of_it

    def wait(self, error: DeltawError, attempt: int) -> float:
        """Seconds before the attempt after this one, which is counted from 0."""
        own = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT)
        wait = own if error.retry_after is None else error.retry_after
        return wait + self.jitter(wait)


@dataclass(frozen=True)
class Send:
    """Send a request.

    Args:
        request: Method, path, headers and body, as httpx takes them.
        seconds: Within which the answer has to be there.
    """

    request: httpx.Request
    seconds: float


@dataclass(frozen=True)
class Sleep:
    """Wait.

    Args:
        seconds: So long.
    """

    seconds: float


Outcome = Reply | DeltawError | None
"""What came of a `Send`; of a `Sleep` nothing does."""
Steps = Generator[Send | Sleep, Outcome, A]
"""Yields what to do, receives its outcome, returns the answer."""


def steps(call: Call[A], request: httpx.Request, patience: Patience) -> Steps[A]:
    """Make a call.

    A problem that may pass, and a connection that could not be made, are tried again after
    `Retry-After` and some jitter; nothing else is. Where that wait would end after the deadline,
    the problem itself is raised.

    Args:
        call: What is asked.
        request: The same with the service's address and the key.
        patience: The client's; the call's own deadline comes before it.

    Raises:
        DeltawError: What the last attempt ended in.
    """
    own = call.deadline_seconds
    end = time.monotonic() + (patience.deadline_seconds if own is None else own)
    for attempt in count():
        left = end - time.monotonic()
        if left <= 0:
            raise Timeout(LATE)
        outcome = yield Send(request, left)
        try:
            if isinstance(outcome, Reply):
                return call.read(outcome)
            raise outcome or Timeout(LATE)
        except DeltawError as error:
            if not error.retryable or attempt == patience.retries:
                raise
            wait = patience.wait(error, attempt)
            if time.monotonic() + wait >= end:
                raise
        yield Sleep(wait)
    raise AssertionError("counting does not end")


def failed(error: httpx.RequestError) -> DeltawError:
    """What an error of httpx is in this client's tree."""
    if isinstance(error, httpx.TimeoutException):
        return Timeout(LATE)
    detail = f"{type(error).__name__}: {error}"
    return ConnectionFailed(detail, sent=not isinstance(error, httpx.ConnectError))
