"""Descendants of a process, including those whose parents have ended, and free ports."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
LOWEST_PORT, HIGHEST_PORT = 20_000, 32_000
"""Range of ports, below those that Linux uses for outgoing connections."""


def adopt_orphans() -> None:
    """Make this process, instead of process 1, the new parent of descendants whose parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(pid: int) -> list[int]:
    """Return the ids of all descendants of a process."""
    children = defaultdict[int, list[int]](list)
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it ended
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children[parent].append(int(folder.name))
    found, queue = list[int](), [pid]
    while queue:
        below = children[queue.pop()]
        found += below
        queue += below
    return found


def holders(variable: str) -> list[int]:
    """Return the ids of all processes that started with an environment variable (`NAME=value`)."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it ended, or is another user's
                if variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def kill_descendants(pid: int) -> None:
    """Kill all descendants of a process, including those that start in the meantime."""
    _kill(lambda: descendants(pid))


def kill_holders(variable: str) -> None:
    """Kill all processes that started with an environment variable, wherever their parents are."""
    _kill(lambda: holders(variable))


def _kill(find: Callable[[], list[int]]) -> None:
    while alive := [one for one in find() if not _is_zombie(one)]:
        for one in alive:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def free_ports(count: int) -> int:
    """Return the first of `count` consecutive ports on which no process listens.

    Raises:
        RuntimeError: There are no such ports.
    """
    first = LOWEST_PORT + os.getpid() * 97 % (HIGHEST_PORT - LOWEST_PORT)
    for base in [*range(first, HIGHEST_PORT - count, count), *range(LOWEST_PORT, first, count)]:
        with ExitStack() as stack, suppress(OSError):
            for port in range(base, base + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return int(base)
    raise RuntimeError(f"no {count} consecutive ports are free")
