"""The machine: how many processor cores this process may use, and the C library's allocator.

glibc keeps large freed blocks for the next ones, in one arena per thread, and soon holds several
times what is in use. Only glibc is configured; elsewhere the calls do nothing.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
LARGE = 1 << 20
"""Bytes. An allocation of at least this size is its own mapping, which ends when it is freed."""
M_MMAP_THRESHOLD = -3
"""Parameter of `mallopt`, from glibc's `malloc.h`. Setting it also stops it from growing."""


def available_cores(quota: Path = QUOTA) -> int:
    """Number of cores that this process may use: its affinity, limited by the container's quota.

    Args:
        quota: File in which control groups (version 2) give microseconds and their period.
    """
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    try:
        granted, period = quota.read_text().split()
        return max(1, min(cores, int(granted) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return cores


def give_back_large_blocks() -> None:
    """Return the memory of large tensors to the system as soon as they are freed."""
    _call("mallopt", M_MMAP_THRESHOLD, LARGE)


def give_back_free_memory() -> None:
    """Return all memory that is free now to the system."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*arguments)
