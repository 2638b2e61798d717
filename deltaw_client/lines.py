"""Requests of many bodies, one JSON line each, and their answers, one JSON line each (NDJSON).

The lines of a request mean what they would mean as requests of their own. The service answers each
line when it is ready, in any order.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import httpx
from pydantic import ValidationError

from deltaw_client import generation, resources
from deltaw_client.answers import Receipt
from deltaw_client.attempts import Attempts
from deltaw_client.calls import (
    SAFETENSORS,
    Call,
    RetryPolicy,
    failure,
    plain,
    problem_error,
)
from deltaw_client.errors import ConnectionFailed, DeltawError, Timeout, UnexpectedAnswer
from deltaw_client.problems import ProblemError
from deltaw_client.resources import Text
from schemas.common import adapter
from schemas.model import Limits

NDJSON = "application/x-ndjson"
MOST_LINES = 256
"""Maximum number of lines of one request: enough for the service to fill its batches, and few
enough for concurrent requests to share the work."""

Pair = tuple[Text, Text] | Mapping[str, Any]
"""(context, query), or a mapping of a resource's fields."""
LinesResource = Literal[
    "activations",
    "weight_updates",
    "equivalence_checks",
    "trajectories",
    "attributions",
    "tokenize",
    "completions",
]
"""The resources that take many bodies in one request."""
CALLS: Mapping[str, Callable[..., Call[Any]]] = {
    name: getattr(generation if name == "completions" else resources, name)
    for name in get_args(LinesResource)
}
OF_THE_REQUEST = ("request_id", "deadline_seconds")
"""Arguments of a single call that a line cannot have."""


@dataclass(frozen=True)
class Line:
    """The answer or the error of one body.

    Args:
        index: Index of the body, or of the pair of a sweep.
        pair: The body's own fields.
        answer: The answer; None if there is an error.
        error: The service's problem or a `Timeout`; None if there is an answer.
    """

    index: int
    pair: Mapping[str, Any]
    answer: Any = None
    error: DeltawError | None = None


@dataclass(frozen=True)
class Item:
    """A body to ask about: its index, its own fields, and the call with all its fields."""

    index: int
    pair: Mapping[str, Any]
    call: Call[Any]

    @property
    def body(self) -> bytes:
        """The body's line. Lines cannot hold a safetensors file, so base64 replaces it."""
        encoded = {"encoding": "base64"} if self.call.accept == SAFETENSORS else {}
        return json.dumps({**(self.call.fields or {}), **encoded}, default=plain).encode() + b"\n"


@dataclass(frozen=True)
class Answered:
    """A line of the response, as the service writes it. Without an index it is the last one, with
    the problem that ended the whole request.
    """

    index: int | None
    status: int
    body: Any
    request_id: str = ""
    timings_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def server_timing(self) -> dict[str, float]:
        """The service's own seconds."""
        return {name: round(ms / 1000, 6) for name, ms in self.timings_ms.items()}


def read_items(
    bodies: Iterable[Pair], resource: str, parameters: Mapping[str, Any]
) -> Iterator[Item]:
    """Make the call of each body. A body's own fields replace the parameters.

    Raises:
        TypeError: The resource does not have such a field.
    """
    for index, body in enumerate(bodies):
        if isinstance(body, Mapping):
            own = dict(body)
        else:
            own = dict(zip(("context", "query"), body, strict=True))
        fields = {**parameters, **own}
        for name in OF_THE_REQUEST:
            if name in fields:
                raise TypeError(f"{name} is no field of a body")
        yield Item(index, own, CALLS[resource](**fields))


def split(items: Iterable[Item], limits: Limits) -> Iterator[Sequence[tuple[Item, bytes]]]:
    """Group items, each with its line, into requests within the service's limits."""
    most = min(MOST_LINES, limits.max_lines)
    group: list[tuple[Item, bytes]] = []
    size = 0
    for item in items:
        body = item.body
        if group and (len(group) == most or size + len(body) > limits.max_ndjson_bytes):
            yield group
            group, size = [], 0
        group.append((item, body))
        size += len(body)
    if group:
        yield group


class Batch(Attempts[Line]):
    """The bodies of one request, asked again until each has an answer or an error.

    The policy's retries apply between two answers, like its deadline. Each body is a question that
    changes nothing, so every retryable error is retried.
    """

    def __init__(self, bodies: Sequence[tuple[Item, bytes]], policy: RetryPolicy) -> None:
        super().__init__(policy)
        self._waiting = dict(enumerate(bodies))
        self._problems: dict[int, ProblemError] = {}

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Begin an attempt: build the request of the bodies without an answer."""
        self._waiting = dict(enumerate(self._waiting.values()))
        self._problems, self._pieces = {}, []
        headers = {"Content-Type": NDJSON, "Accept": NDJSON, "X-Request-ID": uuid.uuid4().hex}
        content = b"".join(body for _, body in self._waiting.values())
        path = self._waiting[0][0].call.path
        return http.build_request("POST", path, content=content, headers=headers)

    def receive(self, piece: bytes) -> Iterator[Line]:
        """Take a piece of a response, and give the lines that it completes."""
        if self._reply.status != 200 or self._reply.media != NDJSON or b"\n" not in piece:
            self._pieces.append(piece)
            self.seconds_left()
            return
        *texts, rest = b"".join([*self._pieces, piece]).split(b"\n")
        self._pieces = [rest]
        for text in texts:
            line = self._read(text)
            if line is not None:
                yield line
                self._part_taken()

    def _read(self, text: bytes) -> Line | None:
        """Read a line. A problem that is retryable is kept until the attempt ends."""
        try:
            read: Answered = adapter(Answered).validate_json(text, extra="ignore")
            error = None if read.status == 200 else problem_error(read.body)
        except ValidationError as invalid:
            raise UnexpectedAnswer(f"line {text[:80]!r} cannot be read", 200) from invalid
        if read.index is None:
            raise error or UnexpectedAnswer("the line without an index has no problem", 200)
        if read.index not in self._waiting:
            raise UnexpectedAnswer(f"line {read.index} was not asked for", 200)
        if error is not None and error.retryable:
            self._problems[read.index] = error
            return None
        item, _ = self._waiting.pop(read.index)
        if error is not None:
            return Line(item.index, item.pair, error=error)
        came_with = Receipt(read.request_id, read.server_timing, text)
        return Line(item.index, item.pair, item.call.read_value(read.body, came_with))

    def finish(self, error: DeltawError | None) -> Iterator[Line]:
        """End an attempt: set `wait`, or give up the bodies that have no answer.

        Raises:
            DeltawError: The error is neither retryable nor one that each body may have.
        """
        self.wait = None
        if not self._waiting:
            return
        error = error or self._missing()
        if error.retryable and self._tries_again(error):
            return
        if not isinstance(error, Timeout) and not (
            isinstance(error, ProblemError) and error.retryable
        ):
            raise error
        for index, (item, _) in self._waiting.items():
            yield Line(item.index, item.pair, error=self._problems.get(index, error))

    def _missing(self) -> DeltawError:
        """Return the reason why a response that was received whole lacks answers."""
        if self._reply.status != 200 or self._reply.media != NDJSON:
            return failure(self._whole())
        if len(self._problems) < len(self._waiting):
            return ConnectionFailed("the response ended before its last line", sent=True)
        return next(iter(self._problems.values()))
