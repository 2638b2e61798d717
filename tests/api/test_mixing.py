"""Twenty concurrent clients: each gets its own answers, all of them, and probes stay fast."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from typing import Any

import httpx
import numpy as np

from tests.api.test_bodies import PATHS
from tests.api.wire import SAFETENSORS, array, restored, unpack
from tests.service_process import Served

THREADS = 20
ROUNDS = 4
CAPTURED = 5e-6
"""Relative agreement of a captured vector in float32 (theory.md 9)."""


def asked(thread: int) -> list[tuple[str, dict[str, Any], bool]]:
    """The requests of one client: resource, body, and whether it accepts safetensors."""
    ids = [1 + (7 * thread + 3 * i) % 250 for i in range(6 + thread % 5)]
    text = f"caller {thread} says the abc"
    return [
        ("updates", {"context": ids, "query": [2, 3 + thread], "include": ["bias"]}, False),
        ("activations", {"prompts": [text, ids], "layers": [thread % 3]}, thread % 2 == 0),
        ("tokenize", {"context": text, "query": f" cd{thread}"}, False),
        ("updates", {"context": text, "query": "the", "encoding": "base64"}, thread % 2 == 1),
        ("checks", {"context": ids, "query": f" q{thread}", "baseline": "anchored"}, False),
        ("checks", {"context": ids, "query": f" {thread}", "scope": "model"}, False),
    ]


def answer(client: httpx.Client, request: tuple[str, dict[str, Any], bool]) -> dict[str, Any]:
    """The answer to one request, as JSON."""
    resource, body, filed = request
    headers = {"Accept": SAFETENSORS} if filed else {}
    response = client.post(PATHS[resource], json=body, headers=headers)
    assert response.status_code == 200, response.text[:500]
    said: dict[str, Any] = response.json() if not filed else restored(*unpack(response.content))
    return said


def close(found: float, expected: float, slack: float) -> None:
    """Assert that a number agrees with the same number of another pack."""
    assert abs(found - expected) <= slack * abs(expected), (found, expected, slack)


def near(found: Any, expected: Any, slack: float) -> None:
    """Assert that a tensor agrees with the same tensor of another pack."""
    other = array(expected).astype(np.float64)
    error = np.linalg.norm(array(found) - other)
    assert error <= slack * np.linalg.norm(other), (error, slack)


def cancellation(norms: dict[str, float]) -> float:
    """The factor by which a difference magnifies rounding (theory.md 9)."""
    return (norms["norm_with_context"] + norms["norm_baseline"]) / norms["norm_difference"]


def agree(resource: str, found: dict[str, Any], alone: dict[str, Any]) -> None:
    """Assert that an answer agrees with the answer to the same request sent alone."""
    assert found.keys() == alone.keys()
    if resource == "tokenize":
        assert found == alone
    if resource == "activations":
        for prompt, other in zip(found["prompts"], alone["prompts"], strict=True):
            assert prompt["tokens"] == other["tokens"]
            for read, same in zip(prompt["activations"], other["activations"], strict=True):
                assert (read["layer"], read["positions"]) == (same["layer"], same["positions"])
                near(read["values"], same["values"], CAPTURED)
        return
    if resource == "updates":
        assert found["tokens"] == alone["tokens"]
        for update, other in zip(found["updates"], alone["updates"], strict=True):
            slack = CAPTURED * cancellation(other["mlp_in"])
            close(update["norm"], other["norm"], slack)
            for name in ("norm_with_context", "norm_baseline"):
                close(update["mlp_in"][name], other["mlp_in"][name], CAPTURED)
            if "bias" in other:
                shift = CAPTURED * cancellation(other["resid_mid"])
                near(update["bias"]["values"], other["bias"]["values"], shift)
            else:
                for weight, same in zip(update["weights"], other["weights"], strict=True):
                    near(weight["output"], same["output"], slack)
                near(update["input"], other["input"], 2 * CAPTURED)
    if resource == "checks":
        assert found["tokens"] == alone["tokens"]
        assert found["holds"] == alone["holds"] is True
        for check, other in zip(found["checks"], alone["checks"], strict=True):
            close(check["magnitude"], other["magnitude"], CAPTURED)
            assert check["relative_error"] <= check["tolerance"]
            assert check["controls"].keys() == other["controls"].keys()


def test_concurrent_clients_get_their_own_answers(
    tiny_service: Served, tiny_client: httpx.Client
) -> None:
    """Each of twenty clients gets its own answers, while 99 % of `/livez` take less than a
    second."""
    alone = [[answer(tiny_client, request) for request in asked(i)] for i in range(THREADS)]
    start = threading.Barrier(THREADS + 1)
    done = threading.Event()

    def call(thread: int) -> list[tuple[int, dict[str, Any]]]:
        requests = asked(thread)
        turns = islice(cycle(range(len(requests))), thread % 6, thread % 6 + ROUNDS)
        with httpx.Client(base_url=tiny_service.url, timeout=60.0) as client:
            start.wait()
            return [(i, answer(client, requests[i])) for i in turns]

    def probe() -> list[float]:
        seconds = []
        with httpx.Client(base_url=tiny_service.url, timeout=60.0) as client:
            start.wait()
            while not done.is_set():
                before = time.perf_counter()
                assert client.get("/livez").status_code == 200
                seconds.append(time.perf_counter() - before)
                time.sleep(0.01)
        return seconds

    with ThreadPoolExecutor(THREADS + 1) as pool:
        probing = pool.submit(probe)
        try:
            calls = [pool.submit(call, thread) for thread in range(THREADS)]
            answers = [made.result() for made in calls]
        finally:
            done.set()
        seconds = sorted(probing.result())
    assert sum(map(len, answers)) == THREADS * ROUNDS
    for thread, got in enumerate(answers):
        for i, found in got:
            agree(asked(thread)[i][0], found, alone[thread][i])
    assert seconds[int(0.99 * (len(seconds) - 1))] < 1.0, seconds[-3:]
