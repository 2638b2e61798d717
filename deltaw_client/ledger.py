"""The file of a sweep: a JSON line a pair, in order, that a later sweep goes on with.

Each line has the pair's index and a digest of the whole call. A line is written and flushed at
once. One that failed is asked again, and its new line is put at the end; the file is brought back
into order when the sweep ends, by a copy that takes its place. So a sweep that is killed loses at
most the line that it was writing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from deltaw_client.errors import OtherSweep


class Place(NamedTuple):
    """Where a pair's line is, and whether it holds an answer."""

    offset: int
    length: int
    answered: bool


class Ledger:
    """The file, open for more lines.

    Args:
        path: Of the file; made where there is none.
        digests: Of each pair's call.

    Raises:
        OtherSweep: A line is of another sweep.
    """

    def __init__(self, path: Path, digests: Sequence[str]) -> None:
        self._path = path
        self._places: dict[int, Place] = {}
        self._lines = 0
        self.written = 0
        self._file = path.open("a+b")
        try:
            self._scan(digests)
        except OtherSweep:
            self._file.close()
            raise

    def _scan(self, digests: Sequence[str]) -> None:
        """Note each line's place; cut off a last one that is not whole."""
        self._file.seek(0)
        offset = 0
        for text in self._file:
            if not text.endswith(b"\n"):
                self._file.truncate(offset)
                break
            self._lines += 1
            index, digest, answered = _identity(text)
            if not 0 <= index < len(digests) or digests[index] != digest:
                raise OtherSweep(
                    f"line {self._lines} of {self._path} belongs to another pair or to other "
                    "parameters: give another file"
                )
            self._places[index] = Place(offset, len(text), answered)
            offset += len(text)

    def is_answered(self, index: int) -> bool:
        """Whether a pair's answer is in the file."""
        return index in self._places and self._places[index].answered

    @property
    def answered(self) -> int:
        """How many pairs have an answer."""
        return sum(place.answered for place in self._places.values())

    @property
    def failed(self) -> int:
        """How many pairs have none but the reason why."""
        return len(self._places) - self.answered

    def write(self, index: int, text: bytes, answered: bool) -> None:
        """Put a pair's line into the file, its newline included."""
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(text)
        self._file.flush()
        self._lines += 1
        self.written += 1
        self._places[index] = Place(offset, len(text), answered)

    def close(self) -> None:
        """Bring the lines into order, one a pair, and close the file."""
        with self._file:
            places = [self._places[index] for index in sorted(self._places)]
            ordered = all(a.offset < b.offset for a, b in pairwise(places))
            if ordered and self._lines == len(places):
                return
            copy = self._path.with_name(f"{self._path.name}.ordered")
            with copy.open("wb") as file:
                for place in places:
                    self._file.seek(place.offset)
                    file.write(self._file.read(place.length))
                file.flush()
                os.fsync(file.fileno())
            copy.replace(self._path)


def _identity(text: bytes) -> tuple[int, Any, bool]:
    """A line's index and digest, and whether it holds an answer; index -1 is no line of a sweep."""
    try:
        line = json.loads(text)
        return int(line["index"]), line["digest"], "answer" in line
    except (ValueError, KeyError, TypeError):
        return -1, None, False
