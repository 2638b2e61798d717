"""The server drains before it stops, and prints one sentence if it cannot start."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from schemas.weight_updates import WeightUpdatesRequest
from service import server
from service.settings import Settings
from tests.api.wire import Log, client_of, listening, log_of, metric, problem, until
from tests.checkpoints import save_tiny
from tests.hub import REPOSITORY, held, online
from tests.service_process import Served, served

CHECKS = "/v1/equivalence-checks"
LONG = [1 + i % 200 for i in range(300)]
SHORT = {"context": [1, 2, 3], "query": [4], "layers": [0], "controls": False}


@pytest.fixture(scope="session")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 large enough for minutes of work."""
    with torch.inference_mode(False):
        return save_tiny(
            tmp_path_factory.mktemp("large"), n_layer=12, n_embd=256, n_head=4, n_positions=1024
        )


def work(queries: int) -> dict[str, Any]:
    """An equivalence check of the given number of query positions."""
    return {
        "context": LONG,
        "query": [1 + i % 150 for i in range(queries)],
        "positions": "all",
        "precision": "float64",
    }


@contextmanager
def working(folder: Path, queries: int, **settings: Any) -> Iterator[tuple[Served, Log, Any]]:
    """A server that is computing a request, its log, and the future answer."""
    with (
        served(model=folder, threads=1, batching="false", **settings) as running,
        ThreadPoolExecutor(1) as pool,
        client_of(running) as client,
    ):
        log = log_of(running)
        made = pool.submit(client.post, CHECKS, json=work(queries))
        with client_of(running) as other:
            until(lambda: metric(other, "deltaw_input_tokens_count") == 1 or None)
            until(lambda: metric(other, "deltaw_queue_depth") == 0 or None)
        try:
            yield running, log, made
        finally:
            running.process.kill()


@pytest.mark.slow
def test_sigterm_drains_before_the_process_ends(large_folder: Path) -> None:
    """After SIGTERM the request in progress is answered, new requests get 503 `draining`, and the
    process ends with 0."""
    with working(large_folder, 120) as (running, log, made), client_of(running) as client:
        assert client.get("/readyz").status_code == 200
        running.process.send_signal(signal.SIGTERM)
        until(lambda: client.get("/readyz").status_code == 503 or None)
        problem(client.get("/readyz"), "draining")
        problem(client.get("/health"), "draining")
        problem(client.post(CHECKS, json=SHORT), "draining", SHORT)
        problem(httpx.post(running.url + CHECKS, json=SHORT), "draining", SHORT)
        assert client.get("/livez").status_code == 200
        assert not made.done()
        answer = made.result()
        assert answer.status_code == 200
        assert answer.json()["holds"] is True
        assert running.process.wait(10.0) == 0
        assert "Traceback" not in log.end()


@pytest.mark.slow
def test_sigterm_answers_every_line_of_a_begun_request(tiny_folder: Path) -> None:
    """After SIGTERM all lines of a request that is being answered are answered, and the process
    ends with 0."""
    lines = b"".join(
        json.dumps(SHORT | {"context": [1, 2, 3 + i % 200]}).encode() + b"\n" for i in range(600)
    )
    headers = {"Content-Type": "application/x-ndjson"}
    with served(model=tiny_folder, row_budget=32) as running, client_of(running) as client:
        with client.stream("POST", CHECKS, content=lines, headers=headers) as answer:
            received = answer.iter_lines()
            found = [json.loads(next(received))]
            running.process.send_signal(signal.SIGTERM)
            found += map(json.loads, received)
        assert [line["index"] for line in found] == list(range(600))
        assert {line["status"] for line in found} == {200}
        assert running.process.wait(10.0) == 0


@pytest.mark.slow
def test_sigint_ends_an_idle_service_at_once(tiny_folder: Path) -> None:
    """Without work the service ends with 0 at once on SIGINT, even with a client connected."""
    with served(model=tiny_folder) as running, client_of(running) as client:
        log = log_of(running)
        assert client.get("/livez").status_code == 200
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(3.0) == 0
        assert "Traceback" not in log.end()


@pytest.mark.slow
def test_second_sigterm_ends_the_process_at_once(large_folder: Path) -> None:
    """A second SIGTERM ends the process at once, whatever it is computing."""
    with working(large_folder, 700) as (running, _, made), client_of(running) as client:
        running.process.send_signal(signal.SIGTERM)
        until(lambda: client.get("/readyz").status_code == 503 or None)
        assert not made.done()
        start = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(30.0)
        assert time.monotonic() - start < 10.0


@pytest.mark.slow
def test_drain_ends_after_drain_seconds(large_folder: Path) -> None:
    """Work that takes longer than `drain_seconds` is given up, and the process ends with 0."""
    with working(large_folder, 700, drain_seconds=1) as (running, _, made):
        assert not made.done()
        start = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60.0) == 0
        assert 1.0 <= time.monotonic() - start < 12.0
        assert made.exception() is not None or made.result().status_code != 200


@pytest.mark.slow
def test_sigterm_while_loading_ends_the_process(tmp_path: Path) -> None:
    """SIGTERM while the model loads ends the process with 0."""
    with torch.inference_mode(False):
        folder = save_tiny(tmp_path / "tiny")
    with (
        held(folder) as (url, _),
        served(
            ready=False,
            model=REPOSITORY,
            drain_seconds=1,
            variables=online(url, tmp_path / "cache", 30),
        ) as running,
    ):
        log_of(running)
        listening(running)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(5.0) == 0


FROZEN = """
import gc, os, signal, sys, threading, time
from service import server
from service.settings import Settings

def watch():
    while not gc.get_freeze_count():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=watch, daemon=True).start()
sys.exit(server.serve(Settings(model=sys.argv[1], port=0)))
"""


@pytest.mark.slow
def test_garbage_collection_skips_what_was_loaded_at_start(tiny_folder: Path) -> None:
    """Once the service is ready, garbage collection skips its libraries and model."""
    command = [sys.executable, "-c", FROZEN, str(tiny_folder)]
    assert subprocess.run(command, timeout=60.0, check=False).returncode == 0


def test_accepted_connections_have_tcp_nodelay() -> None:
    """Accepted connections have TCP_NODELAY set, so that no answer waits for an acknowledgement."""
    with server._listen(Settings(port=0)) as listener:
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


STUCK = """
import asyncio, sys, threading
from service import server
from service.engine import Plan
from service.settings import Settings

def never():
    threading.Event().wait()
    yield ()

def keep(state):
    while not state.engine.checked:
        threading.Event().wait(0.05)
    asyncio.run(state.engine.ask(Plan(never()), 600.0))

made = server.create_app
def create_app(settings):
    app = made(settings)
    threading.Thread(target=keep, args=[app.state.deltaw], daemon=True).start()
    return app

server.create_app = create_app
sys.exit(server.serve(Settings(model=sys.argv[1], port=0, threads=1, stuck_seconds=0.5)))
"""
"""A script that serves and then asks a question that never returns."""


@pytest.mark.slow
def test_stuck_computation_ends_the_process_with_1(tiny_folder: Path) -> None:
    """A process whose computation is stuck ends with 1, so that it is restarted, and its last line
    says why."""
    ended = subprocess.run(
        [sys.executable, "-c", STUCK, str(tiny_folder)],
        capture_output=True,
        text=True,
        timeout=60.0,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    assert "stuck for" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_stuck_computation_does_not_delay_a_drain(tiny_folder: Path) -> None:
    """On SIGTERM a process whose computation never returns ends with 0 after `drain_seconds`."""
    script = STUCK.replace("stuck_seconds=0.5", "stuck_seconds=600, drain_seconds=1")
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tiny_folder)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert any("self-check" in line for line in process.stderr)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30.0) == 0
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a `deltaw serve` that is expected to end by itself."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DELTAW_")}
    return subprocess.run(
        [sys.executable, "-m", "service.cli", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=60.0,
        check=False,
        env=clean,
    )


@pytest.mark.slow
def test_taken_port_is_named_in_one_sentence(tiny_folder: Path) -> None:
    """If the port is taken, the process names it in one sentence and does not end with 0."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        ended = start("--model", str(tiny_folder), "--port", port)
    assert ended.returncode not in (0, -signal.SIGTERM)
    assert port in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "deltaw serves" not in ended.stderr


@pytest.mark.parametrize(
    "model",
    ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("/no/such", "empty"))],
)
def test_missing_model_ends_the_process_with_one_sentence(model: str, tmp_path: Path) -> None:
    """If the model is not found, the process ends with one sentence that says what to set, and
    serves no other model."""
    named = str(tmp_path) if model == "empty" else model
    ended = start("--model", named, "--port", "0")
    assert ended.returncode not in (0, -signal.SIGTERM)
    sentences = [line for line in ended.stderr.splitlines() if line.startswith("deltaw: ")]
    assert len(sentences) == 1, ended.stderr
    assert named in sentences[0]
    assert "DELTAW_MODEL" in sentences[0]
    assert "bundled" in sentences[0]
    assert "Traceback" not in ended.stderr
    assert "deltaw serves" not in ended.stderr


@pytest.mark.slow
def test_greeting_names_model_and_self_check(tiny_folder: Path) -> None:
    """A ready service prints its model, the result of its self-check, and a curl command that can
    be pasted."""
    with served(model=tiny_folder) as running:
        log = log_of(running)
        command = until(lambda: re.search(r"^curl .*?\}'$", log.text, re.MULTILINE | re.DOTALL))
        assert f"deltaw serves {tiny_folder.name}: 3 layers" in log.text
        assert "self-check: holds; 3 layers" in log.text
        words = shlex.split(command.group())
        assert f"{running.url}/v1/weight-updates" in words
        WeightUpdatesRequest.model_validate_json(words[words.index("-d") + 1])
