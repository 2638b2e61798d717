"""The file of a sweep: one JSON line for each pair, in order, which a later sweep can resume.

Each line has the pair's index, a digest of the whole call, and the origin of its numbers: the model
and the versions that computed them. Each line is flushed when written, so a killed sweep loses at
most the line that it was writing. A failed pair is asked again and its new line appended; when the
sweep ends, an ordered copy replaces the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from deltaw_client.errors import OtherSweep

Origin = Mapping[str, Any]
"""The fields of the model and of the versions, which decide a sweep's numbers besides the call."""


class Record(NamedTuple):
    """The place of a pair's line in the file, in bytes, and whether the line holds an answer."""

    offset: int
    length: int
    answered: bool


class Ledger:
    """The file, open for more lines.

    Args:
        path: Path of the file; created if missing.
        digests: Digest of each pair's call.
        origin: Origin of the answers to come.

    Raises:
        OtherSweep: A line belongs to another sweep.
    """

    def __init__(self, path: Path, digests: Sequence[str], origin: Origin) -> None:
        self._path = path
        self._records: dict[int, Record] = {}
        self._lines = 0
        self.written = 0
        self._file = path.open("a+b")
        try:
            self._scan(digests, origin)
        except OtherSweep:
            self._file.close()
            raise

    def _scan(self, digests: Sequence[str], origin: Origin) -> None:
        """Record each line's place; cut off an incomplete last line."""
        self._file.seek(0)
        offset = 0
        for text in self._file:
            if not text.endswith(b"\n"):
                self._file.truncate(offset)
                break
            self._lines += 1
            index, digest, answered, told = _identity(text)
            where = f"line {self._lines} of {self._path}"
            if not 0 <= index < len(digests) or digests[index] != digest:
                raise OtherSweep(
                    f"{where} belongs to another pair or to other parameters; choose another file"
                )
            if answered and (changed := differences(told, origin)):
                raise OtherSweep(f"{where} has another origin: {changed}; choose another file")
            self._records[index] = Record(offset, len(text), answered)
            offset += len(text)

    def is_answered(self, index: int) -> bool:
        """Whether the file holds a pair's answer."""
        return index in self._records and self._records[index].answered

    @property
    def answered(self) -> int:
        """Number of pairs with an answer."""
        return sum(record.answered for record in self._records.values())

    @property
    def failed(self) -> int:
        """Number of pairs with an error instead of an answer."""
        return len(self._records) - self.answered

    def write(self, index: int, text: bytes, answered: bool) -> None:
        """Append a pair's line, which includes its newline."""
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(text)
        self._file.flush()
        self._lines += 1
        self.written += 1
        self._records[index] = Record(offset, len(text), answered)

    def close(self) -> None:
        """Sort the lines, keep one for each pair, and close the file."""
        with self._file:
            records = [self._records[index] for index in sorted(self._records)]
            ordered = all(a.offset < b.offset for a, b in pairwise(records))
            if ordered and self._lines == len(records):
                return
            copy = self._path.with_name(f"{self._path.name}.ordered")
            with copy.open("wb") as file:
                for record in records:
                    self._file.seek(record.offset)
                    file.write(self._file.read(record.length))
                file.flush()
                os.fsync(file.fileno())
            copy.replace(self._path)


def differences(told: Origin, origin: Origin) -> str:
    """Name each field of two origins that differs; empty if none does."""
    return ", ".join(
        f"{name} {told.get(name, 'unknown')} (the service: {now})"
        for name, now in origin.items()
        if told.get(name, "unknown") != now
    )


def _identity(text: bytes) -> tuple[int, Any, bool, Origin]:
    """Return a line's index, digest, whether it has an answer, and origin; index -1 if invalid."""
    try:
        line = json.loads(text)
        return int(line["index"]), line["digest"], "answer" in line, dict(line.get("origin", {}))
    except (ValueError, KeyError, TypeError):
        return -1, None, False, {}
