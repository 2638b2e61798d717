"""Requests under load: the queue is bounded, a disconnect frees a place, and answers repeat."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.api.conftest import Heard
from tests.api.test_bodies import PATHS
from tests.api.wire import metric, problem, until

LONG: dict[str, Any] = {
    "context": [1 + i % 200 for i in range(300)],
    "query": [1 + i % 150 for i in range(200)],
    "positions": "all",
    "precision": "float64",
}
"""An equivalence check that takes the slow server a second or more."""
SHORT: dict[str, Any] = {"context": [1, 2, 3], "query": [4], "layers": [0], "controls": False}
ASKED = "deltaw_input_tokens_count"
WAITING = "deltaw_queue_depth"
FORWARDS = "deltaw_forward_seconds_count"


def begun(heard: Heard, pool: ThreadPoolExecutor, body: dict[str, Any]) -> Future[httpx.Response]:
    """A request that the engine has accepted."""
    before = metric(heard.client, ASKED)
    made = pool.submit(heard.client.post, PATHS["checks"], json=body)
    until(lambda: metric(heard.client, ASKED) > before or None)
    return made


def running(heard: Heard, pool: ThreadPoolExecutor, body: dict[str, Any]) -> Future[httpx.Response]:
    """A request that the engine is computing."""
    made = begun(heard, pool, body)
    until(lambda: metric(heard.client, WAITING) == 0 or None)
    return made


def test_queue_full_returns_429_with_retry_after(slow: Heard) -> None:
    """When the queue is full the next request gets 429 with Retry-After at once, and the earlier
    ones are answered."""
    with ThreadPoolExecutor(2) as pool:
        first = running(slow, pool, LONG)
        second = begun(slow, pool, SHORT)
        until(lambda: metric(slow.client, WAITING) == 1 or None)
        refused = slow.client.post(PATHS["checks"], json=SHORT)
        assert not first.done()
        problem(refused, "queue_full", SHORT)
        assert first.result().status_code == 200
        assert second.result().status_code == 200
    assert slow.client.post(PATHS["checks"], json=SHORT).status_code == 200


def test_requests_without_a_forward_do_not_queue(slow: Heard) -> None:
    """Requests that need no forward pass are answered while another is computed."""
    with ThreadPoolExecutor(1) as pool:
        first = running(slow, pool, LONG)
        assert slow.client.post(PATHS["tokenize"], json={"prompts": ["a"]}).status_code == 200
        assert slow.client.get("/v1/model").status_code == 200
        assert slow.client.get("/readyz").status_code == 200
        assert not first.done()
        assert first.result().status_code == 200


def leave(heard: Heard, request_id: str, body: dict[str, Any]) -> None:
    """Send a request and close the connection once the engine has accepted it."""
    before = metric(heard.client, ASKED)
    parts = urlsplit(heard.served.url)
    content = json.dumps(body).encode()
    head = (
        f"POST {PATHS['checks']} HTTP/1.1\r\nHost: {parts.netloc}\r\nX-Request-ID: {request_id}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        connection.sendall(head.encode() + content)
        until(lambda: metric(heard.client, ASKED) > before or None)


@pytest.mark.slow
def test_disconnect_in_the_queue_frees_its_place(slow: Heard) -> None:
    """A client that disconnects in the queue is logged as 499, frees its place, and its work never
    starts."""
    before = metric(slow.client, FORWARDS)
    slow.client.post(PATHS["checks"], json=LONG)
    middle = metric(slow.client, FORWARDS)
    slow.client.post(PATHS["checks"], json=SHORT)
    needed = metric(slow.client, FORWARDS) - before
    with ThreadPoolExecutor(2) as pool:
        first = running(slow, pool, LONG)
        leave(slow, "left.waiting", LONG)
        assert slow.log.await_request("left.waiting")["status"] == 499
        assert not first.done()
        third = slow.client.post(PATHS["checks"], json=SHORT)
        assert third.status_code == 200, third.text
        assert first.result().status_code == 200
    assert metric(slow.client, FORWARDS) - middle == needed + (needed - (middle - before))


def test_disconnect_ends_the_work(slow: Heard) -> None:
    """A disconnect ends the work in progress, and the next request is answered."""
    leave(slow, "left.running", LONG)
    assert slow.log.await_request("left.running")["status"] == 499
    assert slow.client.post(PATHS["checks"], json=SHORT).status_code == 200


def test_disconnect_while_sending_is_logged_as_499(slow: Heard) -> None:
    """A disconnect while sending the body is logged as 499 without a traceback."""
    parts = urlsplit(slow.served.url)
    head = (
        f"POST {PATHS['checks']} HTTP/1.1\r\nHost: {parts.netloc}\r\nX-Request-ID: left.sending\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    )
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        connection.sendall(head.encode())
        time.sleep(0.1)
    assert slow.log.await_request("left.sending")["status"] == 499
    assert "Traceback" not in slow.log.text


def test_answers_repeat_bit_for_bit_without_batching(slow: Heard) -> None:
    """With `batching=false` and no prefix cache a request has the same bits each time, alone or
    beside others."""
    body = {
        "context": LONG["context"][:40],
        "query": [5, 6, 7],
        "positions": "all",
        "include": ["factors", "bias", "next_tokens"],
    }
    alone = slow.client.post(PATHS["updates"], json=body)
    assert alone.status_code == 200
    with ThreadPoolExecutor(2) as pool:
        other = running(slow, pool, LONG | {"query": [1, 2], "layers": [1]})
        again = slow.client.post(PATHS["updates"], json=body)
        assert other.result().status_code == 200
    assert again.content == alone.content
    assert slow.client.post(PATHS["updates"], json=body).content == alone.content
