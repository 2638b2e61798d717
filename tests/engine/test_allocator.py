"""The allocator: what large tensors took is given back."""

from __future__ import annotations

import subprocess
import sys

import pytest

RESIDENT = """
import torch
from service.engine.allocator import give_back_free_memory, give_back_large_blocks

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
