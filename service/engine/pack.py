"""Packs: several runs in one forward.

A pack is the trie of its runs on (id, position). Rows that several runs begin with are computed
once. A row sees its ancestors and itself, so a run in a pack has the values of the run alone. The
n + 1 prefixes of a context, each followed by a query of one token, become 2n + 1 rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from service.engine.prefixes import CachedRows, Find, Node, nothing_cached
from service.engine.run import STAGE, Fixed, Follow, Run, Site

Index = NDArray[np.int64]


@dataclass
class Trie:
    """A trie of rows. Each row has a parent; a run is a path down from a root."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    children: dict[tuple[int, int, int], int] = field(default_factory=dict)
    cached: dict[Node, int] = field(default_factory=dict)
    roots: list[Sequence[CachedRows]] = field(default_factory=list)
    root_of: dict[CachedRows, int] = field(default_factory=dict)

    def add(self, run: Run, cached: Sequence[CachedRows] = ()) -> Index:
        """Add a run, and return its rows in the order of its tokens, -1 for cached ones.

        A patched run has a root of its own, so it shares no row with another run. Rows after a
        cached prefix have a root that they share with the runs of the same prefix.
        """
        start = sum(part.rows for part in cached)
        path = np.full(len(run.tokens), -1, np.int64)
        parent = self._root(run, cached)
        rest = zip(run.tokens[start:], run.positions[start:], strict=True)
        for i, (token, position) in enumerate(rest, start):
            row = self.children.setdefault((parent, token, position), len(self.tokens))
            if row == len(self.tokens):
                self.tokens.append(token)
                self.positions.append(position)
                self.parents.append(parent)
            path[i] = parent = row
        return path

    def _root(self, run: Run, cached: Sequence[CachedRows]) -> int:
        """Parent of the run's first row: -1, or a smaller number for a root of its own."""
        if cached:
            for node, rows in cached:
                self.cached[node] = max(rows, self.cached.get(node, 0))
            root = self.root_of.setdefault(cached[-1], len(self.roots))
            if root == len(self.roots):
                self.roots.append(cached)
            return -2 - root
        if run.patch is not None:
            self.roots.append(())
            return -1 - len(self.roots)
        return -1

    def __len__(self) -> int:
        return len(self.tokens)

    def sight(self) -> NDArray[np.bool_]:
        """The rows that each row sees: its ancestors and itself, bool, (rows, cached + rows)."""
        ends = dict(zip(self.cached, accumulate(self.cached.values()), strict=True))
        ahead = sum(self.cached.values())
        sees = np.zeros((len(self), ahead + len(self)), np.bool_)
        for row, parent in enumerate(self.parents):
            if parent >= 0:
                sees[row] = sees[parent]
            elif parent < -1:
                for node, rows in self.roots[-2 - parent]:
                    column = ends[node] - self.cached[node]
                    sees[row, column : column + rows] = True
            sees[row, ahead + row] = True
        return sees


@dataclass(frozen=True, eq=False)
class PatchedRun:
    """A patched run and its rows in the pack.

    Args:
        patch: The changed weights.
        depth: The last layer that the run needs.
        row: The patched row; -1 for a fixed patch.
        source_row: The row of the source run that it reproduces; -1 for a fixed patch.
    """

    patch: Follow | Fixed
    depth: int
    row: int = -1
    source_row: int = -1


@dataclass(frozen=True, eq=False)
class Pack:
    """Runs laid out for one forward.

    Args:
        tokens, positions: (rows,) each.
        sees: A bool mask, (rows, cached + rows).
        cached: The cached rows of the mask's first columns.
        begins: The cached prefix of each run.
        paths: The rows of each run, -1 for cached ones.
        depth: The last layer that needs each row, (rows,).
        reads: For each site, the index of each run that reads it and the pack's rows that it reads.
        patched: The runs with patched weights.
        owner: Index of the patched run that each row belongs to; -1: none, (rows,).
    """

    tokens: Index
    positions: Index
    sees: NDArray[np.bool_]
    cached: tuple[CachedRows, ...]
    begins: tuple[Sequence[CachedRows], ...]
    paths: tuple[Index, ...]
    depth: Index
    reads: dict[Site, list[tuple[int, Index]]]
    patched: tuple[PatchedRun, ...]
    owner: Index

    def stage(self, layer: int) -> Index:
        """Index of the last hook point that each row needs in a layer; -1: only keys and values."""
        needed = np.where(self.depth > layer, STAGE["resid_post"], -1)
        for site, readers in self.reads.items():
            if site.layer == layer:
                for _, rows in readers:
                    needed[rows] = np.maximum(needed[rows], STAGE[site.point])
        for run in self.patched:
            if run.depth >= layer and isinstance(run.patch, Follow):
                pair = [run.row, run.source_row]
                needed[pair] = np.maximum(needed[pair], STAGE["mlp_in"])
                if run.patch.form == "weights":
                    # ΔW_out is formed from what the source's MLP gives.
                    needed[run.source_row] = max(needed[run.source_row], STAGE["mlp_out"])
        return needed


def pack(runs: Sequence[Run], find: Find = nothing_cached) -> Pack:
    """Lay runs out for one forward.

    Args:
        runs: Runs of one dtype.
        find: Finds the cached prefix of a run.
    """
    trie = Trie()
    begins = [find(run) for run in runs]
    paths = [trie.add(run, cached) for run, cached in zip(runs, begins, strict=True)]
    sources = [_add_source(trie, run, find) for run in runs]
    depth, owner = np.full((2, len(trie)), -1, np.int64)
    reads: dict[Site, list[tuple[int, Index]]] = {}
    patched: list[PatchedRun] = []
    for i, (run, path, source) in enumerate(zip(runs, paths, sources, strict=True)):
        own = path[path >= 0]
        depth[own] = np.maximum(depth[own], run.depth)
        if run.patch is not None:
            owner[path] = len(patched)
        if isinstance(run.patch, Fixed):
            patched.append(PatchedRun(run.patch, run.depth))
        elif run.patch is not None and source is not None:
            own = source[source >= 0]
            depth[own] = np.maximum(depth[own], run.depth)
            row, source_row = path[run.patch.row], source[run.patch.source_row]
            patched.append(PatchedRun(run.patch, run.depth, int(row), int(source_row)))
        for site, rows in run.reads.items():
            reads.setdefault(site, []).append((i, path[np.asarray(rows, np.int64)]))
    return Pack(
        tokens=np.asarray(trie.tokens, np.int64),
        positions=np.asarray(trie.positions, np.int64),
        sees=trie.sight(),
        cached=tuple(CachedRows(*part) for part in trie.cached.items()),
        begins=tuple(begins),
        paths=tuple(paths),
        depth=depth,
        reads=reads,
        patched=tuple(patched),
        owner=owner,
    )


def fill(runs: Sequence[Run], budget: int, find: Find = nothing_cached) -> int:
    """Number of leading runs that fit into a pack of `budget` rows, at least one."""
    trie = Trie()
    for count, run in enumerate(runs):
        trie.add(run, find(run))
        _add_source(trie, run, find)
        if count and len(trie) > budget:
            return count
    return len(runs)


def _add_source(trie: Trie, run: Run, find: Find) -> Index | None:
    """Add the run that another follows. Its cached prefix is used if that has all layers."""
    if not isinstance(run.patch, Follow):
        return None
    source = run.patch.source
    return trie.add(source, find(source) if source.depth >= run.depth else ())
