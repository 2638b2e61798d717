"""The route of a pack: which rows each block computes, and which of them are read.

The route is known before the first product. So all indices are built on the host and copied to the
device together, and nothing in the walk waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.activations import HookPoint
from schemas.equivalence_checks import Apply
from service.engine.pack import Index, Pack
from service.engine.prefixes import CachedRows
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


@dataclass(frozen=True)
class Keep:
    """Some rows of a block, and the columns of their masks.

    Args:
        rows: Indices into the rows before the selection.
        columns: Indices into the columns before the selection.
    """

    rows: slice
    columns: slice


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
        rows: The pack's rows whose keys and values it computes.
        stay: The rows of the block before that remain; None: all.
        cached: The cached rows that attention sees.
        columns: The columns of the masks that remain when cached rows leave; None: all.
        queries: The rows that become queries; None: all. Empty if no row needs attention.
        mlp: The rows that pass through the MLP; None: all. Empty if no row does.
        attends, transforms: Whether any row becomes a query, and whether any passes through the
            MLP.
        reads: The hook points that are read.
        patching: The patched rows; None: none.
    """

    rows: Index
    stay: Keep | None
    cached: tuple[CachedRows, ...]
    columns: slice | None
    queries: Keep | None
    attends: bool
    mlp: Keep | None
    transforms: bool
    reads: Mapping[HookPoint, Reading]
    patching: Patching | None


def route(pack: Pack, indices: Indices) -> list[Step]:
    """The steps of a pack, one for each block. Their indices are added to `indices`."""
    return list(_steps(pack, indices))


def _steps(pack: Pack, indices: Indices) -> Iterator[Step]:
    rows = np.arange(len(pack.tokens))
    cached = pack.cached
    for layer in range(int(pack.depth.max(initial=-1)) + 1):
        ahead = sum(part.rows for part in cached)
        stays = pack.depth[rows] >= layer
        stay = _keep(indices, stays, ahead)
        rows = rows[stays]
        columns = None
        if any(part.node.depth <= layer for part in cached):
            reach = [part.node.depth > layer for part in cached]
            seen = np.repeat([*reach, True], [*(part.rows for part in cached), len(rows)])
            columns = indices.add(np.flatnonzero(seen))
            cached = tuple(compress(cached, reach))
            ahead = sum(part.rows for part in cached)
        stage = pack.stage(layer)
        asked = stage[rows] >= STAGE["attn_out"]
        attending = rows[asked]
        further = stage[attending] >= STAGE["mlp_pre"]
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
            rows=rows,
            stay=stay,
            cached=cached,
            columns=columns,
            queries=_keep(indices, asked, ahead),
            attends=len(attending) > 0,
            mlp=_keep(indices, further, ahead),
            transforms=len(through) > 0,
            reads={
                site.point: _reading(indices, computed[site.point], readers)
                for site, readers in pack.reads.items()
                if site.layer == layer
            },
            patching=_patching(pack, indices, layer, attending, through),
        )
        rows = through


def _keep(indices: Indices, kept: NDArray[np.bool_], ahead: int) -> Keep | None:
    """The rows that are kept, with the columns of cached rows before their own; None: all."""
    if kept.all():
        return None
    rows = np.flatnonzero(kept)
    return Keep(indices.add(rows), indices.add(np.concatenate([np.arange(ahead), ahead + rows])))


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
