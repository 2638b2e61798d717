"""`make run` serves the chosen model, in an environment that is set up already."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.wire import until
from tests.examples.found import ROOT
from tests.examples.running import COMMAND
from tests.service_process import Served, await_ready, free_port

LATER = 2**33
"""A modification time later than that of any file of the project."""


@pytest.fixture
def environment_folder(tmp_path: Path) -> Path:
    """A folder that the Makefile treats as an environment already set up; it uses this Python."""
    binaries = tmp_path / "venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").symlink_to(sys.executable)
    (binaries / "deltaw").write_text(COMMAND.format(python=sys.executable))
    (binaries / "deltaw").chmod(0o755)
    for stamp in (".venv", ".server"):
        (binaries.parent / stamp).touch()
        os.utime(binaries.parent / stamp, (LATER, LATER))
    return binaries.parent


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["the default", "a folder"])
def test_make_run_serves(environment_folder: Path, tiny_folder: Path, chosen: str) -> None:
    """`make run` serves the bundled model, or the one of DELTAW_MODEL, until SIGTERM."""
    port = free_port()
    log = environment_folder / "log"
    settings = {} if chosen == "the default" else {"DELTAW_MODEL": str(tiny_folder)}
    with log.open("wb") as said:
        process = subprocess.Popen(
            ["make", "run", f"VENV={environment_folder}", f"ARGS=--port {port}"],
            cwd=ROOT,
            env={**os.environ, **settings},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        await_ready(Served(f"http://127.0.0.1:{port}", process, log))
        until(lambda: "deltaw serves" in log.read_text() or None)
        assert ("deltaw serves bundled" in log.read_text()) is (chosen == "the default")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)
