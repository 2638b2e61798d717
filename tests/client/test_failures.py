"""Errors of a call."""

from __future__ import annotations

import asyncio
import pickle
import time
from pathlib import Path

import pytest

from deltaw_client import (
    ConnectionFailed,
    DeltawClient,
    DeltawError,
    ProblemError,
    Timeout,
    UnexpectedAnswer,
    problems,
)
from tests.client.conftest import CONTEXT, QUERY, async_client, problem, scripted
from tests.service_process import free_port


def test_problem_raises_the_class_of_its_code(client: DeltawClient) -> None:
    """A problem is raised as its code's class, with all fields of the service's answer."""
    with pytest.raises(problems.LayerOutOfRange) as raised:
        client.weight_updates(CONTEXT, QUERY, layers=[48], request_id="mine.2")
    error = raised.value
    assert isinstance(error, ProblemError)
    assert isinstance(error, DeltawError)
    assert (error.code, error.status) == ("layer_out_of_range", 422)
    assert (error.limit, error.actual) == (2, 48)
    assert error.request_id == "mine.2"
    assert [mistake.pointer for mistake in error.errors] == ["/layers/0"]
    assert not error.retryable
    assert error.title == "Layer out of range"
    for said in ("layer_out_of_range", "48", "/layers/0", "mine.2"):
        assert said in str(error)


def test_service_validates_the_arguments(client: DeltawClient) -> None:
    """The client sends arguments as they are; the service points at the mistake."""
    with pytest.raises(problems.Validation) as raised:
        client.weight_updates(CONTEXT, QUERY, layers=[False])
    assert raised.value.errors[0].pointer == "/layers/0"
    with pytest.raises(problems.Validation):
        client.weight_updates(CONTEXT, "\ud800")
    with pytest.raises(TypeError, match="layer"):
        client.weight_updates(CONTEXT, QUERY, layer=1)  # type: ignore[call-arg]


def test_missing_wrong_and_right_key(tiny_folder: Path) -> None:
    """A missing key and a wrong one raise their problems; the right one is accepted."""

    async def ask(key: str | None) -> str:
        async with async_client(tiny_folder, key, api_keys="open-sesame") as client:
            return (await client.model()).architecture

    with pytest.raises(problems.MissingKey):
        asyncio.run(ask(None))
    with pytest.raises(problems.WrongKey):
        asyncio.run(ask("sesame"))
    assert asyncio.run(ask("open-sesame"))


def test_error_survives_pickling(client: DeltawClient) -> None:
    """A pickled error keeps its class, its problem and its message."""
    with pytest.raises(problems.EmptyContext) as raised:
        client.weight_updates("", QUERY)
    again = pickle.loads(pickle.dumps(raised.value))
    assert type(again) is problems.EmptyContext
    assert (again.problem, str(again)) == (raised.value.problem, str(raised.value))
    assert (again.code, again.status, again.errors) == ("empty_context", 422, raised.value.errors)
    lost = pickle.loads(pickle.dumps(ConnectionFailed("gone", True)))
    assert (str(lost), lost.sent, lost.outcome_unknown, lost.retryable) == ("gone", *[True] * 3)


def test_refused_connection_is_retried() -> None:
    """A connection that is refused raises ConnectionFailed, after as many retries as allowed."""
    waits: list[float] = []

    def jitter(wait: float) -> float:
        waits.append(wait)
        return 0.0

    url = f"http://127.0.0.1:{free_port()}"
    with (
        DeltawClient(url, retries=1, jitter=jitter) as client,
        pytest.raises(ConnectionFailed) as raised,
    ):
        client.model()
    assert not raised.value.sent
    assert raised.value.retryable
    assert waits[0] == 0.25


@pytest.mark.parametrize(
    ("media", "body"),
    [
        ("text/html", b"<html>"),
        ("application/json", b'{"model": {}}'),
        ("application/vnd.safetensors", b"\xff" * 100),
        ("application/vnd.safetensors", b""),
    ],
)
def test_foreign_answer_raises_unexpected_answer(media: str, body: bytes) -> None:
    """An answer that is not deltaw's raises UnexpectedAnswer, and is not retried."""
    with (
        scripted((200, {"Content-Type": media}, body)) as service,
        DeltawClient(service.url) as client,
        pytest.raises(UnexpectedAnswer) as raised,
    ):
        client.model()
    assert raised.value.status == 200
    assert not raised.value.retryable


def test_bad_gateway_is_retried() -> None:
    """A proxy's 502 page for a service that is down is retried."""
    with (
        scripted((502, {"Content-Type": "text/html"}, b"<html>"), problem("not_found")) as service,
        DeltawClient(service.url, jitter=lambda _: 0.0) as client,
        pytest.raises(problems.NotFound),
    ):
        client.model()
    assert len(service.heard) == 2


def test_unknown_code_raises_problem_error() -> None:
    """A code that this client does not know raises ProblemError with all its fields."""
    status, headers, body = problem("validation")
    later = body.replace(b'"validation"', b'"of_tomorrow"').replace(b"{", b'{"more": 1, ', 1)
    with (
        scripted((status, headers, later)) as service,
        DeltawClient(service.url) as client,
        pytest.raises(ProblemError) as raised,
    ):
        client.model()
    assert type(raised.value) is ProblemError
    assert raised.value.code == "of_tomorrow"


def test_deadline_ends_a_call_in_process(tiny_folder: Path) -> None:
    """A deadline that passes while the service computes raises Timeout."""

    async def ask() -> None:
        async with async_client(tiny_folder) as client:
            await client.trajectories([5] * 50, [6], deadline_seconds=0.001)

    with pytest.raises(Timeout):
        asyncio.run(ask())


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_deadline_without_time_raises_timeout(client: DeltawClient, seconds: float) -> None:
    """A deadline that is not positive has passed before anything is sent."""
    with pytest.raises(Timeout):
        client.model(deadline_seconds=seconds)


def test_slow_answer_is_cut_off_at_the_deadline() -> None:
    """An answer that arrives byte by byte and never ends raises Timeout at the deadline."""
    from socket import create_server
    from threading import Thread

    listener = create_server(("127.0.0.1", 0))

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            try:
                for _ in range(200):
                    connection.sendall(b" ")
                    time.sleep(0.02)
            except OSError:
                pass

    thread = Thread(target=drip)
    thread.start()
    start = time.monotonic()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with DeltawClient(url, deadline_seconds=0.2) as client, pytest.raises(Timeout):
        client.model()
    assert time.monotonic() - start < 3.0
    thread.join()
    listener.close()
