"""Faults at start, by real means: a signal, a damaged checkpoint, a hub that fails, no memory.

`engine/test_checkpoint_refusals.py` has the reasons for which a checkpoint is refused,
`engine/test_hub.py` the ways in which a download fails, and `test_server.py` a port that is taken.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from tests.api.wire import log_of
from tests.hub import COMMIT, REPOSITORY, Address, Cut, Failing, Hub, hub, nobody, online, silent
from tests.service_process import served

MiB = 1 << 20


def ended(
    *arguments: str,
    preexec: Callable[[], None] | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `deltaw` with these arguments until it ends by itself."""
    root = str(Path(__file__).parent.parent)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DELTAW_")}
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120.0,
        check=False,
        cwd=folder,
        env={**clean, "PYTHONPATH": root, **(environment or {})},
        preexec_fn=preexec,
    )


def one_sentence(process: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """The one sentence of a process that ended with this exit code and without a traceback."""
    assert process.returncode == code, process.stderr
    assert "Traceback" not in process.stderr
    (sentence,) = [line for line in process.stderr.splitlines() if line.startswith("deltaw: ")]
    return sentence


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0, 3.0])
def test_sigterm_at_start_ends_the_process(tiny_folder: Path, seconds: float) -> None:
    """SIGTERM at any moment of the start ends the process, soon and without a traceback."""
    with served(ready=False, model=tiny_folder) as running:
        time.sleep(seconds)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60.0) in (0, -signal.SIGTERM)
        assert "Traceback" not in log_of(running).end()


def truncated(folder: Path) -> None:
    """A weights file that is cut in its middle."""
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def endless_header(folder: Path) -> None:
    """A header that claims to be larger than any file."""
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{")


def unreadable(folder: Path) -> None:
    """A weights file that no user can open."""
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
def test_a_damaged_checkpoint_is_one_sentence(
    tiny_folder: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """A checkpoint that is damaged or cannot be read ends the process with one sentence that names
    it, and what to set instead."""
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_folder, folder)
    damage(folder)
    sentence = one_sentence(ended("serve", "--port", "0", "--model", str(folder)))
    assert "damaged" in sentence
    assert "DELTAW_MODEL" in sentence


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "address"),
    [
        (["serve", "--port", "0"], 1, silent),
        (["serve", "--port", "0"], 1, partial(hub, Cut)),
        (["check"], 3, nobody),
        (["check"], 3, partial(hub, Cut)),
        (["model"], 3, partial(hub, Failing)),
    ],
    ids=["serve-silent", "serve-cut", "check-nobody", "check-cut", "model-failing"],
)
def test_a_hub_that_fails_ends_the_command(
    arguments: list[str], code: int, address: Address, tiny_folder: Path, tmp_path: Path
) -> None:
    """One sentence says what to set instead; a check ends with 3, as 1 says that it does not hold.

    No other model is served.
    """
    with address(tiny_folder) as (url, _):
        process = ended(*arguments, "--model", REPOSITORY, environment=online(url, tmp_path))
    assert "DELTAW_MODEL" in one_sentence(process, code)
    assert "deltaw serves" not in process.stderr
    assert not process.stdout


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["check"], ["serve", "--port", "0"]])
def test_a_variable_that_a_library_cannot_read_ends_the_command_with_3(
    arguments: list[str], tmp_path: Path
) -> None:
    """An import that fails at an environment variable is one sentence. An exit code of 1 would say
    that a check does not hold."""
    process = ended(*arguments, environment={"HF_HUB_DOWNLOAD_TIMEOUT": "abc"})
    assert "cannot be imported" in one_sentence(process, 3)


@pytest.mark.slow
def test_a_hub_id_is_checked(tiny_folder: Path, tmp_path: Path) -> None:
    """From a hub that works the model is downloaded, and the check holds."""
    with hub(Hub, tiny_folder) as (url, _):
        process = ended("check", "--model", REPOSITORY, environment=online(url, tmp_path))
    assert process.returncode == 0, process.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value"),
    [("ALL_PROXY", "socks5://127.0.0.1:9"), ("HTTPS_PROXY", "http://127.0.0.1:port")],
)
def test_a_wrong_proxy_is_named(
    variable: str, value: str, tiny_folder: Path, tmp_path: Path
) -> None:
    """A command ends with 3 and names the variable; a folder needs no proxy."""
    environment = {variable: value}
    with hub(Hub, tiny_folder) as (url, _):
        process = ended(
            "model", "--model", REPOSITORY, environment=online(url, tmp_path) | environment
        )
    assert variable in one_sentence(process, code=3)
    assert ended("model", "--model", str(tiny_folder), environment=environment).returncode == 0


@pytest.mark.slow
def test_a_revision_beside_a_folder_is_no_answer(tiny_folder: Path, tmp_path: Path) -> None:
    """A pin that a folder of the same name hides ends a command with 3 and `serve` with 1."""
    shutil.copytree(tiny_folder, tmp_path / "gpt2")
    pin = {"DELTAW_REVISION": COMMIT, "DELTAW_PORT": "0"}
    for command, code in (("model", 3), ("serve", 1)):
        process = ended(command, "--model", "gpt2", folder=tmp_path, environment=pin)
        assert "unset DELTAW_REVISION" in one_sentence(process, code)


def sparse(folder: Path, tokens: int) -> None:
    """Give a checkpoint a token embedding of `tokens` rows of 32, as a hole in the file."""
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
def test_a_checkpoint_that_memory_cannot_hold_is_one_sentence(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """A checkpoint that does not fit into memory ends the process with one sentence."""
    folder = tmp_path / "large"
    shutil.copytree(tiny_folder, folder)
    sparse(folder, 64 * MiB)
    limit = 3000 * MiB

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    assert "large" in one_sentence(
        ended("serve", "--port", "0", "--model", str(folder), preexec=bounded)
    )
