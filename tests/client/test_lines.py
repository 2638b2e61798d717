"""Many bodies in one request: answers, problems, limits, and what is asked again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from deltaw_client import (
    ConnectionFailed,
    DeltawClient,
    Line,
    Timeout,
    UnexpectedAnswer,
    problems,
)
from deltaw_client.lines import CALLS, MOST_LINES, NDJSON, Answered, read_items, split
from schemas.common import UNSET, read_answer
from schemas.lines import Line as WireLine
from tests.client.conftest import async_client, problem, scripted
from tests.client.disturbed import Disturb, Disturbed, problem_line
from tests.service_process import Served

PAIRS = [([5 + i, 6, 7], [8]) for i in range(12)]
NO_FIELDS: dict[str, Any] = {}
NORMS: dict[str, Any] = {"include": [], "layers": [0]}
BODIES: dict[str, dict[str, Any]] = {
    "activations": {"prompts": [[5, 6]], "layers": [0]},
    "weight_updates": {"context": "the abc", "query": " the"},
    "equivalence_checks": {"context": [5, 6], "query": [7]},
    "trajectories": {"context": [5, 6], "query": [7]},
    "attributions": {"context": [5, 6], "query": [7], "spans": [[0, 1], [1, 2]]},
    "tokenize": {"prompts": ["the abc"]},
    "completions": {"prompt": [5, 6], "max_tokens": 2, "seed": 7},
}


def disturbed(
    service: Served, disturb: Disturb, **arguments: Any
) -> tuple[DeltawClient, Disturbed]:
    """Make a client whose NDJSON responses are changed, and which does not wait to retry."""
    transport = Disturbed(disturb)
    arguments = {"jitter": lambda wait: -wait, **arguments}
    return DeltawClient(service.url, transport=transport, **arguments), transport


def first_columns(transport: Disturbed) -> list[list[int]]:
    """Return the first token of each line's context, by request."""
    return [[body["context"][0] - 5 for body in lines] for lines in transport.requests]


@pytest.mark.parametrize("resource", BODIES)
def test_line_equals_a_single_call(client: DeltawClient, resource: Any) -> None:
    """A line's answer has the class and the numbers of a single call, and its own request id."""
    lines = sorted(client.lines(resource, [BODIES[resource]] * 2), key=lambda line: line.index)
    single = getattr(client, resource)(**BODIES[resource])
    assert [line.index for line in lines] == [0, 1]
    for line in lines:
        assert line.pair == BODIES[resource]
        assert line.error is None
        assert type(line.answer) is type(single)
        head, _, index = line.answer.request_id.rpartition("-")
        assert (bool(head), index) == (True, str(line.index))
        assert line.answer.server_timing.keys() == single.server_timing.keys()
        assert json.loads(line.answer.content)["index"] == line.index


def test_lines_bring_tensors_bit_by_bit(client: DeltawClient) -> None:
    """Tensors travel in base64, and have the bits of the same question with JSON numbers."""
    asked: dict[str, Any] = {"include": ["factors", "bias"], "layers": [0]}
    # This caches the prefixes. A question that computes them can differ in the last bits.
    client.weight_updates(*PAIRS[0], **asked)
    lines = [
        next(client.lines("weight_updates", PAIRS[:1], **asked, **more))
        for more in (NO_FIELDS, {"encoding": "json"})
    ]
    ours, theirs = (line.answer.updates[0] for line in lines)
    assert b'"encoding":"base64"' in lines[0].answer.content
    assert b'"encoding":"json"' in lines[1].answer.content
    assert ours.input is not UNSET
    assert ours.input.dtype == np.float32
    assert ours.input.tobytes() == theirs.input.tobytes()
    assert ours.bias.values.tobytes() == theirs.bias.values.tobytes()


def test_own_fields_of_a_body_replace_the_parameters(client: DeltawClient) -> None:
    """A body may have its own layers."""
    own: list[dict[str, Any]] = [NO_FIELDS, {"layers": [2]}]
    bodies: list[dict[str, Any]] = [{"context": [5], "query": [7, 8], **more} for more in own]
    lines = {line.index: line.answer for line in client.lines("weight_updates", bodies, **NORMS)}
    assert [lines[i].updates[0].layer for i in range(2)] == [0, 2]


def test_wrong_line_has_its_problem(client: DeltawClient) -> None:
    """Wrong lines have their problems, the first one too, and the others their answers."""
    bodies: list[dict[str, Any]] = [{"context": [5], "query": [7], "layers": [i]} for i in (9, 0)]
    bodies.append({"context": "", "query": "the"})
    bodies.append({"context": "x" * (1 << 20), "query": "the"})
    lines = {line.index: line for line in client.lines("weight_updates", bodies)}
    assert isinstance(lines[0].error, problems.LayerOutOfRange)
    assert [mistake.pointer for mistake in lines[0].error.errors] == ["/layers/0"]
    assert lines[1].error is None
    assert isinstance(lines[2].error, problems.EmptyContext)
    assert isinstance(lines[3].error, problems.BodyTooLarge)


def test_async_lines_come_as_they_are_ready(tiny_folder: Path) -> None:
    """The async client gives every line, of requests within the service's limits."""

    async def ask() -> list[Line]:
        async with async_client(tiny_folder, max_lines=5) as client:
            assert (await client.model()).limits.max_lines == 5
            return [line async for line in client.lines("weight_updates", PAIRS, **NORMS)]

    lines = asyncio.run(ask())
    assert sorted(line.index for line in lines) == list(range(len(PAIRS)))
    assert all(line.answer.updates[0].norm > 0 for line in lines)


def test_requests_keep_the_limits(client: DeltawClient) -> None:
    """A request has no more lines and bytes than the service reads, in the order of the bodies."""
    wide = client.model().limits
    pairs = [([5] * n, [6]) for n in (1, 1, 1, 1, 200, 200, 200, 900, 1)]
    items = list(read_items(pairs, "weight_updates", {}))
    narrow = replace(wide, max_lines=3, max_ndjson_bytes=2 * len(items[4].body))
    groups = [[item.index for item, _ in group] for group in split(items, narrow)]
    assert groups == [[0, 1, 2], [3, 4], [5, 6], [7], [8]]
    many = read_items([([5], [6])] * (MOST_LINES + 1), "weight_updates", {})
    assert [len(group) for group in split(many, wide)] == [MOST_LINES, 1]


def test_bodies_are_read_when_they_are_needed(client: DeltawClient) -> None:
    """Bodies without an end can be asked; closing the iterator ends the requests."""
    bodies = (([5 + i % 40], [6]) for i in count())
    lines = client.lines("weight_updates", bodies, **NORMS)
    assert len(list(islice(lines, 300))) == 300
    lines.close()
    assert next(bodies)[0] != [5]


def test_broken_connection_asks_again_for_the_rest(tiny_service: Served) -> None:
    """After a connection breaks, only the lines without an answer are asked again."""

    def breaking(number: int, lines: Iterator[bytes]) -> Iterator[bytes]:
        if number == 0:
            yield from islice(lines, 4)
            yield next(lines)[:-20]
            raise httpx.ReadError("cut")
        if number == 1:
            # The response ends too early, without an error.
            yield from islice(lines, 3)
        else:
            yield from lines

    client, transport = disturbed(tiny_service, breaking)
    with client:
        lines = list(client.lines("weight_updates", PAIRS, **NORMS))
    assert sorted(line.index for line in lines) == list(range(12))
    assert all(line.error is None for line in lines)
    first, second, third = first_columns(transport)
    answered = [line.index for line in lines]
    assert first == list(range(12))
    assert sorted(second) == sorted(set(first) - set(answered[:4]))
    assert sorted(third) == sorted(set(second) - set(answered[4:7]))
    assert len(set(transport.ids)) == 3


def test_retries_count_attempts_without_an_answer(tiny_service: Served) -> None:
    """Each answer starts the retries anew; attempts that bring none end in the error."""

    def one(_: int, lines: Iterator[bytes]) -> Iterator[bytes]:
        yield next(lines)

    def none(_: int, lines: Iterator[bytes]) -> Iterator[bytes]:
        return iter(())

    client, transport = disturbed(tiny_service, one, retries=1)
    with client:
        assert len(list(client.lines("weight_updates", PAIRS[:5], **NORMS))) == 5
    assert [len(lines) for lines in transport.requests] == [5, 4, 3, 2, 1]
    client, transport = disturbed(tiny_service, none, retries=2)
    with client, pytest.raises(ConnectionFailed, match="before its last line"):
        list(client.lines("weight_updates", PAIRS[:5], **NORMS))
    assert [len(lines) for lines in transport.requests] == [5, 5, 5]


def test_retryable_problem_of_a_line_is_asked_again(tiny_service: Served) -> None:
    """A line's retryable problem is asked again, and is its error after the last attempt."""

    def busy(number: int, lines: Iterator[bytes]) -> Iterator[bytes]:
        for line in lines:
            index = json.loads(line)["index"]
            first = number == 0 and index in (2, 3)
            yield problem_line("out_of_memory", index) if first else line

    def full(number: int, lines: Iterator[bytes]) -> Iterator[bytes]:
        for line in lines:
            late = len(transport.requests[number]) < 5 or json.loads(line)["index"] == 1
            index = json.loads(line)["index"]
            yield problem_line("out_of_memory", index) if late else line

    client, transport = disturbed(tiny_service, busy)
    with client:
        lines = list(client.lines("weight_updates", PAIRS[:5], **NORMS))
    assert first_columns(transport) == [[0, 1, 2, 3, 4], [2, 3]]
    assert [line.error for line in lines] == [None] * 5
    client, transport = disturbed(tiny_service, full, retries=2)
    with client:
        lines = list(client.lines("weight_updates", PAIRS[:5], **NORMS))
    assert first_columns(transport) == [[0, 1, 2, 3, 4], [1], [1]]
    assert {line.index for line in lines if line.error is None} == {0, 2, 3, 4}
    assert isinstance(lines[-1].error, problems.OutOfMemory)


def test_line_without_index_ends_the_request(tiny_service: Served) -> None:
    """A retryable problem of the whole request asks again for the rest; another one is raised."""

    def ended(code: str) -> Disturb:
        def disturb(number: int, lines: Iterator[bytes]) -> Iterator[bytes]:
            if number == 0:
                yield from islice(lines, 2)
                yield problem_line(code, None)
            else:
                yield from lines

        return disturb

    client, transport = disturbed(tiny_service, ended("draining"))
    with client:
        lines = list(client.lines("weight_updates", PAIRS[:5], **NORMS))
    assert [line.error for line in lines] == [None] * 5
    assert [len(asked) for asked in transport.requests] == [5, 3]
    client, transport = disturbed(tiny_service, ended("internal"))
    with client:
        asked = client.lines("weight_updates", PAIRS[:5], **NORMS)
        assert len(list(islice(asked, 2))) == 2
        with pytest.raises(problems.InternalError):
            next(asked)
    assert len(transport.requests) == 1


@pytest.mark.parametrize(
    "text", [b"<html>\n", b'{"index": 99, "status": 200, "body": {}}\n', b'{"index": null}\n']
)
def test_foreign_line_raises_unexpected_answer(tiny_service: Served, text: bytes) -> None:
    """A line that is not deltaw's raises UnexpectedAnswer after one request."""

    def foreign(_: int, lines: Iterator[bytes]) -> Iterator[bytes]:
        yield text

    client, transport = disturbed(tiny_service, foreign)
    with client, pytest.raises(UnexpectedAnswer):
        list(client.lines("weight_updates", PAIRS, **NORMS))
    assert len(transport.requests) == 1


def test_refused_request_waits_for_retry_after(client: DeltawClient) -> None:
    """A full queue is retried after `Retry-After`, then is the error of each line."""
    waits: list[float] = []
    model = 200, {"Content-Type": "application/json"}, client.model().content

    def jitter(wait: float) -> float:
        waits.append(wait)
        return -wait

    with (
        scripted(model, problem("queue_full", Retry_After="3")) as service,
        DeltawClient(service.url, retries=2, jitter=jitter) as other,
    ):
        lines = list(other.lines("weight_updates", PAIRS))
        assert len(service.heard) == 1 + 3
    assert waits == [3.0, 3.0, 3.0]
    assert [type(line.error) for line in lines] == [problems.QueueFull] * 12
    with (
        scripted(model, problem("unsupported_media_type")) as service,
        DeltawClient(service.url) as other,
        pytest.raises(problems.UnsupportedMediaType),
    ):
        list(other.lines("weight_updates", PAIRS))


def test_deadline_is_the_time_between_answers(tiny_service: Served, client: DeltawClient) -> None:
    """Each answer starts the deadline anew; if it passes, it is the error of the other lines."""

    def slow(_: int, lines: Iterator[bytes]) -> Iterator[bytes]:
        for line in lines:
            time.sleep(0.15)
            yield line

    steady, _ = disturbed(tiny_service, slow)
    with steady:
        lines = list(steady.lines("weight_updates", PAIRS[:5], deadline_seconds=0.5, **NORMS))
    assert [line.error for line in lines] == [None] * 5
    model = 200, {"Content-Type": "application/json"}, client.model().content
    stalled = 200, {"Content-Type": NDJSON, "Content-Length": "1000"}, b'{"index": 0'
    with scripted(model, stalled) as service, DeltawClient(service.url) as other:
        lines = list(other.lines("weight_updates", PAIRS[:2], deadline_seconds=0.2))
    assert [type(line.error) for line in lines] == [Timeout] * 2
    lines = list(client.lines("weight_updates", PAIRS[:2], deadline_seconds=1e-9))
    assert [type(line.error) for line in lines] == [Timeout] * 2


def test_async_deadline_is_the_error_of_the_lines(tiny_folder: Path) -> None:
    """The async client's deadline ends a computation in process too."""

    async def ask() -> list[Line]:
        async with async_client(tiny_folder) as client:
            asked = client.lines("trajectories", [([5] * 50, [6])] * 2, deadline_seconds=0.001)
            return [line async for line in asked]

    assert [type(line.error) for line in asyncio.run(ask())] == [Timeout] * 2


def test_wrong_arguments_raise_before_anything_is_sent(client: DeltawClient) -> None:
    """A field that a body cannot have raises TypeError, a concurrency of 0 ValueError."""
    for fields in ({"request_id": "mine"}, {"deadline_seconds": 1.0}, {"layer": 1}):
        body = {"context": [5], "query": [6], **fields}
        with pytest.raises(TypeError, match=next(iter(fields))):
            list(client.lines("weight_updates", [body]))
    with pytest.raises(ValueError, match="concurrency"):
        client.lines("weight_updates", PAIRS, concurrency=0)
    assert CALLS.keys() == BODIES.keys()


def test_answered_has_the_fields_of_the_wire() -> None:
    """The client reads the fields of `schemas.lines.Line`."""
    fields = WireLine.__dataclass_fields__.keys()
    assert fields == Answered.__dataclass_fields__.keys()
    assert read_answer(Answered, b'{"index": null, "status": 503, "body": {}}').index is None
