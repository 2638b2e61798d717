"""The route of a pack: which rows each block computes, and which of them are read.

The route is known before the first product. So all indices are built on the host and copied to the
device together, and nothing in the walk waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.activations import HookPoint
from schemas.equivalence_checks import Apply
from service.engine.pack import Pack
from service.engine.prefixes import Index
from service.engine.run import STAGE, Fixed, Follow
from service.theory import ImplicitUpdate


def copied(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the host to the device without waiting for the device."""
    pinned = values.pin_memory() if device.type == "cuda" else values
    return pinned.to(device, non_blocking=True)


class Indices:
    """Indices of a pack, collected on the host and copied to the device together."""

    def __init__(self) -> None:
        self._parts: list[Index] = []
        self._size = 0
        self._copied = torch.empty(0, dtype=torch.int64)

    def add(self, values: Index) -> slice:
        """Add indices, and return where they will be."""
        start = self._size
        self._parts.append(values)
        self._size += len(values)
        return slice(start, self._size)

    def copy(self, device: torch.device) -> None:
        """Copy all indices to the device."""
        if self._parts:
            self._copied = copied(torch.from_numpy(np.concatenate(self._parts)), device)

    def __getitem__(self, place: slice) -> Tensor:
        return self._copied[place]


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
class Group:
    """Patched rows and the update of each.

    Args:
        rows: Indices into the rows that pass through the MLP.
        whose: Indices into updates.
    """

    rows: slice
    whose: slice


@dataclass(frozen=True)
class Product:
    """Rows that are multiplied by a changed weight.

    Args:
        factored: Rows that are multiplied by W and by the factors of ΔW.
        materialized: Rows that are multiplied by W + ΔW, each update by itself.
    """

    factored: Group
    materialized: tuple[tuple[int, slice], ...]


@dataclass(frozen=True)
class Carried:
    """Rows whose Δh the second weight carries. Their updates have a numbering of their own.

    Args:
        rows: The rows.
        product: The same rows by how ΔW_out is applied.
        source: The row that each update follows, an index into the rows that pass through the MLP;
            given updates come after these.
        shift: The number of each such update among all updates, for its Δh.
    """

    rows: Group
    product: Product
    source: slice
    shift: slice


@dataclass(frozen=True)
class Patching:
    """Patched rows of a block. Updates of runs that follow another come before the given ones.

    Args:
        to, source: The rows that follow and the rows that they follow, indices into the rows that
            reach mlp_in.
        fixed: The given updates.
        plain: Rows with the resident weights, indices into the rows that pass through the MLP.
        product: The other rows by how ΔW is applied.
        shifted: Rows to which Δh is added.
        carried: Rows whose Δh the second weight carries; None: none.
    """

    to: slice
    source: slice
    fixed: tuple[ImplicitUpdate, ...]
    plain: slice
    product: Product
    shifted: Group
    carried: Carried | None


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
    for layer in range(last + 1):
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
            patching=_patching(pack, indices, layer, attending, through),
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


def _patching(
    pack: Pack, indices: Indices, layer: int, rows: Index, through: Index
) -> Patching | None:
    here = [(i, run) for i, run in enumerate(pack.patched) if layer <= run.depth]
    following = [(i, run, run.patch) for i, run in here if isinstance(run.patch, Follow)]
    fixed = [
        (i, run.patch.updates[layer], run.patch)
        for i, run in here
        if isinstance(run.patch, Fixed) and layer in run.patch.updates
    ]
    owners = [i for i, *_ in (*following, *fixed)]
    if not owners:
        return None
    applies: list[Apply] = [patch.apply for _, _, patch in following]
    applies += [patch.apply for _, _, patch in fixed]
    carries = [patch.form == "weights" for *_, patch in following]
    carries += [update.out is not None for _, update, _ in fixed]
    # The last entry is for rows of no patched run, whose owner is -1.
    of_run = np.full(len(pack.patched) + 1, -1)
    of_run[owners] = np.arange(len(owners))
    whose = of_run[pack.owner[through]]

    def group(updates: Sequence[int], names: Index) -> Group:
        rows = np.flatnonzero(np.isin(whose, updates))
        return Group(indices.add(rows), indices.add(names[whose[rows]]))

    def product(updates: Sequence[int], names: Index) -> Product:
        factored = [i for i in updates if applies[i] == "factored"]
        others = [i for i in updates if i not in factored]
        return Product(
            group(factored, names), tuple((int(names[i]), group([i], names).rows) for i in others)
        )

    every = range(len(owners))
    names = np.arange(len(owners))
    carried = None
    if any(carries):
        chosen = [i for i in every if carries[i]]
        number = np.cumsum(carries) - 1
        sources = [run.source_row for _, run, patch in following if patch.form == "weights"]
        carried = Carried(
            rows=group(chosen, number),
            product=product(chosen, number),
            source=indices.add(through.searchsorted(sources)),
            shift=indices.add(np.flatnonzero(carries[: len(following)])),
        )
    return Patching(
        to=indices.add(rows.searchsorted([run.row for _, run, _ in following])),
        source=indices.add(rows.searchsorted([run.source_row for _, run, _ in following])),
        fixed=tuple(update for _, update, _ in fixed),
        plain=indices.add(np.flatnonzero(whose < 0)),
        product=product(every, names),
        shifted=group([i for i in every if not carries[i]], names),
        carried=carried,
    )
