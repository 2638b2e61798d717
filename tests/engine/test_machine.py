"""The number of usable cores, and memory that returns to the system."""

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
def test_cpu_quota_limits_the_cores(tmp_path: Path, content: str, most: int | None) -> None:
    """The cores are the quota's whole cores, at least 1 and at most the process's own."""
    quota = tmp_path / "cpu.max"
    quota.write_text(content)
    ours = len(os.sched_getaffinity(0))
    assert available_cores(quota) == (ours if most is None else min(most, ours))


def test_without_a_quota_file_all_cores_count(tmp_path: Path) -> None:
    """Without a quota file all cores of the process count."""
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


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
@pytest.mark.slow
def test_freed_memory_returns_to_the_system() -> None:
    """After 160 MB were allocated and freed three times, less than 16 MB stay resident."""
    ended = subprocess.run(
        [sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True
    )
    assert float(ended.stdout) < 16.0
