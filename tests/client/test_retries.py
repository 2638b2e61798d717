"""Trying again: when, after how long, and how often."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from deltaw_client import AsyncDeltawClient, DeltawClient, problems
from deltaw_client.retries import RetryPolicy, random_jitter
from deltaw_client.calls import retry_after
from deltaw_client.errors import ConnectionFailed
from tests.client.conftest import problem, scripted

NOT_FOUND = problem("not_found")
"""Ends a call; stands here for any answer that is not tried again."""


def test_waits_as_it_is_told() -> None:
    """A full queue is asked again after `Retry-After` and the jitter, under the same request id."""
    added: list[float] = []

    def jitter(wait: float) -> float:
        added.append(wait)
        return 0.1

    replies = (problem("queue_full", Retry_After="1"), NOT_FOUND)
    start = time.monotonic()
    with (
        scripted(*replies) as service,
        DeltawClient(service.url, jitter=jitter) as client,
        pytest.raises(problems.NotFound),
    ):
        client.model()
    assert time.monotonic() - start >= 1.1
    assert added[0] == 1.0
    first, second = (heard["x-request-id"] for heard in service.heard)
    assert first == second


@pytest.mark.parametrize("code", ["queue_full", "loading", "draining", "out_of_memory"])
def test_what_may_pass(code: str) -> None:
    """What may pass is asked again; the number of attempts is bounded."""
    with (
        scripted(problem(code, Retry_After="0")) as service,
        DeltawClient(service.url, retries=2, jitter=lambda _: 0.0) as client,
        pytest.raises(problems.ProblemError) as raised,
    ):
        client.model()
    assert raised.value.code == code
    assert raised.value.retry_after == 0.0
    assert len(service.heard) == 3


@pytest.mark.parametrize("code", ["validation", "missing_key", "internal", "never_fits"])
def test_what_stays(code: str) -> None:
    """What would be said again is not asked again."""
    with (
        scripted(problem(code, Retry_After="0")) as service,
        DeltawClient(service.url) as client,
        pytest.raises(problems.ProblemError) as raised,
    ):
        client.model()
    assert raised.value.code == code
    assert len(service.heard) == 1


def test_beyond_the_deadline() -> None:
    """Where the wait would end after the deadline, the problem is raised at once."""
    start = time.monotonic()
    with (
        scripted(problem("queue_full", Retry_After="30")) as service,
        DeltawClient(service.url) as client,
        pytest.raises(problems.QueueFull) as raised,
    ):
        client.model(deadline_seconds=5.0)
    assert time.monotonic() - start < 5.0
    assert raised.value.retry_after == 30.0
    assert len(service.heard) == 1


def test_asynchronous() -> None:
    """The async client waits by the same rule."""

    async def ask(url: str) -> None:
        async with AsyncDeltawClient(url, jitter=lambda _: 0.0) as client:
            await client.model(request_id="mine")

    with scripted(problem("loading", Retry_After="1"), NOT_FOUND) as service:
        start = time.monotonic()
        with pytest.raises(problems.NotFound):
            asyncio.run(ask(service.url))
    assert time.monotonic() - start >= 1.0
    assert [heard["x-request-id"] for heard in service.heard] == ["mine", "mine"]


def test_retry_after() -> None:
    """`Retry-After` is seconds or a date; anything else says nothing."""
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    later = retry_after(soon)
    assert later is not None
    assert 50 < later <= 60
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after("7") == 7.0
    assert retry_after("soon") is None
    assert retry_after(None) is None


def test_jitter() -> None:
    """By itself the wait doubles up to a bound; the jitter adds half of it at most."""
    policy = RetryPolicy(60.0, 4, lambda _: 0.0)
    unsaid = ConnectionFailed("nobody", False)
    assert [policy.wait(unsaid, i) for i in range(7)] == [0.25, 0.5, 1, 2, 4, 8, 8]
    added = [random_jitter(2.0) for _ in range(100)]
    assert 0 <= min(added) < max(added) <= 1.0
