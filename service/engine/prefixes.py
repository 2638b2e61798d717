"""The tree of rows: which rows runs share, and whose keys and values are kept.

Keys and values depend on the position and on all earlier rows, so a row is found by its whole path
of (id, position). A segment holds consecutive rows; other segments branch off at any of its rows,
so it is never split. A run is laid out once, as the segments that it passes through, in time
proportional to its segments.

Only trunks are kept: rows that other runs may begin with. While runs that
pass through a trunk wait, its keys and values stay and serve pack after pack. After that they are
cached, up to a budget in bytes; the least recently used segment is dropped first. Segments differ
in their number of layers, because a run that reads an early layer computes no later one. Keys are
kept after their norm and rotation. Patched runs share nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.readback import Condition, hold
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
        path: The parts that it passes through, in order; a patched run has one of its own.
        source: The path of the run that it follows, up to the followed row; empty if it follows
            none.
    """

    run: Run
    path: tuple[Part, ...]
    source: tuple[Part, ...] = ()

    @property
    def needed(self) -> list[tuple[Part, int]]:
        """Each part of both paths, and the number of its rows before the first that is read."""
        first = self.run.first_read
        follow = self.run.patch
        source = follow.source_row if isinstance(follow, Follow) else 0
        return [*_before(self.path, first), *_before(self.source, source)]


class Prefixes:
    """The tree.

    Args:
        budget: Maximum bytes of what is cached when no run waits for it; 0 caches nothing.
        dtype: The model's dtype. Rows in another dtype are not cached.
        least: Minimum rows of a segment that is cached.
    """

    def __init__(self, budget: int = 0, dtype: torch.dtype = torch.float32, least: int = 1) -> None:
        self.budget = budget
        self.dtype = dtype
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._least = least
        self._roots: dict[torch.dtype, dict[tuple[int, int], Segment]] = {}
        self._kept: OrderedDict[Segment, None] = OrderedDict()
        self._untested: list[tuple[Segment, Sequence[Condition]]] = []

    def place(self, runs: Sequence[Run]) -> list[Placed]:
        """Lay runs out. Each must be released once, computed or not."""
        placed: dict[int, Placed] = {}
        # The longest trunk comes first, so that shorter ones are parts of its segment.
        for i in sorted(range(len(runs)), key=lambda i: -_trunk(runs[i])):
            placed[i] = self._placed(runs[i])
            for segment, _ in (*placed[i].path, *placed[i].source):
                segment.waiting += 1
        self.hits += known_rows(placed.values())
        return [placed[i] for i in range(len(runs))]

    def release(self, placed: Iterable[Placed]) -> None:
        """Drop what no run waits for and what the budget has no room for."""
        for one in placed:
            for path in (one.path, one.source):
                for segment, _ in reversed(path):
                    segment.waiting -= 1
                    if segment in self._kept:
                        # A use marks ancestors after their descendants.
                        self._kept.move_to_end(segment)
                    unused = segment.layers is None or not self._caches(segment)
                    if segment.waiting == 0 and unused:
                        self._drop(segment)
        self._shrink()

    def keeps(self, segment: Segment, leaving: int) -> bool:
        """Whether keys and values of a segment are kept when `leaving` runs have been computed."""
        return segment.trunk and (segment.waiting > leaving or self._caches(segment))

    def keep(
        self, segment: Segment, layers: Tensor, known: int, conditions: Sequence[Condition] = ()
    ) -> None:
        """Keep the first `known` rows of a segment, under the conditions of their pack."""
        if segment.layers is not layers:
            self.bytes -= segment.size
            segment.layers = layers
            self.bytes += segment.size
        segment.known = known
        self._kept[segment] = None
        if conditions:
            self._untested.append((segment, conditions))

    def verify(self) -> None:
        """Drop what was kept by packs whose conditions do not hold. Call it before each pack.

        NaN in one row of a pack spreads to the keys and values of others, because 0 · NaN is NaN.
        """
        untested, self._untested = self._untested, []
        for segment, conditions in untested:
            if not hold(conditions):
                self._drop(segment)

    def clear(self) -> int:
        """Drop all that no run waits for; returns the number of bytes."""
        before = self.bytes
        for segment in [one for one in self._kept if not one.waiting]:
            self._drop(segment)
        return before - self.bytes

    def _caches(self, segment: Segment) -> bool:
        return (
            self.budget > 0
            and segment.trunk
            and segment.dtype == self.dtype
            and len(segment.rows) >= self._least
        )

    def _placed(self, run: Run) -> Placed:
        dtype = run.dtype or self.dtype
        if run.patch is None:
            return Placed(run, self._path(run.rows, run.trunk_rows, dtype))
        own = (Part(Segment(run.rows, None, 0, dtype), len(run.rows)),)
        if not isinstance(run.patch, Follow):
            return Placed(run, own)
        source, count = run.patch.source, run.patch.source_row + 1
        return Placed(
            run, own, self._path(source.rows[:count], min(source.trunk_rows, count), dtype)
        )

    def _path(self, rows: Index, trunk: int, dtype: torch.dtype) -> tuple[Part, ...]:
        path: list[Part] = []
        level = self._roots.setdefault(dtype, {})
        start, offset, parent = 0, 0, None
        while start < len(rows):
            key = offset, int(rows[start])
            segment = level.get(key)
            if segment is None:
                stop = trunk if start < trunk else len(rows)
                segment = level[key] = Segment(rows[start:stop], parent, offset, dtype)
            segment.trunk |= start < trunk
            offset = shared(segment.rows, rows[start:])
            path.append(Part(segment, offset))
            start += offset
            level, parent = segment.children, segment
        return tuple(path)

    def _drop(self, segment: Segment) -> None:
        """Drop a segment's keys and values, and remove what nothing needs any more."""
        self.bytes -= segment.size
        segment.layers, segment.known = None, 0
        self._kept.pop(segment, None)
        here: Segment | None = segment
        while here is not None and not (here.waiting or here.children or here.layers is not None):
            above = here.parent
            # A patched run's segment is in no level.
            level = self._roots.get(here.dtype, {}) if above is None else above.children
            if level.get(key := (here.offset, int(here.rows[0]))) is here:
                del level[key]
            here = above

    def _shrink(self) -> None:
        if self.bytes <= self.budget:
            return
        # Neither a segment that runs wait for nor one above the budget may evict cached ones.
        free = [one for one in self._kept if not one.waiting]
        beyond = sum(one.size for one in free) - self.budget
        for segment in sorted(free, key=lambda one: one.size <= self.budget):
            if beyond <= 0:
                break
            beyond -= segment.size
            self._drop(segment)


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


def _trunk(run: Run) -> int:
    if isinstance(run.patch, Follow):
        return min(run.patch.source.trunk_rows, run.patch.source_row + 1)
    return run.trunk_rows
