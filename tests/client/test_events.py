"""Server-sent events: how they are read, and how a stream ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from deltaw_client import (
    AsyncDeltawClient,
    Completion,
    ConnectionFailed,
    DeltawClient,
    DeltawError,
    Timeout,
    UnexpectedAnswer,
    problems,
)
from deltaw_client.events import EventReader
from tests.client.conftest import DROPPED, Reply, Scripted, problem, scripted

STREAM = {"Content-Type": "text/event-stream; charset=utf-8", "X-Request-ID": "of-the-service"}
DONE = b"data: [DONE]\n\n"
RECORDED = (
    b": a comment\r\n"
    b"\r\n"
    b'data: {"text": "na\xc3\xafve"}\r\n\r\n'
    b"event: token\ndata: first\ndata:second\ndata:  third\nid: 7\n\n"
    b"retry: 10\n\n"
    b"data:\n\n"
    b"data\r\r"
    b"data: [DONE]\n\n"
    b"data: not ended"
)
"""A stream with each form that the standard allows."""
READ = [
    '{"text": "naïve"}'.encode(),
    b"first\nsecond\n third",
    b"",
    b"",
    b"[DONE]",
]


def event(text: str, token: int, **more: Any) -> bytes:
    """Write an event with one token, as the service writes it."""
    body = {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "bundled",
        "choices": [{"text": text, "index": 0, "finish_reason": None, "logprobs": None}],
        "tokens": [token],
        "of_a_later_service": 1,
        **more,
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def stream_of(*events: bytes) -> Reply:
    """Make a reply with events."""
    return 200, STREAM, b"".join(events)


def cut_after(*events: bytes) -> Reply:
    """Make a reply whose connection breaks after these events."""
    status, headers, body = stream_of(*events)
    return status, headers | {"Content-Length": "9999", "Connection": "close"}, body


def problem_event(code: str) -> bytes:
    """Write an event with a problem."""
    said = json.loads(problem(code)[2])
    return b"data: " + json.dumps({"error": said}).encode() + b"\n\n"


def read(pieces: Sequence[bytes]) -> list[bytes]:
    """Read events from pieces."""
    reader = EventReader()
    return [data for piece in pieces for data in reader.receive(piece)]


def test_events_are_read_from_any_split() -> None:
    """The data is the same whichever bytes arrive together, with empty pieces between them."""
    assert read([RECORDED]) == READ
    assert read([RECORDED[at : at + 1] for at in range(len(RECORDED))]) == READ
    for at in range(len(RECORDED)):
        assert read([RECORDED[:at], b"", RECORDED[at:]]) == READ


def test_each_event_is_given_when_its_blank_line_arrives() -> None:
    """An event is given with the byte that ends it, and not before."""
    reader = EventReader()
    assert list(reader.receive(b"data: a\n")) == []
    assert list(reader.receive(b"\n")) == [b"a"]
    assert list(reader.receive(b"data: b\r\n\r")) == [b"b"]
    assert list(reader.receive(b"\ndata: c\n\n")) == [b"c"]


def gather(service: Scripted, asynchronous: bool, **options: Any) -> list[Completion]:
    """Stream a completion with either client."""
    if not asynchronous:
        with DeltawClient(service.url, jitter=lambda wait: -wait, **options) as client:
            return list(client.stream_completions("a prompt"))

    async def all_of() -> list[Completion]:
        async with (
            AsyncDeltawClient(service.url, jitter=lambda wait: -wait, **options) as client,
            aclosing(client.stream_completions("a prompt")) as events,
        ):
            return [event async for event in events]

    return asyncio.run(all_of())


both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@both
def test_stream_gives_each_event(asynchronous: bool) -> None:
    """Each event is a completion with the service's request id; `[DONE]` ends the stream."""
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    last = event("", 0, choices=[], usage=usage)
    with scripted(stream_of(event(" one", 5, seed=7), event(" two", 6), last, DONE)) as service:
        first, second, third = gather(service, asynchronous)
    assert (first.choices[0].text, second.choices[0].text) == (" one", " two")
    assert (first.seed, first.tokens, first.request_id) == (7, [5], "of-the-service")
    assert third.usage
    assert third.usage.total_tokens == 3
    assert json.loads(second.content)["tokens"] == [6]
    (heard,) = service.heard
    assert "text/event-stream" in heard["accept"]


@both
def test_stream_without_done_is_an_error(asynchronous: bool) -> None:
    """A connection that ends without `[DONE]` raises after its events, and is not retried."""
    with scripted(stream_of(event(" one", 5))) as service:
        with pytest.raises(ConnectionFailed, match="before its last event") as raised:
            gather(service, asynchronous)
        assert len(service.heard) == 1
    assert raised.value.sent


@both
@pytest.mark.parametrize(
    "fault", [cut_after(), DROPPED, (500, {"Content-Type": "text/plain"}, b"gone")]
)
def test_fault_before_the_first_event_is_retried(asynchronous: bool, fault: Reply) -> None:
    """A request is sent again if its stream breaks before the first event or never begins."""
    with scripted(fault, stream_of(event(" one", 5), DONE)) as service:
        assert [piece.tokens for piece in gather(service, asynchronous)] == [[5]]
        assert len(service.heard) == 2


@both
def test_connection_that_breaks_after_an_event_is_not_retried(asynchronous: bool) -> None:
    """The caller already has the first event, so the request is not sent again."""
    with scripted(cut_after(event(" one", 5)), stream_of(DONE)) as service:
        with pytest.raises(ConnectionFailed):
            gather(service, asynchronous)
        assert len(service.heard) == 1


@both
def test_problem_within_a_stream_is_raised(asynchronous: bool) -> None:
    """A problem in an event is raised as its class, and never retried after a token."""
    reply = stream_of(event(" one", 5), problem_event("out_of_memory"))
    with scripted(reply, stream_of(DONE)) as service:
        with pytest.raises(problems.OutOfMemory) as raised:
            gather(service, asynchronous)
        assert len(service.heard) == 1
    assert raised.value.retryable


@both
def test_stream_is_retried_before_its_first_event(asynchronous: bool) -> None:
    """A full queue, and a retryable problem in the first event, are retried."""
    full = problem("queue_full", Retry_After="0")
    memory = stream_of(problem_event("out_of_memory"))
    with scripted(memory, full, stream_of(event(" one", 5), DONE)) as service:
        assert [piece.tokens for piece in gather(service, asynchronous)] == [[5]]
        assert len(service.heard) == 3
    with scripted(full) as service:
        with pytest.raises(problems.QueueFull):
            gather(service, asynchronous, retries=1)
        assert len(service.heard) == 2


@both
def test_refused_request_raises_its_problem(asynchronous: bool) -> None:
    """A problem in place of a stream is raised, and is not retried."""
    with scripted(problem("never_fits")) as service:
        with pytest.raises(problems.NeverFits):
            gather(service, asynchronous)
        assert len(service.heard) == 1


@pytest.mark.parametrize(
    "reply",
    [
        (200, {"Content-Type": "text/html"}, b"<html>\n\n"),
        stream_of(b"data: {not JSON\n\n", DONE),
        stream_of(b"data: 7\n\n", DONE),
        stream_of(b'data: {"id": "cmpl-1"}\n\n', DONE),
        stream_of(b'data: {"error": {}}\n\n', DONE),
    ],
)
def test_foreign_event_raises_unexpected_answer(reply: Reply) -> None:
    """An event that is not deltaw's raises `UnexpectedAnswer`, without its content."""
    with scripted(reply) as service, pytest.raises(UnexpectedAnswer) as raised:
        gather(service, asynchronous=False)
    assert raised.value.status == 200
    assert "cmpl" not in str(raised.value)


def test_captured_activations_are_arrays() -> None:
    """The activations of an event are NumPy arrays."""
    values = {"dtype": "float32", "shape": [1, 2], "encoding": "json", "data": [[1.0, 2.0]]}
    captured = [{"layer": 5, "hook_point": "resid_post", "values": values}]
    with scripted(stream_of(event(" one", 5, activations=captured), DONE)) as service:
        (piece,) = gather(service, asynchronous=False)
    assert piece.activations
    assert np.array_equal(piece.activations[0].values, np.array([[1.0, 2.0]], "float32"))


def test_deadline_applies_between_two_events() -> None:
    """A deadline that is not positive has passed before anything is sent."""
    with (
        scripted(stream_of(event(" one", 5), DONE)) as service,
        DeltawClient(service.url) as client,
    ):
        with pytest.raises(Timeout):
            list(client.stream_completions("a prompt", deadline_seconds=0.0))
        assert service.heard == []
        taken = client.stream_completions("a prompt", deadline_seconds=0.5)
        assert next(taken).tokens == [5]
        with pytest.raises(StopIteration):
            next(taken)


def test_closed_stream_leaves_the_client_usable() -> None:
    """Closing the iterator after an event ends the request; the client makes other calls."""
    with (
        scripted(stream_of(event(" one", 5), event(" two", 6), DONE)) as service,
        DeltawClient(service.url) as client,
    ):
        events = client.stream_completions("a prompt")
        assert next(events).tokens == [5]
        events.close()
        with pytest.raises(DeltawError):
            client.model()
