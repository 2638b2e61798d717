"""The route of a pack: which rows each block computes, and which of them are read.

The route is known before the first product. So all indices are built on the host and copied to the
device together, and nothing in the walk waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.activations import HookPoint
from service.engine.indices import Indices
from service.engine.pack import Pack
from service.engine.patching import Patching, patching
from service.engine.run import STAGE
from service.engine.segments import Index


class Sight(NamedTuple):
    """Known rows that some queries see.

    Args:
        number: Index of the known rows in the pack.
        queries: The queries, indices into all queries; None: all.
        mask: The same as indices into the rows of the mask; None: all.
    """

    number: int
    queries: slice | None
    mask: slice | None


class Keeping(NamedTuple):
    """Rows whose keys and values are kept.

    Args:
        number: Index of the kept rows in the pack.
        rows: The rows among those whose keys and values the block computes, consecutive.
    """

    number: int
    rows: slice


@dataclass(frozen=True)
class Reading:
    """Rows of a hook point that runs read.

    Args:
        rows: Indices into the rows that are computed there.
        runs: Index of each run that reads, and its number of rows.
    """

    rows: slice
    runs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Step:
    """One block.

    Args:
        stay: The rows of the block before that remain; None: all.
        known: The known rows that attention sees.
        kept: The rows whose keys and values are kept.
        queries: The rows that become queries; None: all. Empty if no row needs attention.
        mlp: The rows that pass through the MLP; None: all. Empty if no row does.
        attends, transforms: Whether any row becomes a query, and whether any passes through the
            MLP.
        reads: The hook points that are read.
        patching: The patched rows; None: none.
    """

    stay: slice | None
    known: tuple[Sight, ...]
    kept: tuple[Keeping, ...]
    queries: slice | None
    attends: bool
    mlp: slice | None
    transforms: bool
    reads: Mapping[HookPoint, Reading]
    patching: Patching | None


def route(pack: Pack, indices: Indices) -> list[Step]:
    """The steps of a pack, one for each block. Their indices are added to `indices`."""
    return list(_steps(pack, indices))


def _steps(pack: Pack, indices: Indices) -> Iterator[Step]:
    rows = np.arange(len(pack.tokens))
    last = int(pack.depth.max(initial=-1))
    for layer in range(pack.first, last + 1):
        stays = pack.depth[rows] >= layer
        stay = _keep(indices, stays)
        rows = rows[stays]
        stage = pack.stage(layer)
        if pack.static:
            # All rows pass through all blocks; in the last one, equally many of each group.
            asked = _in_step(pack, stage >= STAGE["attn_out"]) if layer == last else stays
            further = np.full(int(asked.sum()), (stage >= STAGE["mlp_pre"]).any())
        else:
            asked = stage[rows] >= STAGE["attn_out"]
            further = stage[rows[asked]] >= STAGE["mlp_pre"]
        attending = rows[asked]
        through = attending[further]
        computed = {
            point: rows
            if STAGE[point] < STAGE["attn_out"]
            else attending
            if STAGE[point] < STAGE["mlp_pre"]
            else through
            for point in STAGE
        }
        yield Step(
            stay=stay,
            known=tuple(_sights(pack, indices, layer, attending)),
            kept=tuple(_keeping(pack, rows)) if len(attending) else (),
            queries=_keep(indices, asked),
            attends=len(attending) > 0,
            mlp=_keep(indices, further),
            transforms=len(through) > 0,
            reads={
                site.point: _reading(indices, computed[site.point], readers)
                for site, readers in pack.reads.items()
                if site.layer == layer
            },
            patching=patching(pack, indices, layer, attending, through),
        )
        rows = through


def _in_step(pack: Pack, wanted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """At least the wanted rows, and the same number of each group."""
    by_group = wanted.reshape(pack.groups, -1).copy()
    counts = by_group.sum(1)
    # A power of two keeps the number of shapes small.
    width = min(by_group.shape[1], 1 << int(max(counts.max(initial=1), 1) - 1).bit_length())
    for group, count in zip(by_group, counts, strict=True):
        group[np.flatnonzero(~group)[: width - count]] = True
    return by_group.reshape(-1)


def _keep(indices: Indices, kept: NDArray[np.bool_]) -> slice | None:
    """Indices of the rows that are kept; None: all."""
    return None if kept.all() else indices.add(np.flatnonzero(kept))


def _sights(pack: Pack, indices: Indices, layer: int, attending: Index) -> Iterator[Sight]:
    """The known rows with as many layers that some of the queries see."""
    for number, known in enumerate(pack.known):
        if len(known.layers) <= layer or not len(attending):
            continue
        queries = np.flatnonzero(np.isin(attending, known.rows))
        mask = np.flatnonzero(np.isin(known.rows, attending))
        if len(queries):
            yield Sight(
                number,
                None if len(queries) == len(attending) else indices.add(queries),
                None if len(mask) == len(known.rows) else indices.add(mask),
            )


def _keeping(pack: Pack, rows: Index) -> Iterator[Keeping]:
    for number, kept in enumerate(pack.kept):
        first, stop = rows.searchsorted([kept.rows.start, kept.rows.stop])
        if stop - first == kept.rows.stop - kept.rows.start:
            yield Keeping(number, slice(int(first), int(stop)))


def _reading(indices: Indices, rows: Index, readers: Sequence[tuple[int, Index]]) -> Reading:
    wanted = np.concatenate([of_run for _, of_run in readers])
    return Reading(
        indices.add(rows.searchsorted(wanted)),
        tuple((run, len(of_run)) for run, of_run in readers),
    )
