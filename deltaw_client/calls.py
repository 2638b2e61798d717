"""A call: its request, how its answer is read, and when it is retried. Nothing here sends it.

The clients send and sleep, one with threads and one on an event loop. They carry out the steps that
a generator yields.
"""

from __future__ import annotations

import json
import random
import re
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import count
from typing import Any, Generic, NamedTuple, TypeVar

import httpx
import numpy as np
from pydantic import BaseModel, ValidationError

from deltaw_client.answers import Receipt, Received, Reply, receipt
from deltaw_client.errors import DeltawError, Timeout, UnexpectedAnswer
from deltaw_client.problems import PROBLEM_ERRORS, ProblemError
from deltaw_client.tensor_file import unpack
from schemas.affinity import CONTEXT_HEADER, context_key
from schemas.common import adapter
from schemas.problems import Problem

A = TypeVar("A", bound=Received)

JSON = "application/json"
SAFETENSORS = "application/vnd.safetensors"
PROBLEM = "application/problem+json"
EVENTS = "text/event-stream"
SUCCESS = (200, 201, 204)
FIRST_WAIT = 0.25
"""Seconds before the first retry, without `Retry-After`; doubled for each later one."""
LONGEST_WAIT = 8.0
"""Maximum seconds before a retry, without `Retry-After`."""
LONGEST_TIMEOUT = 1e6
"""Maximum seconds of one attempt, since sockets refuse infinite timeouts."""
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True)
class Call(Generic[A]):
    """A request and the class of its answer.

    Args:
        answer: Class of the answer; `Received` for a file, or for an answer without a body.
        path: Path of the resource.
        fields: Fields of the body; None sends none.
        accept: Media type of the answer.
        request_id: Id of the request in the service's log; None generates one.
        deadline_seconds: Seconds for the whole call; None takes the client's deadline.
        method: HTTP method; None is POST with fields and GET without.
        writes: Whether the call changes the service's state. The client then does not retry it if
            the service may have carried it out.
    """

    answer: type[A]
    path: str
    fields: Mapping[str, Any] | None = None
    accept: str = JSON
    request_id: str | None = None
    deadline_seconds: float | None = None
    method: str | None = None
    writes: bool = False

    def __post_init__(self) -> None:
        if self.request_id is not None and not REQUEST_ID.fullmatch(self.request_id):
            raise ValueError("a request id has 1 to 128 characters of A-Z, a-z, 0-9, `.`, `_`, `-`")

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Build the request, with a new request id if the call has none.

        If the body has a context, the header `X-Deltaw-Context` has its key. By this key a proxy
        can choose the replica that has the context in its cache.
        """
        headers = {"Accept": self.accept, "X-Request-ID": self.request_id or uuid.uuid4().hex}
        if self.fields is None:
            return http.build_request(self.method or "GET", self.path, headers=headers)
        body = json.dumps(self.fields, default=plain).encode()
        headers["Content-Type"] = JSON
        # Parsed from the body, because the fields may have arrays and tuples instead of lists.
        if (key := context_key(json.loads(body))) is not None:
            headers[CONTEXT_HEADER] = key
        return http.build_request(self.method or "POST", self.path, content=body, headers=headers)

    def allows_retry(self, error: DeltawError) -> bool:
        """Whether the call may be sent again after this error."""
        return error.retryable and not (self.writes and error.outcome_unknown)

    def read(self, reply: Reply) -> A:
        """Read a reply.

        Raises:
            ProblemError: The reply is a problem.
            UnexpectedAnswer: The reply is not deltaw's.
        """
        if reply.status not in SUCCESS:
            raise failure(reply)
        if self.answer is Received:
            if reply.status == 200 and reply.media != self.accept:
                raise UnexpectedAnswer(f"the answer is not {self.accept}", reply.status)
            return with_receipt(self.answer(), receipt(reply))
        text: str | bytes = reply.content
        tensors: Mapping[str, Any] | None = None
        with readable():
            if reply.media == SAFETENSORS:
                text, tensors = unpack(reply.content)
            answer: A = adapter(self.answer).validate_json(text, context=tensors, extra="ignore")
        return with_receipt(answer, receipt(reply))

    def read_value(self, value: Any, came_with: Receipt) -> A:
        """Read an answer from the value of its JSON, with tensors in JSON or base64.

        Raises:
            UnexpectedAnswer: The value is not deltaw's.
        """
        with readable():
            answer: A = adapter(self.answer).validate_python(value, extra="ignore")
        return with_receipt(answer, came_with)


def with_receipt(answer: A, came_with: Receipt) -> A:
    """Attach a receipt. The dataclasses of answers are frozen; it is no field of theirs."""
    object.__setattr__(answer, "_receipt", came_with)
    return answer


@contextmanager
def readable(name: str = "the answer") -> Iterator[None]:
    """Raise `UnexpectedAnswer` if what this block reads is not deltaw's."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UnexpectedAnswer(_said(f"{name} cannot be read", error), 200) from error


class Send(NamedTuple):
    """Send a request, whose whole answer must arrive within the seconds."""

    request: httpx.Request
    seconds: float


Outcome = Reply | DeltawError | None
"""The outcome of a `Send`; a wait has None."""
Steps = Generator[Send | float, Outcome, A]
"""Yields requests to send and seconds to wait, receives the outcomes, returns the answer."""


def random_jitter(wait: float) -> float:
    """Return a random addition of up to half the wait, so that clients do not retry in step."""
    return random.uniform(0.0, wait / 2)


@dataclass(frozen=True)
class RetryPolicy:
    """The limits on a call's time and attempts. The fields are arguments of `DeltawClient`."""

    deadline_seconds: float
    retries: int
    jitter: Callable[[float], float]

    def wait(self, error: DeltawError, attempt: int) -> float:
        """Return the seconds to wait after an attempt, counted from 0, that raised an error."""
        own = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT)
        wait = own if error.retry_after is None else error.retry_after
        return wait + self.jitter(wait)

    def steps(self, call: Call[A], request: httpx.Request) -> Steps[A]:
        """Make a call. A deadline of the call replaces the policy's.

        Retryable errors are retried after `Retry-After`, or the policy's wait, plus jitter. If that
        wait would end after the deadline, the error is raised at once. A call that writes is not
        retried if the service may have carried it out.

        Raises:
            DeltawError: The last attempt failed.
        """
        own = call.deadline_seconds
        end = time.monotonic() + (self.deadline_seconds if own is None else own)
        for attempt in count():
            left = end - time.monotonic()
            if not left > 0:
                raise Timeout()
            outcome = yield Send(request, min(left, LONGEST_TIMEOUT))
            try:
                if isinstance(outcome, Reply):
                    return call.read(outcome)
                raise outcome or Timeout()
            except DeltawError as error:
                if not call.allows_retry(error) or attempt == self.retries:
                    raise
                wait = self.wait(error, attempt)
                if time.monotonic() + wait >= end:
                    raise
            yield wait
        raise AssertionError("counting does not end")


def plain(value: Any) -> Any:
    """Convert an array, a NumPy number or a model of `schemas` to what JSON can hold.

    Raises:
        TypeError: The value is none of these.
    """
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    raise TypeError(f"a field holds a value of type {type(value).__name__}, which JSON cannot hold")


def failure(reply: Reply) -> DeltawError:
    """Return the error of a reply whose status is not 200."""
    wait = retry_after(reply.headers.get("retry-after"))
    if reply.media != PROBLEM:
        media = reply.media or "no media type"
        return UnexpectedAnswer(f"the answer has {media}, not {PROBLEM}", reply.status, wait)
    try:
        return problem_error(reply.content, wait)
    except ValidationError as error:
        return UnexpectedAnswer(_said("the problem cannot be read", error), reply.status, wait)


def problem_error(value: Any, wait: float | None = None) -> ProblemError:
    """Make the error of a problem from its JSON, as text or as a value.

    Raises:
        pydantic.ValidationError: The value is no problem.
    """
    reader = adapter(Problem)
    read = reader.validate_json if isinstance(value, str | bytes) else reader.validate_python
    problem: Problem = read(value, extra="ignore")
    return PROBLEM_ERRORS.get(problem.code, ProblemError)(problem, wait)


def retry_after(header: str | None) -> float | None:
    """Parse `Retry-After`, which holds seconds or a date, into seconds; None if it is invalid."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        until = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (until.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def _said(sentence: str, error: Exception) -> str:
    """Append the first mistake to a sentence, without the value."""
    if not isinstance(error, ValidationError):
        return f"{sentence}: {error}"
    first = error.errors(include_input=False, include_context=False)[0]
    return f"{sentence}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
