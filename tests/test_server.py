"""The server: it drains before it stops, and ends with a sentence where it cannot begin."""

from __future__ import annotations

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
from tests.service_process import Served, served

CHECKS = "/v1/equivalence-checks"
LONG = [1 + i % 200 for i in range(300)]
SHORT = {"context": [1, 2, 3], "query": [4], "layers": [0], "controls": False}


@pytest.fixture(scope="session")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 that can be asked for minutes of work."""
    with torch.inference_mode(False):
        return save_tiny(
            tmp_path_factory.mktemp("large"), n_layer=12, n_embd=256, n_head=4, n_positions=1024
        )


def work(queries: int) -> dict[str, Any]:
    """A check of so many query positions."""
    return {
        "context": LONG,
        "query": [1 + i % 150 for i in range(queries)],
        "positions": "all",
        "precision": "float64",
    }


@contextmanager
def working(folder: Path, queries: int, **settings: Any) -> Iterator[tuple[Served, Log, Any]]:
    """A server, its log, and the answer to come of a request that it is computing."""
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


def test_drain(large_folder: Path) -> None:
    """At SIGTERM work in progress is answered; new work is refused, also on a connection that is
    kept open; the process lives until then, is not ready, and ends with 0."""
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


def test_idle_stop(tiny_folder: Path) -> None:
    """Without work SIGINT and SIGTERM end the service at once, with 0, whoever is connected."""
    with served(model=tiny_folder) as running, client_of(running) as client:
        log = log_of(running)
        assert client.get("/livez").status_code == 200
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(3.0) == 0
        assert "Traceback" not in log.end()


@pytest.mark.slow
def test_second_signal(large_folder: Path) -> None:
    """A second SIGTERM ends the process at once, whatever it is doing."""
    with working(large_folder, 700) as (running, _, made), client_of(running) as client:
        running.process.send_signal(signal.SIGTERM)
        until(lambda: client.get("/readyz").status_code == 503 or None)
        assert not made.done()
        start = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(30.0)
        assert time.monotonic() - start < 10.0


@pytest.mark.slow
def test_drain_has_an_end(large_folder: Path) -> None:
    """Work that takes longer than `drain_seconds` does not keep the process; it ends with 0."""
    with working(large_folder, 700, drain_seconds=1) as (running, _, made):
        assert not made.done()
        start = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60.0) == 0
        assert 1.0 <= time.monotonic() - start < 12.0
        assert made.exception() is not None or made.result().status_code != 200


@pytest.mark.slow
def test_stop_while_loading(tmp_path: Path) -> None:
    """SIGTERM while the model is being loaded ends the process too."""
    with torch.inference_mode(False):
        save_tiny(tmp_path)
    os.mkfifo(tmp_path / "zz.safetensors")
    with served(ready=False, model=tmp_path, drain_seconds=1) as running:
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
def test_what_the_start_has_made_is_no_garbage(tiny_folder: Path) -> None:
    """Once it is ready, garbage collection passes over libraries and model."""
    command = [sys.executable, "-c", FROZEN, str(tiny_folder)]
    assert subprocess.run(command, timeout=60.0, check=False).returncode == 0


def test_answers_are_sent_at_once() -> None:
    """No connection waits for a receipt before it sends the rest, whatever the event loop is."""
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
"""A service whose computation never returns from a question."""


def test_a_stuck_computation_ends_the_process(tiny_folder: Path) -> None:
    """The process of a computation that gives no sign of life ends with 1, so that it is started
    again, and its last line says why."""
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
def test_a_stuck_computation_does_not_keep_a_drain(tiny_folder: Path) -> None:
    """A process that is told to stop ends with 0 though its computation never returns."""
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
    """`deltaw serve` that is expected to end by itself."""
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
def test_port_taken(tiny_folder: Path) -> None:
    """Where another listens on the port the process says so in a sentence and does not end with
    0."""
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
def test_model_not_found(model: str, tmp_path: Path) -> None:
    """A model that cannot be had ends the process with a sentence that says what to set instead;
    no other model is ever served."""
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


def test_greeting(tiny_folder: Path) -> None:
    """A ready service says what it serves and whether it holds, with a curl that can be pasted."""
    with served(model=tiny_folder) as running:
        log = log_of(running)
        command = until(lambda: re.search(r"^curl .*?\}'$", log.text, re.MULTILINE | re.DOTALL))
        assert f"deltaw serves {tiny_folder.name}: 3 layers" in log.text
        assert "self-check: holds; 3 layers" in log.text
        words = shlex.split(command.group())
        assert f"{running.url}/v1/weight-updates" in words
        WeightUpdatesRequest.model_validate_json(words[words.index("-d") + 1])
