"""The machine: how many cores may be used, and memory that is given back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.engine.machine import available_cores


@pytest.mark.parametrize(
    ("content", "most"),
    [
        ("max 100000\n", None),
        ("100000 100000\n", 1),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("99900000 100000\n", None),
        ("", None),
        ("garbage", None),
    ],
)
def test_a_quota_file_bounds_the_cores(tmp_path: Path, content: str, most: int | None) -> None:
    """Whole cores of the quota, at least one, never more than this process may run on."""
    quota = tmp_path / "cpu.max"
    quota.write_text(content)
    ours = len(os.sched_getaffinity(0))
    assert available_cores(quota) == (ours if most is None else min(most, ours))


def test_no_quota_file_is_no_bound(tmp_path: Path) -> None:
    """Without control groups all cores of the process count."""
    assert available_cores(tmp_path / "absent") == len(os.sched_getaffinity(0))


RESIDENT = """
import torch
from service.engine.machine import give_back_free_memory, give_back_large_blocks

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024

give_back_large_blocks()
before = resident()
for _ in range(3):
    large = [torch.ones(1 << 20) for _ in range(40)]
    small = [torch.ones(8) for _ in range(40)]
    del large
    keeps = [torch.ones(1 << 18) for _ in range(4)]
print(resident() - before)
give_back_free_memory()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_what_was_freed_is_not_resident() -> None:
    """Of 160 MB that come and go thrice next to nothing stays, and giving back is no error."""
    ended = subprocess.run(
        [sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True
    )
    assert float(ended.stdout) < 16.0
