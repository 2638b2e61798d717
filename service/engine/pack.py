"""Packs: several runs in one forward.

A pack holds the rows of its runs that must be computed, each once. A row sees its ancestors and
itself, so a run in a pack has the values of the run alone. The n + 1 prefixes of a context, each
followed by a query of one token, become 2n + 1 rows. Ancestors whose keys and values are known are
not computed; attention reads these in place.

On a GPU a pack may have a static shape, (groups, width): tries that share nothing lie side by side,
both padded to steps, so that attention costs groups × width² and not rows².
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from service.engine.run import POSITION_BITS, STAGE, Fixed, Follow, Site
from service.engine.segments import Index, Part, Placed, Segment

Mask = NDArray[np.bool_]
WIDTH_STEPS = ((64, 8), (160, 16), (320, 32), (640, 64), (math.inf, 128))
"""(maximum rows, step): widths of a static shape. At most an eighth of it is padding."""


@dataclass(eq=False)
class Span:
    """The rows [start, stop) of a segment, which a pack computes.

    Args:
        start, stop: Rows of the segment.
        depth: The last layer that any run needs, by row of the segment.
        begins: The pack's row of `start`.
    """

    start: int
    stop: int
    depth: Index
    begins: int = 0

    def __len__(self) -> int:
        return self.stop - self.start


class Filling:
    """A pack that is being filled.

    Args:
        budget: Maximum rows.
    """

    def __init__(self, budget: float = math.inf) -> None:
        self.placed: list[Placed] = []
        self.rows = 0
        self._budget = budget
        self._spans: dict[Segment, tuple[int, int]] = {}

    def add(self, placed: Placed) -> bool:
        """Add a run unless its rows do not fit. The first run always fits."""
        wider: dict[Segment, tuple[int, int]] = {}
        more = 0
        for part, before in placed.needed:
            segment, stop = part
            known = segment.known_to(placed.run.depth, min(stop, before))
            if known < stop:
                old = wider.get(segment) or self._spans.get(segment)
                start, end = (
                    (known, stop) if old is None else (min(known, old[0]), max(stop, old[1]))
                )
                wider[segment] = start, end
                more += end - start - (0 if old is None else old[1] - old[0])
        if self.placed and self.rows + more > self._budget:
            return False
        self._spans |= wider
        self.rows += more
        self.placed.append(placed)
        return True

    @property
    def spans(self) -> dict[Segment, Span]:
        """The rows to compute, by segment, parents first."""
        spans: dict[Segment, Span] = {}
        for one in self.placed:
            for path in (one.path, one.source):
                for segment, stop in path:
                    if segment in self._spans and segment not in spans:
                        start, end = self._spans[segment]
                        spans[segment] = Span(start, end, np.full(len(segment.rows), -1, np.int64))
                    if segment in spans:
                        depth = spans[segment].depth[:stop]
                        np.maximum(depth, one.run.depth, out=depth)
        return spans


class Known(NamedTuple):
    """Known rows of a segment, and the pack's rows that see some of them.

    Args:
        layers: Keys and values, (layers, 2, heads, rows, d_head).
        positions: Positions of the segment's rows.
        rows: The pack's rows, ascending.
        counts: How many of the segment's first rows each of the pack's rows sees.
    """

    layers: Tensor
    positions: Index
    rows: Index
    counts: Index


class Kept(NamedTuple):
    """Rows of a segment whose keys and values the walk keeps.

    Args:
        segment: The segment.
        rows: The pack's rows, consecutive.
        start: The first of them, a row of the segment.
    """

    segment: Segment
    rows: slice
    start: int


@dataclass(frozen=True, eq=False)
class PatchedRun:
    """A patched run and its rows in the pack.

    Args:
        run: Index of the run in the pack.
        patch: The changed weights.
        depth: The last layer that the run needs.
        row: The patched row; -1 for a fixed patch.
        source_row: The row of the source run that it reproduces; -1 for a fixed patch.
    """

    run: int
    patch: Follow | Fixed
    depth: int
    row: int = -1
    source_row: int = -1


@dataclass(frozen=True, eq=False)
class Pack:
    """Runs laid out for one forward.

    Args:
        placed: The runs.
        groups: Number of groups of rows, of equal width. A row sees rows of its own group only.
        static: Whether the shape is padded to steps, so that all rows stay to the last layer.
        tokens, positions: (rows,) each.
        sees: A bool mask, (groups, width, width).
        known: Known rows that rows of the pack see.
        kept: The rows that are kept.
        first: The first layer that is computed.
        begun: The rows of the runs that begin with a given stream, run by run.
        depth: The last layer that needs each row, (rows,).
        reads: For each site, the index of each run that reads it and the pack's rows that it reads.
        patched: The runs with patched weights.
        owner: Index of the patched run that each row belongs to; -1: none, (rows,).
    """

    placed: Sequence[Placed]
    groups: int
    static: bool
    tokens: Index
    positions: Index
    sees: Mask
    known: tuple[Known, ...]
    kept: tuple[Kept, ...]
    first: int
    begun: Index
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


def pack(
    filling: Filling, keeps: Callable[[Segment, int], bool] = lambda *_: False, static: bool = False
) -> Pack:
    """Lay the runs of a filled pack out for one forward.

    Args:
        filling: The runs.
        keeps: Whether a segment is kept when a number of its runs have been computed.
        static: Whether to pad the shape to steps. Packs with known or patched rows have one group
            of exactly their rows.
    """
    placed, spans = filling.placed, filling.spans
    ordered = _by_trie(spans)
    known = _known(spans, ordered)
    static = static and not known and all(one.run.patch is None for one in placed)
    groups, width = _arrange(spans, ordered, static)
    rows = groups * width
    tokens, positions = np.zeros((2, rows), np.int64)
    depth, owner = np.full((2, rows), -1, np.int64)
    sees = np.zeros((groups, width, width), np.bool_)
    sees[:, range(width), range(width)] = True
    for segment in ordered:
        span = spans[segment]
        here = slice(span.begins, span.begins + len(span))
        own = segment.rows[span.start : span.stop]
        tokens[here] = own >> POSITION_BITS
        positions[here] = own & ((1 << POSITION_BITS) - 1)
        depth[here] = span.depth[span.start : span.stop]
        group, first = divmod(span.begins, width)
        place = slice(first, first + len(span))
        sees[group, place, place] = np.tri(len(span), dtype=np.bool_)
        for other, count in _seen(segment, spans):
            if count:
                begins = spans[other].begins - group * width
                sees[group, place, begins : begins + count] = True
    if static:
        depth[:] = depth.max(initial=-1)
    reads: dict[Site, list[tuple[int, Index]]] = {}
    patched: list[PatchedRun] = []
    begun = [np.zeros(0, np.int64)]
    for i, (run, path, source) in enumerate((one.run, one.path, one.source) for one in placed):
        where = _rows_of(path, spans)
        if isinstance(run.patch, Follow):
            row, source_row = where[run.patch.row], _rows_of(source, spans)[run.patch.source_row]
            patched.append(PatchedRun(i, run.patch, run.depth, int(row), int(source_row)))
        elif run.patch is not None:
            patched.append(PatchedRun(i, run.patch, run.depth))
        if run.patch is not None:
            owner[where[where >= 0]] = len(patched) - 1
        if run.begin is not None:
            begun.append(where)
        for site, read in run.reads.items():
            reads.setdefault(site, []).append((i, where[np.asarray(read, np.int64)]))
    return Pack(
        placed=placed,
        groups=groups,
        static=static,
        tokens=tokens,
        positions=positions,
        sees=sees,
        known=known,
        kept=tuple(_kept(placed, spans, keeps)),
        first=placed[0].run.first_layer if placed else 0,
        begun=np.concatenate(begun),
        depth=depth,
        reads=reads,
        patched=tuple(patched),
        owner=owner,
    )


def _by_trie(spans: dict[Segment, Span]) -> list[Segment]:
    """The segments trie by trie; parents come first."""
    tries: dict[Segment, list[Segment]] = {}
    for segment in spans:
        root = [segment, *_ancestors(segment)][-1]
        tries.setdefault(root, []).append(segment)
    return [segment for trie in tries.values() for segment in trie]


def _ancestors(segment: Segment) -> Iterator[Segment]:
    while segment.parent is not None:
        segment = segment.parent
        yield segment


def _seen(segment: Segment, spans: dict[Segment, Span]) -> Iterable[tuple[Segment, int]]:
    """The segments before one, and how many rows of their spans its rows see."""
    here = segment
    while here.parent is not None:
        span = spans.get(here.parent)
        # A span that ends before the branch was computed for another run; the rest is known.
        within = span is not None and span.stop >= here.offset > span.start
        yield here.parent, here.offset - span.start if span is not None and within else 0
        here = here.parent


def _known(spans: dict[Segment, Span], ordered: Sequence[Segment]) -> tuple[Known, ...]:
    """The known rows that the pack's rows see. The rows are numbered as one group's."""
    seen: dict[Segment, list[tuple[Index, int]]] = {}
    begins = 0
    for segment in ordered:
        span = spans[segment]
        rows = np.arange(begins, begins + len(span))
        begins += len(span)
        if span.start:
            seen.setdefault(segment, []).append((rows, span.start))
        here = segment
        for other, count in _seen(segment, spans):
            if here.offset > count:
                seen.setdefault(other, []).append((rows, here.offset - count))
            here = other
    return tuple(
        Known(
            segment.layers,
            segment.rows & ((1 << POSITION_BITS) - 1),
            np.concatenate([rows for rows, _ in parts]),
            np.repeat([count for _, count in parts], [len(rows) for rows, _ in parts]),
        )
        for segment, parts in seen.items()
        if segment.layers is not None
    )


def _arrange(
    spans: dict[Segment, Span], ordered: Sequence[Segment], static: bool
) -> tuple[int, int]:
    """Give each span its rows; returns the number of groups and their width."""
    total = sum(len(spans[segment]) for segment in ordered)
    if not static or not total:
        begins = 0
        for segment in ordered:
            spans[segment].begins = begins
            begins += len(spans[segment])
        return 1, total
    tries: list[list[Segment]] = []
    for segment in ordered:
        if segment.parent is None or segment.parent not in spans:
            tries.append([])
        tries[-1].append(segment)
    sizes = [sum(len(spans[segment]) for segment in trie) for trie in tries]
    width = _step(max(sizes))
    free: list[int] = []
    place: dict[int, tuple[int, int]] = {}
    # First fit, the largest first, so that a query without context fills the gap behind a trie.
    for i in sorted(range(len(tries)), key=lambda i: -sizes[i]):
        group = next((g for g, room in enumerate(free) if room >= sizes[i]), len(free))
        if group == len(free):
            free.append(width)
        place[i] = group, width - free[group]
        free[group] -= sizes[i]
    for i, (group, first) in place.items():
        begins = group * width + first
        for segment in tries[i]:
            spans[segment].begins = begins
            begins += len(spans[segment])
    return _groups(len(free)), width


def _step(rows: int) -> int:
    """A width of a static shape."""
    step = next(step for most, step in WIDTH_STEPS if rows <= most)
    return step * math.ceil(rows / step)


def _groups(count: int) -> int:
    """A number of groups of a static shape: 1, 2, 3, 4, 6, 8, 12, …; at most a third is padding."""
    power = 1 << (count - 1).bit_length()
    return 3 * power // 4 if count <= 3 * power // 4 and power > 2 else power


def _rows_of(path: Sequence[Part], spans: dict[Segment, Span]) -> Index:
    """The pack's row of each row of a path, -1 for known ones."""
    parts = []
    for segment, stop in path:
        rows = np.full(stop, -1, np.int64)
        if (span := spans.get(segment)) is not None and span.start < stop:
            end = min(stop, span.stop)
            rows[span.start : end] = np.arange(span.begins, span.begins + end - span.start)
        parts.append(rows)
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _kept(
    placed: Sequence[Placed],
    spans: dict[Segment, Span],
    keeps: Callable[[Segment, int], bool],
) -> Iterable[Kept]:
    leaving: dict[Segment, int] = {}
    for one in placed:
        for segment, _ in (*one.path, *one.source):
            leaving[segment] = leaving.get(segment, 0) + 1
    for segment, span in spans.items():
        depth = span.depth[span.start : span.stop]
        # The depth falls along a segment. Its first rows are kept in all their layers.
        count = int((depth == depth[0]).sum())
        layers, first = int(depth[0]) + 1, span.start
        if layers <= segment.depth:
            first = segment.known
        if first < span.start or first >= span.start + count or layers < segment.depth:
            continue
        if keeps(segment, leaving[segment]):
            begins = span.begins + first - span.start
            yield Kept(segment, slice(begins, span.begins + count), first)
