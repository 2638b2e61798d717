"""The documents are true: each of their examples is run as printed, and prints what is shown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.service_process import Served
from tests.test_readme import ROOT, SERVED_AT, Fence, assert_shown

DOCUMENTS = ("client",)
COMMAND = """#!/bin/sh
exec "{python}" -m service.cli "$@"
"""
"""`deltaw`, as it is where the project is installed."""


def examples() -> list[object]:
    """Each script with the block behind it, under the name of its document and its number."""
    found: list[object] = []
    for name in DOCUMENTS:
        text = (ROOT / "docs" / f"{name}.md").read_text()
        fences = [Fence(*pair) for pair in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)]
        for fence, shown in pairwise([*fences, Fence("", "")]):
            if fence.language in ("python", "sh"):
                case = pytest.param(fence, shown.text, id=f"{name}-{len(found)}")
                found.append(case)
                assert shown.language == "text", f"{name}: nothing is shown behind {fence.text}"
    return found


@pytest.mark.parametrize(("script", "shown"), examples())
def test_example(bundled_service: Served, tmp_path: Path, script: Fence, shown: str) -> None:
    """An example, run by Python or by a shell in an empty folder, prints what is shown."""
    command = tmp_path / "bin" / "deltaw"
    command.parent.mkdir()
    command.write_text(COMMAND.format(python=sys.executable))
    command.chmod(0o755)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DELTAW_")},
        "PATH": f"{command.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "100",
    }
    runner = [sys.executable, "-c"] if script.language == "python" else ["bash", "-uc"]
    ended = subprocess.run(
        [*runner, script.text.replace(SERVED_AT, bundled_service.url)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.stderr == ""
    assert_shown(shown, [line.strip() for line in ended.stdout.splitlines()])
