"""Retries: when, after how long, and how often."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from deltaw_client import AsyncDeltawClient, DeltawClient, problems
from deltaw_client.calls import RetryPolicy, random_jitter, retry_after
from deltaw_client.errors import ConnectionFailed
from tests.client.conftest import problem, scripted

NOT_FOUND = problem("not_found")
"""Ends a call, like any answer that is not retried."""


def test_retry_waits_for_retry_after_and_jitter() -> None:
    """A full queue is retried after `Retry-After` plus jitter, with the same request id."""
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
def test_retryable_problems_are_retried(code: str) -> None:
    """A retryable problem is retried, at most `retries` times."""
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
def test_other_problems_are_not_retried(code: str) -> None:
    """A problem that is not retryable is raised after one attempt."""
    with (
        scripted(problem(code, Retry_After="0")) as service,
        DeltawClient(service.url) as client,
        pytest.raises(problems.ProblemError) as raised,
    ):
        client.model()
    assert raised.value.code == code
    assert len(service.heard) == 1


def test_wait_beyond_the_deadline_raises_at_once() -> None:
    """If the wait would end after the deadline, the problem is raised at once."""
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


def test_async_client_retries_alike() -> None:
    """The async client waits for `Retry-After` too."""

    async def ask(url: str) -> None:
        async with AsyncDeltawClient(url, jitter=lambda _: 0.0) as client:
            await client.model(request_id="mine")

    with scripted(problem("loading", Retry_After="1"), NOT_FOUND) as service:
        start = time.monotonic()
        with pytest.raises(problems.NotFound):
            asyncio.run(ask(service.url))
    assert time.monotonic() - start >= 1.0
    assert [heard["x-request-id"] for heard in service.heard] == ["mine", "mine"]


def test_retry_after_is_seconds_or_a_date() -> None:
    """`Retry-After` holds seconds or a date; any other text is ignored."""
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    later = retry_after(soon)
    assert later is not None
    assert 50 < later <= 60
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after("7") == 7.0
    assert retry_after("soon") is None
    assert retry_after(None) is None


def test_wait_doubles_up_to_a_limit() -> None:
    """Without `Retry-After` the wait doubles up to 8 s; the jitter adds at most half of it."""
    policy = RetryPolicy(60.0, 4, lambda _: 0.0)
    unsaid = ConnectionFailed("nobody", False)
    assert [policy.wait(unsaid, i) for i in range(7)] == [0.25, 0.5, 1, 2, 4, 8, 8]
    added = [random_jitter(2.0) for _ in range(100)]
    assert 0 <= min(added) < max(added) <= 1.0
