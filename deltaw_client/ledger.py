"""The file of a sweep: one JSON line for each pair, in order, which a later sweep can resume.

Each line has the pair's index, a digest of the whole call, and the origin of its numbers: the model
and the versions that computed them. Each line is flushed when written, so a killed sweep loses at
most the line that it was writing. Answers arrive in any order, and the new line of a failed pair is
appended; when the sweep ends, an ordered copy replaces the file.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from deltaw_client.answers import LoadedModel
from deltaw_client.errors import OtherSweep
from deltaw_client.lines import Item, Line
from deltaw_client.sweep import Origin, Sweep, differences, digest, write_line


class Record(NamedTuple):
    """The place of a pair's line in the file, in bytes, and whether the line holds an answer."""

    offset: int
    length: int
    answered: bool


class Ledger:
    """The file, created if missing, and open for lines of the pairs with answers of this origin.

    Raises:
        OtherSweep: A line belongs to another sweep.
    """

    def __init__(self, path: Path, plan: Sequence[Item], origin: Origin) -> None:
        self._path, self._plan, self._origin = path, plan, origin
        self._digests = [digest(item) for item in plan]
        self._records: dict[int, Record] = {}
        self._lines = 0
        self._file = path.open("a+b")
        try:
            self._scan()
        except OtherSweep:
            self._file.close()
            raise
        self.kept = self._answered()
        """Number of answers that the file held."""
        answered = {index for index, record in self._records.items() if record.answered}
        self.waiting = [item for item in plan if item.index not in answered]
        """Pairs without an answer."""
        self.advance: Callable[[], None] = lambda: None
        """Called after each line."""

    def _scan(self) -> None:
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
            if not 0 <= index < len(self._digests) or self._digests[index] != digest:
                raise OtherSweep(
                    f"{where} belongs to another pair or to other parameters; choose another file"
                )
            if answered and (changed := differences(told, self._origin)):
                raise OtherSweep(f"{where} has another origin: {changed}; choose another file")
            self._records[index] = Record(offset, len(text), answered)
            offset += len(text)

    def _answered(self) -> int:
        return sum(record.answered for record in self._records.values())

    def take(self, line: Line) -> None:
        """Append a pair's line.

        Raises:
            OtherSweep: The service exchanged its model since the sweep began.
        """
        index = line.index
        text = write_line(self._plan[index], self._digests[index], self._origin, line)
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(text)
        self._file.flush()
        self._lines += 1
        self._records[index] = Record(offset, len(text), line.error is None)
        self.advance()

    def result(self) -> Sweep:
        """Return the sweep so far."""
        pairs, answered = len(self._digests), self._answered()
        return Sweep(self._path, pairs, answered, len(self._records) - answered, self.kept)

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


@contextmanager
def open_sweep(
    plan: Sequence[Item], loaded: LoadedModel, out: str | PathLike[str], progress: bool | None
) -> Iterator[Ledger]:
    """Open a sweep's file, and sort it at the end.

    Args:
        plan: The pairs, each at its index.
        loaded: The service's model; the answers of another one are not mixed with its own.
        out: Path of the file.
        progress: Whether to show a bar; None shows it on a terminal if rich is installed.

    Raises:
        OtherSweep: The file has other pairs, parameters, or another origin.
    """
    read = {"config": loaded.config_digest, "tokenizer": loaded.tokenizer_digest}
    origin = {**vars(loaded.model), **read, **vars(loaded.versions)}
    with (
        closing(Ledger(Path(out), plan, origin)) as ledger,
        _progress_bar(len(plan), ledger.kept, progress) as advance,
    ):
        ledger.advance = advance
        yield ledger


@contextmanager
def _progress_bar(total: int, done: int, shown: bool | None) -> Iterator[Callable[[], None]]:
    """Show a bar on standard error; yield a function to call for each finished item.

    Raises:
        ModuleNotFoundError: `shown` is True and rich is not installed (extra `progress`).
    """
    if shown is None:
        shown = sys.stderr.isatty() and find_spec("rich") is not None
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=total, completed=done)
        yield lambda: progress.advance(bar)


def _identity(text: bytes) -> tuple[int, Any, bool, Origin]:
    """Return a line's index, digest, whether it has an answer, and origin; index -1 if invalid."""
    try:
        line = json.loads(text)
        return int(line["index"]), line["digest"], "answer" in line, dict(line.get("origin", {}))
    except (ValueError, KeyError, TypeError):
        return -1, None, False, {}
