"""Faults while it serves, by real means: killed, without room for its cache or its log.

What fails in a single request is in `api/test_failures.py`, what fails at the start in
`test_bad_starts.py`.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.wire import client_of, metric, until
from tests.service_process import Served, free_port, served

CHECKS = "/v1/equivalence-checks"
UPDATES = "/v1/weight-updates"
CLIENTS = 8


def body(number: int, tokens: int = 40) -> dict[str, Any]:
    """A question whose context is another one for each number."""
    context = [1 + (number // 250**i + 7 * i) % 250 for i in range(tokens)]
    return {"context": context, "query": [1 + number % 250], "controls": False}


@pytest.mark.slow
def test_killed_under_load(tiny_folder: Path) -> None:
    """SIGKILL under load: every request ends at once, with a whole answer or a broken connection;
    the next process takes the port over and serves."""
    port, outcomes = free_port(), Counter[str]()

    def ask(running: Served, client: int) -> None:
        with client_of(running) as connection:
            for i in range(10_000):
                try:
                    answer = connection.post(CHECKS, json=body(client + CLIENTS * i))
                except httpx.TransportError:
                    outcomes["broken"] += 1
                    return
                assert answer.json()["holds"] is True
                outcomes["answered"] += 1

    with served(model=tiny_folder, port=port) as running, ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(ask, running, client) for client in range(CLIENTS)]
        until(lambda: outcomes["answered"] >= 5 * CLIENTS or None, 60.0)
        running.process.kill()
        for each in asking:
            each.result(60.0)
    assert outcomes["broken"] == CLIENTS
    with served(model=tiny_folder, port=port) as running, client_of(running) as client:
        assert client.post(CHECKS, json=body(0)).json()["holds"] is True


@pytest.mark.slow
def test_prefixes_under_pressure(tiny_folder: Path) -> None:
    """Where known contexts do not fit, by far, answers are those of a service that keeps none, and
    what is kept stays within its budget."""
    budget = 100_000
    contexts = [body(i, tokens=17 + 16 * (i % 3)) for i in range(12)]
    asked = [{**contexts[i // 8], "query": [1 + i % 250]} for i in range(8 * len(contexts))]
    with (
        served(model=tiny_folder, prefix_cache_bytes=budget) as kept,
        served(model=tiny_folder, prefix_cache_bytes=0) as plain,
        ThreadPoolExecutor(CLIENTS) as pool,
        client_of(kept) as one,
        client_of(plain) as other,
    ):
        answers, expected = (
            list(pool.map(lambda sent, client=client: client.post(CHECKS, json=sent).json(), asked))
            for client in (one, other)
        )
        assert 0 < metric(one, "deltaw_prefix_cache_bytes") <= budget
        assert metric(one, "deltaw_prefix_cache_hits") > 0
        assert metric(other, "deltaw_prefix_cache_bytes") == 0
    for answer, wanted in zip(answers, expected, strict=True):
        assert answer["holds"] is wanted["holds"] is True
        for check, same in zip(answer["checks"], wanted["checks"], strict=True):
            assert check["magnitude"] == pytest.approx(same["magnitude"], rel=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_room_for_the_log(tiny_folder: Path, log_format: str) -> None:
    """On a full disk lines of the log are lost, and nothing else: requests are answered, problems
    too, and SIGTERM ends the process with 0."""
    with (
        Path("/dev/full").open("wb") as full,
        served(model=tiny_folder, prints_to=full, log_format=log_format) as running,
        client_of(running) as client,
    ):
        for i in range(20):
            assert client.post(CHECKS, json=body(i)).json()["holds"] is True
            assert client.post(CHECKS, json={}).status_code == 422
        running.process.terminate()
        assert running.process.wait(60.0) == 0


@pytest.mark.slow
def test_nobody_reads_the_log(tiny_folder: Path) -> None:
    """Where the reader of the log has gone, requests are answered, and SIGTERM ends with 0."""
    reader, writer = os.pipe()
    with (
        os.fdopen(writer, "wb") as pipe,
        served(model=tiny_folder, prints_to=pipe) as running,
        client_of(running) as client,
    ):
        os.close(reader)
        for i in range(20):
            assert client.post(UPDATES, json={"context": [1, 2, i], "query": [4]}).is_success
        running.process.terminate()
        assert running.process.wait(60.0) == 0
