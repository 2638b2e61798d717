"""How many cores are ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.engine.cores import available_cores


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
