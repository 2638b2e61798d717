"""Failures of the service itself: loading, self-check, deadline, memory, and unexpected errors."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from schemas.common import UNSET
from tests.api.conftest import KEY, Heard, poison
from tests.api.test_bodies import PATHS
from tests.api.wire import CANARY, client_of, listening, log_of, metric, problem, until
from tests.checkpoints import save_tiny
from tests.hub import REPOSITORY, held, online
from tests.service_process import Served, served

BODY = {"context": "abc", "query": " cd"}


@pytest.mark.slow
def test_unready_service_returns_503_with_the_reason(tmp_path: Path) -> None:
    """While loading every answer is 503 `loading`; after a failed self-check it is 503
    `self_check_failed`, with a metric and a log line."""
    with torch.inference_mode(False):
        poison(folder := save_tiny(tmp_path / "nan"), slice(None))
    with (
        held(folder) as (url, release),
        served(
            ready=False, model=REPOSITORY, variables=online(url, tmp_path / "cache", 30)
        ) as running,
        client_of(running) as client,
    ):
        log = log_of(running)
        listening(running)
        for code in ("loading", "self_check_failed"):
            for path in ("/readyz", "/health", "/v1/model"):
                problem(client.get(path), code)
            for path in PATHS.values():
                body = {"prompts": ["a"]} if "activations" in path else BODY
                body = {"prompt": "a"} if "completions" in path else body
                problem(client.post(path, json=body), code)
            assert client.get("/livez").status_code == 200
            if code == "loading":
                assert metric(client, "deltaw_equivalence_failures_total") == 0
                release.set()
                until(lambda: client.get("/readyz").json()["code"] != "loading" or None)
        assert metric(client, "deltaw_equivalence_failures_total") == 1
        until(lambda: "The equivalence check at start ended with `fails`" in log.text or None)
        running.process.terminate()
        assert running.process.wait(10.0) == 0


@pytest.fixture(scope="module")
def hasty(tiny_folder: Path) -> Iterator[Heard]:
    """A server with a deadline of a microsecond."""
    with served(model=tiny_folder, deadline_seconds=1e-6) as running, client_of(running) as client:
        yield Heard(running, client, log_of(running))


@pytest.mark.parametrize("name", ["updates", "checks", "activations", "trajectories"])
def test_exceeded_deadline_returns_504(hasty: Heard, name: str) -> None:
    """A request that exceeds its deadline returns 504, and the next one is not affected."""
    body = {"prompts": [CANARY]} if name == "activations" else {"context": CANARY, "query": "b"}
    for _ in range(2):
        problem(hasty.client.post(PATHS[name], json=body), "deadline_exceeded", body)
    assert hasty.client.post(PATHS["tokenize"], json={"prompts": ["a"]}).status_code == 200


@contextmanager
def memory(running: Served, spare: int) -> Iterator[None]:
    """Limit the process to `spare` bytes more than it has, and lift the limit at the end."""
    pages = int(Path(f"/proc/{running.process.pid}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare
    before = resource.prlimit(running.process.pid, resource.RLIMIT_AS)
    resource.prlimit(running.process.pid, resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(running.process.pid, resource.RLIMIT_AS, before)


def test_lack_of_memory_fails_only_the_request(slow: Heard) -> None:
    """A lack of memory fails one request with 503 `out_of_memory`, not the process."""
    small = {"context": [1, 2, 3], "query": [4], "layers": [0]}
    assert slow.client.post(PATHS["updates"], json=small).status_code == 200
    prompts = [[1 + (i + 7 * j) % 200 for i in range(1000)] for j in range(15)]
    large = {
        "prompts": prompts,
        "positions": "all",
        "layers": [0],
        "hook_points": ["mlp_pre", "mlp_act"],
    }
    tensors = {"Accept": "application/vnd.safetensors"}
    # The answer has 123 MB, because the C library has reserved up to 64 MiB for each thread.
    with memory(slow.served, 16 << 20):
        refused = slow.client.post(PATHS["activations"], json=large, headers=tensors)
        problem(refused, "out_of_memory", large)
    assert slow.client.post(PATHS["updates"], json=small).status_code == 200


def test_no_thread_starts_while_requests_arrive(slow: Heard) -> None:
    """All threads exist from the start: the start of a thread waits forever if memory runs out."""
    body = {"prompts": [[1] * 1000] * 100}

    def threads() -> int:
        return len(list(Path(f"/proc/{slow.served.process.pid}/task").iterdir()))

    def send(_: int) -> str:
        answer = httpx.post(f"{slow.served.url}{PATHS['tokenize']}", json=body)
        return str(answer.json()["code"])

    before = threads()
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(send, range(32))) == {"too_many_items"}
    assert threads() == before


@pytest.fixture
def wordy_folder(tmp_path: Path) -> Path:
    """A checkpoint whose tokenizer knows four words and raises on any other."""
    with torch.inference_mode(False):
        save_tiny(tmp_path)
    file = tmp_path / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = {word: i for i, word in enumerate(["<|endoftext|>", "a", "b", "c"])}
    tokenizer["model"] = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    tokenizer["decoder"] = None
    file.write_text(json.dumps(tokenizer))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("log_format", ["console", "json"])
def test_unexpected_error_returns_a_generic_500(wordy_folder: Path, log_format: str) -> None:
    """An unexpected error returns a generic 500; the log has its id and traceback but no prompt,
    key or query string."""
    settings: dict[str, Any] = {"log_format": log_format, "api_keys": KEY}
    with (
        served(model=wordy_folder, **settings) as running,
        client_of(running, KEY) as client,
    ):
        log = log_of(running)
        sent = {"context": "a b", "query": f" c {CANARY}"}
        headers = {"X-Request-ID": "faulty"}
        said = problem(
            client.post(PATHS["updates"], json=sent, params={"q": CANARY}, headers=headers),
            "internal",
            sent,
        )
        assert said.request_id == "faulty"
        assert said.errors is UNSET
        assert "WordLevel" not in said.detail
        until(lambda: "Traceback" in log.text or None)
        assert "faulty" in log.text
        assert "WordLevel" in log.text
        assert CANARY not in log.text
        assert KEY not in log.text
        good = sent | {"query": " c"}
        assert client.post(PATHS["updates"], json=good).status_code == 200
