"""A call: its request, and how its answer is read. Nothing here sends anything."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from deltaw_client.answers import Received, Reply
from deltaw_client.errors import DeltawError, UnexpectedAnswer
from deltaw_client.problems import PROBLEM_ERRORS, ProblemError
from deltaw_client.tensor_file import unpack
from schemas.common import adapter
from schemas.problems import Problem

A = TypeVar("A", bound=Received)

JSON = "application/json"
SAFETENSORS = "application/vnd.safetensors"
PROBLEM = "application/problem+json"
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True)
class Call(Generic[A]):
    """A request and the class of its answer.

    Args:
        answer: Class of the answer.
        path: Path of the resource.
        fields: Fields of the body; None makes a GET.
        accept: Media type of the answer.
        request_id: Id of the request in the service's log; None generates one.
        deadline_seconds: Seconds for the whole call; None takes the client's deadline.
    """

    answer: type[A]
    path: str
    fields: Mapping[str, Any] | None = None
    accept: str = JSON
    request_id: str | None = None
    deadline_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.request_id is not None and not REQUEST_ID.fullmatch(self.request_id):
            raise ValueError("a request id has 1 to 128 characters of A-Z, a-z, 0-9, `.`, `_`, `-`")

    @property
    def method(self) -> str:
        """GET without fields, otherwise POST."""
        return "GET" if self.fields is None else "POST"

    def body(self) -> bytes | None:
        """The fields as JSON."""
        return None if self.fields is None else json.dumps(self.fields, default=plain).encode()

    def headers(self) -> dict[str, str]:
        """Headers of the request, with a new request id if the call has none."""
        typed = {} if self.fields is None else {"Content-Type": JSON}
        return typed | {"Accept": self.accept, "X-Request-ID": self.request_id or uuid.uuid4().hex}

    def read(self, reply: Reply) -> A:
        """Read a reply.

        Raises:
            ProblemError: The reply is a problem.
            UnexpectedAnswer: The reply is not deltaw's.
        """
        if reply.status != 200:
            raise failure(reply)
        text: str | bytes = reply.content
        tensors: Mapping[str, Any] | None = None
        try:
            if reply.media == SAFETENSORS:
                text, tensors = unpack(reply.content)
            answer: A = adapter(self.answer).validate_json(text, context=tensors, extra="ignore")
        except ValueError as error:
            raise UnexpectedAnswer(_said("the answer cannot be read", error), 200) from error
        answer.attach(reply)
        return answer


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


def problem_error(content: str | bytes, wait: float | None = None) -> ProblemError:
    """Read a problem from its JSON.

    Raises:
        pydantic.ValidationError: The content is no problem.
    """
    problem: Problem = adapter(Problem).validate_json(content, extra="ignore")
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


def _said(sentence: str, error: ValueError) -> str:
    """Append the first mistake to a sentence, without the value."""
    if not isinstance(error, ValidationError):
        return f"{sentence}: {error}"
    first = error.errors(include_input=False, include_context=False)[0]
    return f"{sentence}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
