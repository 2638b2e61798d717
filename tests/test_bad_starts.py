"""Faults while it starts, by real means: stopped, a damaged checkpoint, no hub, no memory.

What a checkpoint may be refused for is in `engine/test_checkpoint.py`, a port that is taken in
`test_server.py`.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.api.wire import log_of
from tests.service_process import free_port, served

MiB = 1 << 20


def ended(
    *arguments: str, preexec: Callable[[], None] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`deltaw serve` that is expected to end by itself."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DELTAW_")}
    return subprocess.run(
        [sys.executable, "-m", "service.cli", "serve", "--port", "0", *arguments],
        capture_output=True,
        text=True,
        timeout=120.0,
        check=False,
        env=clean | environment,
        preexec_fn=preexec,
    )


def one_sentence(process: subprocess.CompletedProcess[str]) -> str:
    """The sentence that it ended with, where it ended with 1 and said nothing else of its own."""
    assert process.returncode == 1, process.stderr
    assert "Traceback" not in process.stderr
    (sentence,) = [line for line in process.stderr.splitlines() if line.startswith("deltaw: ")]
    return sentence


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0, 3.0])
def test_stopped_while_it_starts(tiny_folder: Path, seconds: float) -> None:
    """SIGTERM at any moment of the start ends the process, soon and without a traceback."""
    with served(ready=False, model=tiny_folder) as running:
        time.sleep(seconds)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60.0) in (0, -signal.SIGTERM)
        assert "Traceback" not in log_of(running).end()


def truncated(folder: Path) -> None:
    """A copy that was broken off."""
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def endless_header(folder: Path) -> None:
    """A header that claims to be larger than any file."""
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{")


def unreadable(folder: Path) -> None:
    """A weights file that cannot be opened, by whomever."""
    file = folder / "model.safetensors"
    file.unlink()
    file.symlink_to(file)


def a_folder_instead(folder: Path) -> None:
    """A folder where the weights file should be."""
    file = folder / "model.safetensors"
    file.unlink()
    file.mkdir()


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncated, endless_header, unreadable, a_folder_instead])
def test_damaged_checkpoint(
    tiny_folder: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """A checkpoint that is damaged or cannot be read ends the process with one sentence that names
    it, and what to set instead."""
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_folder, folder)
    damage(folder)
    sentence = one_sentence(ended("--model", str(folder)))
    assert "damaged" in sentence
    assert "DELTAW_MODEL" in sentence


class Hub(BaseHTTPRequestHandler):
    """A hub that answers everything wrong."""

    status, said = 200, b"<html>maintenance</html>"

    def do_GET(self) -> None:
        """Answer with what it says."""
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.said)))
        self.end_headers()
        self.wfile.write(self.said)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Failing(Hub):
    """A hub that fails."""

    status, said = 500, b"{}"


@contextmanager
def nobody() -> Iterator[str]:
    """An address at which nobody listens."""
    yield f"http://127.0.0.1:{free_port()}"


@contextmanager
def silent() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def hub(handler: type[Hub]) -> Iterator[str]:
    """A hub that answers so."""
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "instead"),
    [
        (nobody, "DELTAW_MODEL"),
        (silent, "DELTAW_MODEL"),
        (lambda: hub(Failing), "DELTAW_MODEL"),
        (lambda: hub(Hub), ""),
    ],
    ids=["nobody", "silent", "failing", "nonsense"],
)
def test_hub_is_away(where: Callable[[], Any], instead: str, tmp_path: Path) -> None:
    """A hub that cannot be reached, is silent, fails or talks nonsense ends the process with one
    sentence, which says what to set instead unless it was nonsense; no other model is served."""
    with where() as url:
        process = ended(
            "--model",
            "gpt2",
            HF_ENDPOINT=url,
            HF_HOME=str(tmp_path),
            HF_HUB_OFFLINE="0",
            HF_HUB_ETAG_TIMEOUT="1",
            HF_HUB_DOWNLOAD_TIMEOUT="1",
        )
    sentence = one_sentence(process)
    assert instead in sentence
    assert "deltaw serves" not in process.stderr


def sparse(folder: Path, tokens: int) -> None:
    """Give a checkpoint a token embedding of so many rows of 32, as a hole that takes no disk."""
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": tokens}))
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    end = len(content) - 8 - length
    header["transformer.wte.weight"] |= {
        "shape": [tokens, 32],
        "data_offsets": [end, end + tokens * 32 * 4],
    }
    packed = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(packed)) + packed + content[8 + length :])
        stream.truncate(8 + len(packed) + end + tokens * 32 * 4)


@pytest.mark.slow
def test_too_large_for_memory(tiny_folder: Path, tmp_path: Path) -> None:
    """A checkpoint that does not fit into memory ends the process with one sentence."""
    folder = tmp_path / "large"
    shutil.copytree(tiny_folder, folder)
    sparse(folder, 64 * MiB)
    limit = 3000 * MiB

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    assert "large" in one_sentence(ended("--model", str(folder), preexec=bounded))
