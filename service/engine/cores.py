"""How many processor cores are really ours."""

from __future__ import annotations

import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores(quota: Path = QUOTA) -> int:
    """Cores that this process may run on, less what a container's quota takes; at least one.

    Args:
        quota: The file in which control groups (version 2) give microseconds and their period.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = affinity or 1
    try:
        granted, period = quota.read_text().split()
        return max(1, min(cores, int(granted) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return cores
