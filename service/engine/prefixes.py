"""The tree of rows: which rows runs share, and whose keys and values are kept.

Keys and values depend on the position and on all earlier rows, so a row is found by its whole path
of (id, position). A run is laid out once, as the segments that it passes through, in time
proportional to its segments.

Only trunks are kept: rows that other runs may begin with. While runs that
pass through a trunk wait, its keys and values stay and serve pack after pack. After that they are
cached, up to a budget in bytes; the least recently used segment is dropped first. Segments differ
in their number of layers, because a run that reads an early layer computes no later one. Keys are
kept after their norm and rotation. Patched runs, and runs that begin at a layer, share nothing.

A history holds the rows of a run that grows. Until it is forgotten, what it has computed stays, and
so do the rows before it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from service.engine.readback import Condition, hold
from service.engine.run import Follow, History, Run
from service.engine.segments import Growth, Index, Part, Placed, Segment, known_rows, shared


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
        self._untested: list[tuple[Segment, Sequence[Condition], int]] = []
        self._histories: dict[History, Growth] = {}

    def place(self, runs: Sequence[Run]) -> list[Placed]:
        """Lay runs out. Each must be released once, computed or not.

        Raises:
            ValueError: A run does not continue its history.
        """
        if any(run.histories for run in runs):
            # A history must know what it has before it is continued.
            self.verify()
        placed: dict[int, Placed] = {}
        # What a history has computed was never found in the cache.
        fresh = [
            i for i, run in enumerate(runs) if self._histories.keys().isdisjoint(run.histories)
        ]
        try:
            # The longest trunk comes first, so that shorter ones are parts of its segment.
            for i in sorted(range(len(runs)), key=lambda i: -_trunk(runs[i])):
                placed[i] = self._placed(runs[i])
                for segment, _ in (*placed[i].path, *placed[i].source):
                    segment.waiting += 1
        except ValueError:
            self.release(placed.values())
            raise
        self.hits += known_rows(placed[i] for i in fresh)
        return [placed[i] for i in range(len(runs))]

    def release(self, placed: Iterable[Placed]) -> None:
        """Drop what no run waits for and what the budget has no room for."""
        for one in placed:
            self._leave(one.path)
            self._leave(one.source)
        self._shrink()

    def forget(self, histories: Iterable[History]) -> None:
        """Drop what histories hold. Their runs must have been released."""
        for history in histories:
            growth = self._histories.pop(history, None)
            if growth is not None:
                # Its keys and values are never cached.
                growth.own.trunk = False
                self._leave(growth.path)
        self._shrink()

    def _leave(self, path: Sequence[Part]) -> None:
        for segment, _ in reversed(path):
            segment.waiting -= 1
            if segment in self._kept:
                # A use marks ancestors after their descendants.
                self._kept.move_to_end(segment)
            unused = segment.layers is None or not self._caches(segment)
            if segment.waiting == 0 and unused:
                self._drop(segment)

    def keeps(self, segment: Segment, leaving: int) -> bool:
        """Whether keys and values of a segment are kept when `leaving` runs have been computed."""
        return segment.trunk and (segment.waiting > leaving or self._caches(segment))

    def keep(
        self, segment: Segment, layers: Tensor, known: int, conditions: Sequence[Condition] = ()
    ) -> None:
        """Keep the first `known` rows of a segment, under the conditions of their pack."""
        before = segment.known
        if segment.layers is not layers:
            self.bytes -= segment.size
            segment.layers = layers
            self.bytes += segment.size
        segment.known = known
        self._kept[segment] = None
        if conditions:
            self._untested.append((segment, conditions, before))

    def verify(self) -> None:
        """Drop what was kept by packs whose conditions do not hold. Call it before each pack.

        A history goes back to what it knew before the pack.

        NaN in one row of a pack spreads to the keys and values of others, because 0 · NaN is NaN.
        """
        untested, self._untested = self._untested, []
        for segment, conditions, before in untested:
            if not hold(conditions):
                if segment.capacity is None:
                    self._drop(segment)
                else:
                    segment.known = min(segment.known, before)

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
        path = self._path(run, len(run.tokens), run)
        if not isinstance(run.patch, Follow):
            return Placed(run, path)
        return Placed(run, path, self._path(run.patch.source, run.patch.source_row + 1, run))

    def _path(self, run: Run, stop: int, reader: Run) -> tuple[Part, ...]:
        """The parts of the first `stop` rows of a run, in the dtype and depth of its reader."""
        dtype = reader.dtype or self.dtype
        if run.history is not None:
            begins, growth = run.history.begins, self._histories.get(run.history)
            if growth is None:
                before = self._shared(run.rows[:begins], begins, dtype)
                growth = Growth.after(before, run, dtype, reader.depth)
                for segment, _ in growth.path:
                    segment.waiting += 1
                self._histories[run.history] = growth
            return growth.continued(run.rows, stop, dtype, reader.depth)
        if run.shares:
            return self._shared(run.rows[:stop], min(run.trunk_rows, stop), dtype)
        return (Part(Segment(run.rows, None, 0, dtype), stop),)

    def _shared(self, rows: Index, trunk: int, dtype: torch.dtype) -> tuple[Part, ...]:
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


def _trunk(run: Run) -> int:
    if isinstance(run.patch, Follow):
        return min(run.patch.source.trunk_rows, run.patch.source_row + 1)
    return run.trunk_rows
