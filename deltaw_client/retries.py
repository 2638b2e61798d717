"""When a call is retried: a generator of steps that both clients carry out.

The clients send and sleep, one with threads and one on an event loop. Only this module decides
when to retry.
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
from deltaw_client.connection import proxy_hint
from deltaw_client.errors import ConnectionFailed, DeltawError, Timeout

A = TypeVar("A", bound=Received)

FIRST_WAIT = 0.25
"""Seconds before the first retry, without `Retry-After`; doubled for each later one."""
LONGEST_WAIT = 8.0
"""Maximum seconds before a retry, without `Retry-After`."""
LONGEST_TIMEOUT = 1e6
"""Maximum seconds of one attempt, since sockets refuse infinite timeouts."""
LATE = "the deadline passed before the answer arrived"


def random_jitter(wait: float) -> float:
    """Return a random addition of up to half the wait, so that clients do not retry in step."""
    return random.uniform(0.0, wait / 2)


@dataclass(frozen=True)
class RetryPolicy:
    """How long and how often a client tries.

    Args:
        deadline_seconds: Seconds for a call with all its attempts and waits.
        retries: Maximum number of attempts after the first.
        jitter: Function from a wait in seconds to the seconds to add to it.
    """

    deadline_seconds: float
    retries: int
    jitter: Callable[[float], float] = random_jitter

    def wait(self, error: DeltawError, attempt: int) -> float:
        """Return the seconds to wait after an attempt, counted from 0, that raised an error."""
        own = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT)
        wait = own if error.retry_after is None else error.retry_after
        return wait + self.jitter(wait)


@dataclass(frozen=True)
class Send:
    """Send a request.

    Args:
        request: The request.
        seconds: Seconds until the whole answer must have arrived.
    """

    request: httpx.Request
    seconds: float


Outcome = Reply | DeltawError | None
"""The outcome of a `Send`; a wait has None."""
Steps = Generator[Send | float, Outcome, A]
"""Yields requests to send and seconds to wait, receives the outcomes, returns the answer."""


def steps(call: Call[A], request: httpx.Request, policy: RetryPolicy) -> Steps[A]:
    """Make a call.

    Retryable errors are retried after `Retry-After`, or the policy's wait, plus jitter. If that
    wait would end after the deadline, the error is raised at once.

    Args:
        call: The call.
        request: The call's request.
        policy: The client's policy; a deadline of the call replaces the policy's.

    Raises:
        DeltawError: The last attempt failed.
    """
    own = call.deadline_seconds
    end = time.monotonic() + (policy.deadline_seconds if own is None else own)
    for attempt in count():
        left = end - time.monotonic()
        if not left > 0:
            raise Timeout(LATE)
        outcome = yield Send(request, min(left, LONGEST_TIMEOUT))
        try:
            if isinstance(outcome, Reply):
                return call.read(outcome)
            raise outcome or Timeout(LATE)
        except DeltawError as error:
            if not error.retryable or attempt == policy.retries:
                raise
            wait = policy.wait(error, attempt)
            if time.monotonic() + wait >= end:
                raise
        yield wait
    raise AssertionError("counting does not end")


def connection_error(error: httpx.RequestError) -> DeltawError:
    """Translate an error of httpx into this client's tree."""
    if isinstance(error, httpx.TimeoutException):
        return Timeout(LATE)
    detail = f"{type(error).__name__}: {error}{proxy_hint()}"
    return ConnectionFailed(detail, sent=not isinstance(error, httpx.ConnectError))
