"""Known prefixes: keys and values of rows that were computed before, kept.

They hold the position embedding, so a row is known by the whole path of (id, position) that leads
to it. The trie's edges are stretches of rows, cut in two where paths part; each says how many
layers it has, since a run that reads an early layer fills no more. A stretch is used only where it
has all layers that are needed, and no row that is read is ever taken from it. Patched runs neither
read nor write it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from service.engine.run import Run

LONGEST = 256
"""Rows of a stretch at most: what is dropped at once."""

Row: TypeAlias = tuple[int, int]


@dataclass(eq=False)
class Stretch:
    """The keys and values of rows that follow one another.

    Args:
        rows: Their ids and positions.
        parent: The stretch before them; None at the beginning.
        layers: (layers, 2, heads, rows, d_head), keys first; one storage of its own.
        children: The stretches that follow, by their first row.
    """

    rows: tuple[Row, ...]
    parent: Stretch | None
    layers: Tensor
    children: dict[Row, Stretch] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """How many layers it has, from the first on."""
        return len(self.layers)

    @property
    def size(self) -> int:
        """Bytes of its storage."""
        return self.layers.untyped_storage().nbytes()


class Known(NamedTuple):
    """The first rows of a stretch."""

    stretch: Stretch
    rows: int


Find: TypeAlias = Callable[[Run], Sequence[Known]]
"""The known beginning of a run."""


def nothing_known(_run: Run) -> Sequence[Known]:
    """No beginning is known."""
    return ()


class Prefixes:
    """The kept trie; the least recently used stretch goes first.

    Args:
        budget: Bytes that it may hold; 0 keeps nothing.
        dtype: Of the model; runs in another are not kept.
    """

    def __init__(self, budget: int, dtype: torch.dtype) -> None:
        self.budget = budget
        self.dtype = dtype
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._roots: dict[Row, Stretch] = {}
        self._by_use: OrderedDict[Stretch, None] = OrderedDict()

    def find(self, run: Run) -> Sequence[Known]:
        """The longest known beginning of a run, before the first row that it reads.

        A patched run, or one in another dtype than the resident one, has none.
        """
        if not self.keeps(run):
            return ()
        found: list[Known] = []
        rows = _rows(run)[: _first_read(run)]
        level, start = self._roots, 0
        while start < len(rows):
            stretch = level.get(rows[start])
            if stretch is None or stretch.depth <= run.depth:
                break
            found.append(Known(stretch, _shared(stretch.rows, rows[start:])))
            start += found[-1].rows
            if found[-1].rows < len(stretch.rows):
                break
            level = stretch.children
        for stretch, _ in reversed(found):
            self._by_use.move_to_end(stretch)
        return found

    def keep(
        self, run: Run, known: Sequence[Known], layers: Callable[[int, int], Tensor | None]
    ) -> None:
        """Keep what was computed of a run.

        What it reads begins a stretch of its own, so that another query leaves it whole.

        Args:
            run: A run that was computed.
            known: Its known beginning.
            layers: The keys and values of its rows from one to another, as a stretch holds them,
                or None where they were not computed.
        """
        if not self.keeps(run):
            return
        before = sum(part.rows for part in known)
        self.hits += before
        self.misses += len(run.tokens) - before
        rows, read = _rows(run), _first_read(run)
        path: list[Stretch] = []
        level, start = self._roots, 0
        while start < len(rows):
            stretch = level.get(rows[start])
            if stretch is None:
                stop = min(start + LONGEST, read if start < read else len(rows))
                computed = layers(start, stop)
                if computed is None:
                    break
                stretch = Stretch(rows[start:stop], path[-1] if path else None, computed)
                level[rows[start]] = stretch
                self.bytes += stretch.size
                self._by_use[stretch] = None
            else:
                stop = start + _shared(stretch.rows, rows[start:])
                if stop < start + len(stretch.rows) and stop < len(rows):
                    self._cut(stretch, stop - start)
                if stop == start + len(stretch.rows) and stretch.depth <= run.depth:
                    self._deepen(stretch, layers(start, stop))
            path.append(stretch)
            level, start = stretch.children, stop
        for stretch in reversed(path):
            self._by_use.move_to_end(stretch)
        self._shrink()

    def keeps(self, run: Run) -> bool:
        """Whether a run may use and add to what is known."""
        return self.budget > 0 and run.patch is None and run.dtype in (None, self.dtype)

    def _cut(self, stretch: Stretch, count: int) -> None:
        """Leave a stretch its first `count` rows; the others follow it, with what followed it."""
        head, tail = (part.clone() for part in stretch.layers.tensor_split([count], -2))
        self.bytes -= stretch.size
        rest = Stretch(stretch.rows[count:], stretch, tail, stretch.children)
        for child in rest.children.values():
            child.parent = rest
        stretch.rows = stretch.rows[:count]
        stretch.layers = head
        stretch.children = {rest.rows[0]: rest}
        self.bytes += stretch.size + rest.size
        self._by_use[rest] = None

    def _deepen(self, stretch: Stretch, computed: Tensor | None) -> None:
        """Put what was computed in the place of fewer layers."""
        if computed is not None and len(computed) > stretch.depth:
            self.bytes -= stretch.size
            stretch.layers = computed
            self.bytes += stretch.size

    def _shrink(self) -> None:
        """Drop what was used least recently: always a stretch that nothing follows."""
        while self.bytes > self.budget:
            stretch, _ = self._by_use.popitem(last=False)
            level = self._roots if stretch.parent is None else stretch.parent.children
            del level[stretch.rows[0]]
            self.bytes -= stretch.size


def known_rows(beginnings: Iterable[Sequence[Known]]) -> int:
    """Number of distinct cached rows that several runs begin with."""
    longest: dict[Stretch, int] = {}
    for known in beginnings:
        for stretch, rows in known:
            longest[stretch] = max(rows, longest.get(stretch, 0))
    return sum(longest.values())


def _rows(run: Run) -> tuple[Row, ...]:
    return tuple(zip(run.tokens, run.positions, strict=True))


def _first_read(run: Run) -> int:
    """The first row that a run reads; 0 where it reads none."""
    return min((min(rows) for rows in run.reads.values() if len(rows)), default=0)


def _shared(one: Sequence[Row], other: Sequence[Row]) -> int:
    """With how many equal rows the two begin."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def stacked(layers: Sequence[tuple[Tensor, Tensor]], rows: Sequence[Tensor]) -> Tensor:
    """Some rows of a pack as a stretch holds them, (layers, 2, heads, rows, d_head).

    Args:
        layers: Keys and values, (heads, rows of the layer, d_head) each.
        rows: Where the rows are in each layer.
    """
    return torch.stack(
        [
            torch.stack([keys[:, here], values[:, here]])
            for (keys, values), here in zip(layers, rows, strict=True)
        ]
    )
