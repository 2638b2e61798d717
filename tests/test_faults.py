"""Faults of a running service, made by real means: SIGKILL, a full cache, a full or closed log.

`api/test_failures.py` has the failures of a single request, `test_bad_starts.py` those at the
start.
"""

from __future__ import annotations

import json
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
    """A request whose context differs for each number."""
    context = [1 + (number // 250**i + 7 * i) % 250 for i in range(tokens)]
    return {"context": context, "query": [1 + number % 250], "controls": False}


@pytest.mark.slow
def test_sigkill_under_load_ends_every_request(tiny_folder: Path) -> None:
    """At SIGKILL every request ends with a whole answer or a broken connection, and a new process
    serves on the same port."""
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
def test_sigkill_in_the_middle_of_lines_cuts_no_line(tiny_folder: Path) -> None:
    """At SIGKILL the client has whole lines, and then a broken connection instead of an end."""
    with served(model=tiny_folder, row_budget=64) as running, client_of(running) as client:
        content = b"".join(json.dumps(body(i)).encode() + b"\n" for i in range(2000))
        headers = {"Content-Type": "application/x-ndjson"}
        received = b""
        with (  # noqa: PT012
            pytest.raises(httpx.TransportError),
            client.stream("POST", CHECKS, content=content, headers=headers) as answer,
        ):
            for piece in answer.iter_bytes():
                received += piece
                if received.count(b"\n") > 20:
                    running.process.kill()
    whole = received.splitlines(keepends=True)
    assert 20 < len(whole) < 2000
    found = [json.loads(line) for line in whole if line.endswith(b"\n")]
    assert len(found) >= len(whole) - 1
    assert [line["index"] for line in found] == list(range(len(found)))
    assert all(line["body"]["holds"] for line in found)


@pytest.mark.slow
def test_too_small_prefix_cache_changes_no_answer(tiny_folder: Path) -> None:
    """With far too small a prefix cache answers agree with those of a service without one, and the
    cache stays within its budget."""
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
def test_full_disk_loses_only_log_lines(tiny_folder: Path, log_format: str) -> None:
    """On a full disk only log lines are lost: requests and problems are answered, and SIGTERM ends
    the process with 0."""
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
def test_closed_log_pipe_does_not_stop_the_service(tiny_folder: Path) -> None:
    """With a closed log pipe requests are answered, and SIGTERM ends the process with 0."""
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
