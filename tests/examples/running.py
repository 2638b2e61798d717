"""Run an example as a reader would: as printed, in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.examples.found import ROOT, Example
from tests.service_process import free_port

SERVED_AT = "http://127.0.0.1:8000"
"""Address of the service in the documents."""
ANOTHER_PORT = "8001"
"""Port of a service that an example starts itself."""
SECONDS = 300.0
COMMAND = """#!/bin/sh
exec "{python}" -m service.cli "$@"
"""
"""A stand-in for the installed command `deltaw`."""
WARNINGS = "ignore::FutureWarning:transformers.modeling_utils"
"""PEFT 0.21 reads a property that transformers 5 deprecates."""


def printed(example: Example, url: str, folder: Path) -> list[str]:
    """Run an example and return its output lines; JSON is indented by two spaces.

    Args:
        example: The example to run.
        url: Address of the service; it replaces the one in the documents.
        folder: An empty folder to run the example in.

    Raises:
        AssertionError: The example wrote to stderr.
    """
    command = folder / ".bin" / "deltaw"
    command.parent.mkdir()
    command.write_text(COMMAND.format(python=sys.executable))
    command.chmod(0o755)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DELTAW_")},
        "PATH": f"{command.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONWARNINGS": WARNINGS,
        "COLUMNS": "100",
    }
    python = example.script.language == "python"
    script = example.script.text.replace(SERVED_AT, url).replace(ANOTHER_PORT, str(free_port()))
    ended = subprocess.run(
        [sys.executable, "-c", script] if python else ["bash", "-uo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert ended.stderr == "", f"{example.name}: {ended.stderr}"
    if example.shown.language == "json":
        return json.dumps(json.loads(ended.stdout), indent=2, ensure_ascii=False).splitlines()
    return ended.stdout.splitlines()
