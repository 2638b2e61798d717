"""The C library's allocator, told to give memory back.

glibc keeps large freed blocks for the next ones, in an arena a thread, and soon holds several times
what is in use. Elsewhere nothing is told.
"""

from __future__ import annotations

import ctypes
import sys

LARGE = 1 << 20
"""Bytes from which a block is a mapping of its own, that ends when it is freed."""
M_MMAP_THRESHOLD = -3
"""Of `mallopt`, from glibc's `malloc.h`; setting it also stops it from growing."""


def give_back_large_blocks() -> None:
    """From now on, what large tensors took is the system's again as soon as they are freed."""
    _call("mallopt", M_MMAP_THRESHOLD, LARGE)


def give_back_free_memory() -> None:
    """Give back what is free by now."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*arguments)
