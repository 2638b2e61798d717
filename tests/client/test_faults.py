"""Faults after a request was sent: the client retries questions, but not writes of adapters."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from deltaw_client import (
    AsyncDeltawClient,
    ConnectionFailed,
    DeltawClient,
    DeltawError,
    UnexpectedAnswer,
    adapters,
    generation,
    problems,
    resources,
)
from deltaw_client.calls import Call
from tests.client.conftest import CUT, DROPPED, Reply, problem, scripted

PROXY: Reply = (500, {"Content-Type": "text/plain"}, b"Internal Server Error")
"""Answer of a proxy if the service behind it has died."""
FAULTS: dict[str, tuple[Reply, type[DeltawError]]] = {
    "dropped": (DROPPED, ConnectionFailed),
    "cut": (CUT, ConnectionFailed),
    "proxy": (PROXY, UnexpectedAnswer),
    "gateway": ((502, {}, b"Bad Gateway"), UnexpectedAnswer),
    "replica lost": (problem("replica_lost"), problems.ReplicaLost),
    "gateway's timeout": ((504, {}, b"Gateway Timeout"), UnexpectedAnswer),
}
"""Each fault, and the error that the client raises after the last retry."""
PURE: dict[str, Call[Any]] = {
    "model": resources.model(),
    "models": generation.models(),
    "activations": resources.activations(["a"]),
    "weight_updates": resources.weight_updates("a", "b"),
    "equivalence_checks": resources.equivalence_checks("a", "b"),
    "trajectories": resources.trajectories("a", "b"),
    "attributions": resources.attributions("a", "b"),
    "tokenize": resources.tokenize(["a"]),
    "completions": generation.completions("a"),
    "stream_completions": generation.stream_completions("a"),
    "adapters.list": adapters.list_all(),
    "adapters.get": adapters.get("a1b2"),
}
WRITES: dict[str, Call[Any]] = {
    "adapters.create": adapters.create("a", kind="token", query="b"),
    "adapters.delete": adapters.delete("a1b2"),
}

faults = pytest.mark.parametrize(("fault", "error"), FAULTS.values(), ids=FAULTS)
both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


def make(url: str, call: Call[Any], asynchronous: bool = False, retries: int = 4) -> None:
    """Make a call with either client, without waits between retries."""
    if not asynchronous:
        with DeltawClient(url, retries=retries, jitter=lambda wait: -wait) as client:
            client.make(call)
        return

    async def made() -> None:
        async with AsyncDeltawClient(url, retries=retries, jitter=lambda wait: -wait) as client:
            await client.make(call)

    asyncio.run(made())


@both
@faults
def test_fault_of_a_pure_call_is_retried(
    fault: Reply, error: type[DeltawError], asynchronous: bool
) -> None:
    """The client sends the request again with the same id until it gets an answer."""
    replies = (fault, fault, problem("not_found"))
    with scripted(*replies) as service, pytest.raises(problems.NotFound):
        make(service.url, PURE["weight_updates"], asynchronous)
    assert len(service.heard) == 3
    assert len({heard["x-request-id"] for heard in service.heard}) == 1


@faults
def test_last_fault_of_a_pure_call_is_raised(fault: Reply, error: type[DeltawError]) -> None:
    """After the last retry the client raises the fault, which is retryable."""
    with scripted(fault) as service, pytest.raises(error) as raised:
        make(service.url, PURE["model"], retries=2)
    assert len(service.heard) == 3
    assert (raised.value.retryable, raised.value.outcome_unknown) == (True, True)


@both
@faults
@pytest.mark.parametrize("call", WRITES.values(), ids=WRITES)
def test_fault_of_a_write_is_not_retried(
    call: Call[Any], fault: Reply, error: type[DeltawError], asynchronous: bool
) -> None:
    """The service may have carried out the write, so it gets exactly one request."""
    with scripted(fault, problem("not_found")) as service, pytest.raises(error) as raised:
        make(service.url, call, asynchronous)
    assert len(service.heard) == 1
    assert raised.value.outcome_unknown


@pytest.mark.parametrize("call", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("reply", [problem("queue_full"), (503, {}, b"no server")])
def test_write_that_was_refused_is_retried(call: Call[Any], reply: Reply) -> None:
    """A write is retried after a retryable problem, and after a 503 of a proxy."""
    with scripted(reply, problem("not_found")) as service, pytest.raises(problems.NotFound):
        make(service.url, call)
    assert len(service.heard) == 2


def test_only_adapters_are_written() -> None:
    """Only the calls that create or delete an adapter change the service's state."""
    assert {name for name, call in (PURE | WRITES).items() if call.writes} == set(WRITES)


@faults
def test_fault_of_lines_is_retried(
    fault: Reply, error: type[DeltawError], client: DeltawClient
) -> None:
    """An NDJSON request changes nothing, so the client sends its lines again."""
    model: Reply = (200, {"Content-Type": "application/json"}, client.model().content)
    with (
        scripted(model, fault, problem("unsupported_media_type")) as service,
        DeltawClient(service.url, jitter=lambda wait: -wait) as other,
        pytest.raises(problems.UnsupportedMediaType),
    ):
        list(other.lines("weight_updates", [("a", "b")]))
    assert len(service.heard) == 3
