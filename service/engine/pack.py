"""Packs: several runs in one forward.

A pack is the trie of its runs on (id, position). Rows that several runs begin with are computed
once, and a row sees its ancestors and itself, so a run in a pack is the run alone. The n+1 prefixes
of a context, each followed by the query, become 2n+1 rows by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from service.engine.prefixes import Find, Known, Stretch, nothing_known
from service.engine.run import STAGE, Fixed, Follow, Run, Site

Index = NDArray[np.int64]


@dataclass
class Trie:
    """Rows, each with its parent; a run is a path from a root down."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    children: dict[tuple[int, int, int], int] = field(default_factory=dict)
    known: dict[Stretch, int] = field(default_factory=dict)
    roots: list[Sequence[Known]] = field(default_factory=list)
    root_of: dict[Known, int] = field(default_factory=dict)

    def add(self, run: Run, known: Sequence[Known] = ()) -> Index:
        """The rows of a run, outermost first, -1 for known ones; what is not there yet is added.

        A patched run shares no row with any other: its rows hang from a root of its own. So do
        those behind a known beginning, except with runs that have the same.
        """
        start = sum(part.rows for part in known)
        path = np.full(len(run.tokens), -1, np.int64)
        parent = self._root(run, known)
        rest = zip(run.tokens[start:], run.positions[start:], strict=True)
        for i, (token, position) in enumerate(rest, start):
            row = self.children.setdefault((parent, token, position), len(self.tokens))
            if row == len(self.tokens):
                self.tokens.append(token)
                self.positions.append(position)
                self.parents.append(parent)
            path[i] = parent = row
        return path

    def _root(self, run: Run, known: Sequence[Known]) -> int:
        """What a run's first row hangs from: -1, or a negative number for a root of its own."""
        if known:
            for stretch, rows in known:
                self.known[stretch] = max(rows, self.known.get(stretch, 0))
            root = self.root_of.setdefault(known[-1], len(self.roots))
            if root == len(self.roots):
                self.roots.append(known)
            return -2 - root
        if run.patch is not None:
            self.roots.append(())
            return -1 - len(self.roots)
        return -1

    def __len__(self) -> int:
        return len(self.tokens)

    def sight(self) -> NDArray[np.bool_]:
        """Which row sees which: ancestors, known ones first, and itself, (rows, known + rows)."""
        ends = dict(zip(self.known, accumulate(self.known.values()), strict=True))
        ahead = sum(self.known.values())
        sees = np.zeros((len(self), ahead + len(self)), np.bool_)
        for row, parent in enumerate(self.parents):
            if parent >= 0:
                sees[row] = sees[parent]
            elif parent < -1:
                for stretch, rows in self.roots[-2 - parent]:
                    column = ends[stretch] - self.known[stretch]
                    sees[row, column : column + rows] = True
            sees[row, ahead + row] = True
        return sees


@dataclass(frozen=True, eq=False)
class PatchedRun:
    """Where a patched run lies in its pack.

    Args:
        patch: What is patched.
        depth: The last layer that it is needed in.
        row: The row that follows; -1 where the patch is fixed.
        source_row: The row that it follows; -1 where the patch is fixed.
    """

    patch: Follow | Fixed
    depth: int
    row: int = -1
    source_row: int = -1


@dataclass(frozen=True, eq=False)
class Pack:
    """Runs laid out for one forward.

    Args:
        tokens: (rows,).
        positions: (rows,).
        sees: A bool mask, (rows, known + rows).
        known: The known rows that the first columns of the mask stand for.
        begins: Each run's known beginning.
        paths: Each run's rows, -1 for known ones.
        depth: The last layer that each row is needed in, (rows,).
        reads: At each site the pack's rows that each run reads there, with the run's index.
        patched: The runs whose weights are patched.
        owner: The patched run that each row is of, as an index; -1: none, (rows,).
    """

    tokens: Index
    positions: Index
    sees: NDArray[np.bool_]
    known: tuple[Known, ...]
    begins: tuple[Sequence[Known], ...]
    paths: tuple[Index, ...]
    depth: Index
    reads: dict[Site, list[tuple[int, Index]]]
    patched: tuple[PatchedRun, ...]
    owner: Index

    def stage(self, layer: int) -> Index:
        """The last hook point that each row is needed at in a layer, by index; -1: keys only."""
        needed = np.where(self.depth > layer, STAGE["resid_post"], -1)
        for site, readers in self.reads.items():
            if site.layer == layer:
                for _, rows in readers:
                    needed[rows] = np.maximum(needed[rows], STAGE[site.point])
        for run in self.patched:
            if run.depth >= layer and isinstance(run.patch, Follow):
                pair = [run.row, run.source_row]
                needed[pair] = np.maximum(needed[pair], STAGE["mlp_in"])
        return needed


def pack(runs: Sequence[Run], find: Find = nothing_known) -> Pack:
    """Lay runs out for one forward.

    Args:
        runs: Of one dtype.
        find: Says which beginning of a run is known.
    """
    trie = Trie()
    begins = [find(run) for run in runs]
    paths = [trie.add(run, known) for run, known in zip(runs, begins, strict=True)]
    sources = [
        trie.add(run.patch.source, _source_known(run, run.patch.source, find))
        if isinstance(run.patch, Follow)
        else None
        for run in runs
    ]
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
        known=tuple(Known(*part) for part in trie.known.items()),
        begins=tuple(begins),
        paths=tuple(paths),
        depth=depth,
        reads=reads,
        patched=tuple(patched),
        owner=owner,
    )


def fill(runs: Sequence[Run], budget: int, find: Find = nothing_known) -> int:
    """How many of the runs, from the first on, fit into a pack of `budget` rows; at least one."""
    trie = Trie()
    for count, run in enumerate(runs):
        trie.add(run, find(run))
        if isinstance(run.patch, Follow):
            trie.add(run.patch.source, _source_known(run, run.patch.source, find))
        if count and len(trie) > budget:
            return count
    return len(runs)


def _source_known(run: Run, source: Run, find: Find) -> Sequence[Known]:
    """The known beginning of the run that another follows, where it has the other's layers."""
    return find(source) if source.depth >= run.depth else ()
