"""Folders that are whole or not there, even if the process is killed.

A folder is written under another name, `.new-…`, and renamed when it is complete and on the disk.
A folder to delete is first renamed to `.gone-…`. At its next start, the service removes what a
killed process left under these names.

Several processes may share a parent folder. Each holds a shared lock on `.lock` while it writes,
and leftovers are removed only under the exclusive one. The system releases the locks of a killed
process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from service.errors import StorageFull

NEW, GONE, LOCK = ".new-", ".gone-", ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OWNER_ONLY = 0o700
"""An adapter reveals what its context says, so only the service's user may read it."""
log = structlog.get_logger("deltaw")


@contextmanager
def storing() -> Iterator[None]:
    """Turn an error of the disk into `StorageFull`, and log it."""
    try:
        yield
    except OSError as error:
        log.warning("an adapter was not stored", reason=error.strerror)
        if error.errno in FULL:
            said = "The disk that holds the adapters is full. Delete adapters, or other files."
        else:
            said = f"The service cannot write to its folder of adapters ({error.strerror})."
        raise StorageFull(said) from error


def begin(parent: Path) -> tuple[Path, int]:
    """Make a folder to write to, and the parent if it is missing.

    Returns:
        The folder, and the file descriptor of the shared lock. `discard` removes the folder and
        releases the lock.
    """
    parent.mkdir(OWNER_ONLY, parents=True, exist_ok=True)
    lock = _lock(parent, fcntl.LOCK_SH)
    folder = parent / f"{NEW}{secrets.token_hex(8)}"
    try:
        folder.mkdir(OWNER_ONLY)
    except OSError:
        os.close(lock)
        raise
    return folder, lock


def write(file: Path, content: bytes) -> None:
    """Write a new file and wait until the disk has it."""
    with file.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def publish(folder: Path, target: Path) -> None:
    """Give a complete folder its name. If another folder has that name, it stays in place."""
    _sync(folder)
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    _sync(target.parent)


def discard(folder: Path, lock: int) -> None:
    """Remove a folder that was not published, and release its lock."""
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def unlist(folder: Path) -> None:
    """Rename a folder at once, so that it is gone for readers, then remove it.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    gone = folder.parent / f"{GONE}{secrets.token_hex(8)}"
    folder.rename(gone)
    _sync(folder.parent)
    shutil.rmtree(gone, ignore_errors=True)


def remove_leftovers(parent: Path) -> None:
    """Remove what killed processes left, unless another process is writing."""
    try:
        lock = _lock(parent, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # there is no such folder, it is in use, or it cannot be written
        return
    try:
        for path in parent.iterdir():
            if path.name.startswith((NEW, GONE)):
                shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)


def total_bytes(parent: Path) -> int:
    """Bytes of all files below a folder, including those of unfinished folders."""
    total = 0
    for folder, _, names in os.walk(parent):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def _lock(parent: Path, kind: int) -> int:
    lock = os.open(parent / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, kind)
    except OSError:
        os.close(lock)
        raise
    return lock


def _sync(folder: Path) -> None:
    """Wait until the disk has the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
