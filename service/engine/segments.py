"""Segments: consecutive rows of the tree, with their keys and values.

A segment holds consecutive rows; other segments branch off at any of its rows, so it is never
split. A run is laid out as the parts of segments that it passes through.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.run import Follow, Run

Index: TypeAlias = NDArray[np.int64]


@dataclass(eq=False)
class Segment:
    """Consecutive rows.

    Args:
        rows: Ids and positions, as `Run.rows`.
        parent: The segment before it; None for a root.
        offset: Number of the parent's rows before it.
        dtype: The dtype of its runs.
        trunk: Whether its keys and values are worth keeping.
        children: The segments that branch off, by their offset and first row.
        waiting: Number of runs that pass through it and are not computed yet.
        layers: Keys and values of all its rows, (layers, 2, heads, rows, d_head), in a storage of
            its own; None: none are kept.
        known: Number of its first rows whose keys and values are in `layers`.
        capacity: Number of rows for which a history's segment has room; None: it is no history's.
    """

    rows: Index
    parent: Segment | None
    offset: int
    dtype: torch.dtype
    trunk: bool = False
    children: dict[tuple[int, int], Segment] = field(default_factory=dict)
    waiting: int = 0
    layers: Tensor | None = None
    known: int = 0
    capacity: int | None = None

    @property
    def depth(self) -> int:
        """Number of layers whose keys and values are kept."""
        return 0 if self.layers is None else len(self.layers)

    @property
    def size(self) -> int:
        """Bytes of the kept keys and values."""
        return 0 if self.layers is None else self.layers.untyped_storage().nbytes()

    def known_to(self, depth: int, stop: int) -> int:
        """Number of its first `stop` rows that a run which reads layer `depth` need not compute."""
        return min(self.known, max(0, stop)) if self.depth > depth else 0


class Part(NamedTuple):
    """The first `stop` rows of a segment, on the path of a run."""

    segment: Segment
    stop: int


@dataclass(frozen=True, eq=False)
class Placed:
    """A run and its place in the tree.

    Args:
        run: The run.
        path: The parts that it passes through, in order; a run that shares no rows has one of its
            own.
        source: The path of the run that it follows, up to the followed row; empty if it follows
            none.
    """

    run: Run
    path: tuple[Part, ...]
    source: tuple[Part, ...] = ()

    @property
    def needed(self) -> list[tuple[Part, int]]:
        """Each part of both paths, and the number of its rows before the first that is read."""
        first, follow = self.run.first_read, self.run.patch
        if not isinstance(follow, Follow):
            return _before(self.path, first)
        first = min(first, follow.row)
        return [*_before(self.path, first), *_before(self.source, follow.source_row)]


@dataclass(eq=False)
class Growth:
    """The rows of a history.

    Args:
        path: The parts before the history, and its own segment.
        rows: The rows of its longest run.
        depth: The layer that its runs read.
    """

    path: tuple[Part, ...]
    rows: Index
    depth: int

    @classmethod
    def after(cls, before: tuple[Part, ...], run: Run, dtype: torch.dtype, depth: int) -> Growth:
        """A history that begins with a run, after the parts of the tree before it."""
        assert run.history is not None
        parent, offset = before[-1] if before else (None, 0)
        own = Segment(run.rows[run.history.begins :], parent, offset, dtype, trunk=True)
        own.capacity = run.history.capacity
        return cls((*before, Part(own, 0)), run.rows, depth)

    @property
    def own(self) -> Segment:
        """The segment of the history's own rows."""
        return self.path[-1].segment

    def continued(self, rows: Index, stop: int, dtype: torch.dtype, depth: int) -> tuple[Part, ...]:
        """The parts of the first `stop` rows of a run of this history.

        Raises:
            ValueError: The run has another dtype or depth, does not begin with the rows that are
                known, or differs from another run of this history that waits.
        """
        *before, (own, _) = self.path
        begins, same = len(self.rows) - len(own.rows), shared(self.rows, rows)
        if (own.dtype, self.depth) != (dtype, depth):
            raise ValueError("runs of one history have one dtype and read the same depth")
        # The history itself waits for its segment too.
        if same < begins + own.known or (same < len(self.rows) and own.waiting > 1):
            raise ValueError("a run of a history must begin with the rows of the run before it")
        if same < len(rows):
            self.rows, own.rows = rows, rows[begins:]
        return (*before, Part(own, stop - begins))


def shared(one: Index, other: Index) -> int:
    """Number of equal rows that both begin with."""
    count = min(len(one), len(other))
    differ = one[:count] != other[:count]
    first = int(differ.argmax()) if count else 0
    return first if count and differ[first] else count


def known_rows(placed: Iterable[Placed]) -> int:
    """Number of distinct rows that several runs need not compute."""
    longest: dict[Segment, int] = {}
    for one in placed:
        for part, before in one.needed:
            known = part.segment.known_to(one.run.depth, min(part.stop, before))
            longest[part.segment] = max(known, longest.get(part.segment, 0))
    return sum(longest.values())


def _before(path: Sequence[Part], first: int) -> list[tuple[Part, int]]:
    """Each part with the number of rows from its first one to the first row that is read."""
    parts, start = [], 0
    for part in path:
        parts.append((part, first - start))
        start += part.stop
    return parts
