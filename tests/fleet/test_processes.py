"""The processes of a cluster are found and killed, even if their parent has ended."""

from __future__ import annotations

import os
import subprocess

from benchmarks.cluster.processes import holders, kill_holders

NAME = "DELTAW_TEST_MARK"
LEAVE = ["sh", "-c", "sleep 60 >&2 & echo $!"]
"""A shell that starts a process, prints its id and ends."""


def left(mark: str) -> int:
    """Start a process whose parent ends, and return its id."""
    said = subprocess.run(
        LEAVE, env={**os.environ, NAME: mark}, stdout=subprocess.PIPE, text=True, check=True
    )
    return int(said.stdout)


def test_processes_of_a_parent_that_ended_are_killed() -> None:
    """A process with the variable is killed. One with another value (the control) is not."""
    mark = str(os.getpid())
    ours, other = left(mark), left(f"{mark}0")
    try:
        assert holders(f"{NAME}={mark}") == [ours]
        kill_holders(f"{NAME}={mark}")
        assert holders(f"{NAME}={mark}") == []
        assert holders(f"{NAME}={mark}0") == [other]
    finally:
        kill_holders(f"{NAME}={mark}0")
