"""Packs: several runs in one forward.

A pack is the trie of its runs on (id, position). Rows that several runs begin with are computed
once, and a row sees its ancestors and itself, so a run in a pack is the run alone. The n+1 prefixes
of a context, each followed by the query, become 2n+1 rows by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.engine.run import STAGE, Run, Site

Index = NDArray[np.int64]


@dataclass
class Trie:
    """Rows, each with its parent; a run is a path from a root down."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    children: dict[tuple[int, int, int], int] = field(default_factory=dict)

    def add(self, run: Run) -> Index:
        """The rows of a run, outermost first; those that are not there yet are added."""
        path = np.empty(len(run.tokens), np.int64)
        parent = -1
        for i, (token, position) in enumerate(zip(run.tokens, run.positions, strict=True)):
            row = self.children.setdefault((parent, token, position), len(self.tokens))
            if row == len(self.tokens):
                self.tokens.append(token)
                self.positions.append(position)
                self.parents.append(parent)
            path[i] = parent = row
        return path

    def __len__(self) -> int:
        return len(self.tokens)

    def sight(self) -> NDArray[np.bool_]:
        """Which row sees which: its ancestors and itself, (rows, rows)."""
        sees = np.zeros((len(self), len(self)), np.bool_)
        for row, parent in enumerate(self.parents):
            if parent >= 0:
                sees[row] = sees[parent]
            sees[row, row] = True
        return sees


@dataclass(frozen=True, eq=False)
class Pack:
    """Runs laid out for one forward.

    Args:
        tokens: (rows,).
        positions: (rows,).
        sees: (rows, rows), a bool mask.
        depth: The last layer that each row is needed in, (rows,).
        reads: At each site the pack's rows that each run reads there, with the run's index.
    """

    tokens: Index
    positions: Index
    sees: NDArray[np.bool_]
    depth: Index
    reads: dict[Site, list[tuple[int, Index]]]

    def stage(self, layer: int) -> Index:
        """The last hook point that each row is needed at in a layer, by index; -1: keys only."""
        needed = np.where(self.depth > layer, STAGE["resid_post"], -1)
        for site, readers in self.reads.items():
            if site.layer == layer:
                for _, rows in readers:
                    needed[rows] = np.maximum(needed[rows], STAGE[site.point])
        return needed


def pack(runs: Sequence[Run]) -> Pack:
    """Lay runs out for one forward."""
    trie = Trie()
    paths = [trie.add(run) for run in runs]
    depth = np.full(len(trie), -1, np.int64)
    reads: dict[Site, list[tuple[int, Index]]] = {}
    for i, (run, path) in enumerate(zip(runs, paths, strict=True)):
        depth[path] = np.maximum(depth[path], run.depth)
        for site, rows in run.reads.items():
            reads.setdefault(site, []).append((i, path[np.asarray(rows, np.int64)]))
    return Pack(
        tokens=np.asarray(trie.tokens, np.int64),
        positions=np.asarray(trie.positions, np.int64),
        sees=trie.sight(),
        depth=depth,
        reads=reads,
    )


def fill(runs: Sequence[Run], budget: int) -> int:
    """How many of the runs, from the first on, fit into a pack of `budget` rows; at least one."""
    trie = Trie()
    for count, run in enumerate(runs):
        trie.add(run)
        if count and len(trie) > budget:
            return count
    return len(runs)
