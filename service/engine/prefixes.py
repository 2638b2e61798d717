"""The prefix cache: keys and values of rows that were computed before.

Keys and values depend on the position and on all earlier rows, so a row is found by its whole path
of (id, position). Keys are cached after their norm and rotation. The cache is a trie whose nodes
hold several rows; a node is split where paths part. Each node has a number of layers, because a run
that reads an early layer computes no more. A node is used only if it has all layers that are
needed, and rows that are read are always computed. Patched runs neither read nor write the cache.
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
"""Maximum rows of a node, the unit of eviction."""

Row: TypeAlias = tuple[int, int]


@dataclass(eq=False)
class Node:
    """Keys and values of consecutive rows.

    Args:
        rows: Ids and positions of the rows.
        parent: The node before them; None at the beginning.
        layers: (layers, 2, heads, rows, d_head), keys first, in a storage of its own.
        children: The nodes that follow, by their first row.
    """

    rows: tuple[Row, ...]
    parent: Node | None
    layers: Tensor
    children: dict[Row, Node] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Number of layers, from the first."""
        return len(self.layers)

    @property
    def size(self) -> int:
        """Bytes of the storage."""
        return self.layers.untyped_storage().nbytes()


class CachedRows(NamedTuple):
    """The first rows of a node."""

    node: Node
    rows: int

    @property
    def positions(self) -> list[int]:
        """Their positions."""
        return [position for _, position in self.node.rows[: self.rows]]


Find: TypeAlias = Callable[[Run], Sequence[CachedRows]]
"""Finds the cached prefix of a run."""


def nothing_cached(_run: Run) -> Sequence[CachedRows]:
    """Find no cached prefix."""
    return ()


class Prefixes:
    """The trie of cached rows. The least recently used node is evicted first.

    Args:
        budget: Maximum bytes; 0 caches nothing.
        dtype: The model's dtype. Runs in another dtype are not cached.
    """

    def __init__(self, budget: int = 0, dtype: torch.dtype = torch.float32) -> None:
        self.budget = budget
        self.dtype = dtype
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._roots: dict[Row, Node] = {}
        self._by_use: OrderedDict[Node, None] = OrderedDict()

    def find(self, run: Run) -> Sequence[CachedRows]:
        """Find the longest cached prefix of a run, before the first row that it reads.

        Patched runs, and runs in another dtype than the resident one, have none.
        """
        if not self.keeps(run):
            return ()
        found: list[CachedRows] = []
        rows = _rows(run)[: _first_read(run)]
        level, start = self._roots, 0
        while start < len(rows):
            node = level.get(rows[start])
            if node is None or node.depth <= run.depth:
                break
            found.append(CachedRows(node, _shared(node.rows, rows[start:])))
            start += found[-1].rows
            if found[-1].rows < len(node.rows):
                break
            level = node.children
        for node, _ in reversed(found):
            self._by_use.move_to_end(node)
        return found

    def keep(
        self, run: Run, cached: Sequence[CachedRows], layers: Callable[[int, int], Tensor | None]
    ) -> None:
        """Cache the rows of a run that was computed.

        The first row that it reads begins a node of its own, so that another query after the same
        context does not split a node.

        Args:
            run: The run.
            cached: Its cached prefix.
            layers: Returns the keys and values of its rows [start, stop) in the form of a node, or
                None if they were not computed.
        """
        if not self.keeps(run):
            return
        before = sum(part.rows for part in cached)
        self.hits += before
        self.misses += len(run.tokens) - before
        rows, read = _rows(run), _first_read(run)
        path: list[Node] = []
        level, start = self._roots, 0
        while start < len(rows):
            node = level.get(rows[start])
            if node is None:
                stop = min(start + LONGEST, read if start < read else len(rows))
                computed = layers(start, stop)
                if computed is None:
                    break
                node = Node(rows[start:stop], path[-1] if path else None, computed)
                level[rows[start]] = node
                self.bytes += node.size
                self._by_use[node] = None
            else:
                stop = start + _shared(node.rows, rows[start:])
                if stop < start + len(node.rows) and stop < len(rows):
                    self._split(node, stop - start)
                if stop == start + len(node.rows) and node.depth <= run.depth:
                    self._deepen(node, layers(start, stop))
            path.append(node)
            level, start = node.children, stop
        for node in reversed(path):
            self._by_use.move_to_end(node)
        self._shrink()

    def keeps(self, run: Run) -> bool:
        """Whether a run may read and write the cache."""
        return self.budget > 0 and run.patch is None and run.dtype in (None, self.dtype)

    def _split(self, node: Node, count: int) -> None:
        """Split a node after `count` rows. The tail becomes its child and inherits its children."""
        head, tail = (part.clone() for part in node.layers.tensor_split([count], -2))
        self.bytes -= node.size
        rest = Node(node.rows[count:], node, tail, node.children)
        for child in rest.children.values():
            child.parent = rest
        node.rows = node.rows[:count]
        node.layers = head
        node.children = {rest.rows[0]: rest}
        self.bytes += node.size + rest.size
        self._by_use[rest] = None

    def _deepen(self, node: Node, computed: Tensor | None) -> None:
        """Replace a node's layers if more were computed."""
        if computed is not None and len(computed) > node.depth:
            self.bytes -= node.size
            node.layers = computed
            self.bytes += node.size

    def _shrink(self) -> None:
        """Evict the least recently used nodes, which have no children: a use marks ancestors."""
        while self.bytes > self.budget:
            node, _ = self._by_use.popitem(last=False)
            level = self._roots if node.parent is None else node.parent.children
            del level[node.rows[0]]
            self.bytes -= node.size


def cached_rows(beginnings: Iterable[Sequence[CachedRows]]) -> int:
    """Number of distinct cached rows that several runs begin with."""
    longest: dict[Node, int] = {}
    for cached in beginnings:
        for node, rows in cached:
            longest[node] = max(rows, longest.get(node, 0))
    return sum(longest.values())


def _rows(run: Run) -> tuple[Row, ...]:
    return tuple(zip(run.tokens, run.positions, strict=True))


def _first_read(run: Run) -> int:
    """The first row that a run reads; 0 if it reads none."""
    return min((min(rows) for rows in run.reads.values() if len(rows)), default=0)


def _shared(one: Sequence[Row], other: Sequence[Row]) -> int:
    """Number of equal rows that both begin with."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def stacked(layers: Sequence[tuple[Tensor, Tensor]], rows: Sequence[Tensor]) -> Tensor:
    """Stack rows of a pack in the form of a node, (layers, 2, heads, rows, d_head).

    Args:
        layers: Keys and values of each layer, (heads, rows of the layer, d_head) each.
        rows: Indices of the rows in each layer.
    """
    return torch.stack(
        [
            torch.stack([keys[:, here], values[:, here]])
            for (keys, values), here in zip(layers, rows, strict=True)
        ]
    )
